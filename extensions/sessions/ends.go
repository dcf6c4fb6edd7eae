package sessions

import (
	"context"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/sessions/login"
)

// bindEnds ends the sessions of users whose credentials change, who are deleted, or who are not let in any more, in the
// transaction of that change.
func (s *Sessions) bindEnds(app core.App) {
	app.OnRecordUpdateExecute().Bind(&hook.Handler[*core.RecordEvent]{Id: "satchelSessionsUpdate", Priority: 100, Func: func(e *core.RecordEvent) error {
		if !e.Record.Collection().IsAuth() {
			return e.Next()
		}
		changed := e.Record.Original().TokenKey() != e.Record.TokenKey()
		if err := e.Next(); err != nil {
			return err
		}
		if changed {
			return s.endForCredentials(e)
		}
		return s.endExcluded(e)
	}})
	app.OnRecordDeleteExecute().Bind(&hook.Handler[*core.RecordEvent]{Id: "satchelSessionsDelete", Priority: 100, Func: func(e *core.RecordEvent) error {
		if err := e.Next(); err != nil || !e.Record.Collection().IsAuth() {
			return err
		}
		if err := s.EndAll(e.App, e.Record, reasonDeleted); err != nil {
			return err
		}
		// What is left names no device and no place.
		_, err := e.App.NonconcurrentDB().Delete(login.Table, dbx.HashExp{"collection": e.Record.Collection().Id, "record": e.Record.Id}).Execute()
		if err != nil {
			return fmt.Errorf("forget sessions: %w", err)
		}
		return nil
	}})
}

// endExcluded ends the sessions of a user whom the collection's rule no longer lets sign in, such as one who was banned.
func (s *Sessions) endExcluded(e *core.RecordEvent) error {
	rule := e.Record.Collection().AuthRule
	if rule == nil || *rule == "" {
		return nil
	}
	ok, err := e.App.CanAccessRecord(e.Record, &core.RequestInfo{Auth: nil}, rule)
	if err != nil || ok {
		return err
	}
	return s.EndAll(e.App, e.Record, reasonRule)
}

// EndAll ends every session of a user, also those in which the user acts for others, and says so in the audit, in the
// transaction of app if it is one.
func (s *Sessions) EndAll(app core.App, record *core.Record, reason string) error {
	return s.endAllBut(app, nil, record, reason, "")
}

// endAllBut leaves one session alone, whose id is kept.
func (s *Sessions) endAllBut(app core.App, e *core.RequestEvent, record *core.Record, reason, kept string) error {
	params := login.Owner(record)
	params["kept"] = kept
	return app.RunInTransaction(func(tx core.App) error {
		for _, where := range []string{login.Owned, login.Acting} {
			if err := s.endSome(tx, e, record, reason, where+` AND l.id <> {:kept}`, params); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *Sessions) endSome(app core.App, e *core.RequestEvent, record *core.Record, reason, where string, params dbx.Params) error {
	return app.RunInTransaction(func(tx core.App) error {
		ids, err := login.End(tx, s.now(), reason, where, params)
		if err != nil || len(ids) == 0 {
			return err
		}
		return s.record(tx, e, "sessions.ended", audit.Success, audit.PartyOf(record), "", map[string]any{"count": len(ids), "reason": reason})
	})
}

// endOne ends a session on behalf of a request.
func (s *Sessions) endOne(e *core.RequestEvent, l *login.Login, reason string) error {
	return e.App.RunInTransaction(func(tx core.App) error {
		ids, err := login.End(tx, s.now(), reason, `l.id = {:id}`, dbx.Params{"id": l.ID})
		if err != nil || len(ids) == 0 {
			return err
		}
		return s.record(tx, e, "sessions.ended", audit.Success, party(tx, l), l.ID, map[string]any{"reason": reason})
	})
}

const (
	// tendEvery is how often realtime connections are compared with the sessions that have ended.
	tendEvery = 250 * time.Millisecond

	// sweepEvery is how often old rows are removed and the age of the signing key is looked at.
	sweepEvery = time.Hour

	// keep is how long a session that has ended can still be seen by admins.
	keep = 30 * 24 * time.Hour
)

// Reasons why a session ended.
const (
	reasonSignedOut   = "signed_out"
	reasonRevoked     = "revoked"
	reasonReuse       = "refresh_reused"
	reasonCredentials = "credentials_changed"
	reasonDeleted     = "account_deleted"
	reasonRule        = "auth_rule"
	reasonLimit       = "limit"
)

// tend does the regular work until ctx ends.
func (s *Sessions) tend(ctx context.Context) {
	defer close(s.tended)
	ticker := time.NewTicker(tendEvery)
	defer ticker.Stop()
	var swept, looked time.Time
	seen := s.deps.Version(login.Ended)
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			if version := s.deps.Version(login.Ended); version != seen || now.Sub(looked) >= expiryEvery {
				seen, looked = version, now
				s.dropConnections()
			}
			if now.Sub(swept) >= sweepEvery {
				swept = now
				if err := s.Sweep(ctx); err != nil {
					s.logger.Warn("old sessions could not be removed", "error", err)
				}
				if err := s.ring.Maintain(); err != nil {
					s.logger.Error("the signing keys could not be rotated", "error", err)
				}
			}
		}
	}
}

// Sweep removes sessions that ended or expired long ago.
func (s *Sessions) Sweep(ctx context.Context) error {
	return login.Sweep(ctx, s.app, s.now().Add(-keep))
}
