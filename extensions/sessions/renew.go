package sessions

import (
	"errors"
	"fmt"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/sessions/refresh"
)

// handleRefresh answers a new pair of tokens for a refresh token.
func (s *Sessions) handleRefresh(e *core.RequestEvent) error {
	noStore(e)
	var body struct {
		RefreshToken string `json:"refreshToken"`
	}
	if err := api.Bind(e, &body); err != nil {
		return err
	}
	grant, err := s.renew(e, body.RefreshToken)
	if err != nil {
		return err
	}
	return api.Write(e, 200, grant)
}

// renew is the exchange of a refresh token. A token that is not authentic is refused without a look at the session's
// state, so that nobody can end a session whose id he knows; and before the writer is asked for.
func (s *Sessions) renew(e *core.RequestEvent, text string) (Grant, error) {
	token, err := refresh.Parse(text)
	if err != nil {
		return Grant{}, ErrRefreshInvalid
	}
	// Another refresh may be quicker between the look and the change; then the next look decides.
	for range 3 {
		l, err := findLogin(e.App.ConcurrentDB(), token.Session)
		if errors.Is(err, errNoLogin) {
			return Grant{}, ErrRefreshInvalid
		}
		if err != nil {
			return Grant{}, err
		}
		if !token.Authentic(s.refreshKey(), l.Salt) || l.Actor != "" {
			return Grant{}, ErrRefreshInvalid
		}
		if !l.alive(s.now()) {
			return Grant{}, ErrTokenRevoked
		}
		switch refresh.Judge(l.state(), token.Generation, s.now()) {
		case refresh.Resend:
		case refresh.Reuse:
			return Grant{}, s.reused(e, l, token.Generation)
		case refresh.Rotate:
			if err := s.mayStay(e, l); err != nil {
				return Grant{}, err
			}
			rotated, err := s.rotate(e, l, token.Generation)
			if err != nil {
				return Grant{}, err
			}
			if !rotated {
				continue
			}
		}
		return s.grant(l)
	}
	return Grant{}, api.ErrUnavailable
}

// mayStay asks whether the user could still sign in: the account is there and satisfies the collection's rule.
func (s *Sessions) mayStay(e *core.RequestEvent, l *login) error {
	record, err := e.App.FindRecordById(l.Collection, l.Record)
	if err != nil {
		return ErrTokenRevoked
	}
	info, err := e.RequestInfo()
	if err != nil {
		return err
	}
	ok, err := e.App.CanAccessRecord(record, info, record.Collection().AuthRule)
	if err != nil {
		return fmt.Errorf("check auth rule: %w", err)
	}
	if ok {
		return nil
	}
	if err := s.endOne(e, l, reasonRule); err != nil {
		return err
	}
	return ErrTokenRevoked
}

// rotate makes the generation after the presented one the current one, in one statement; false means that it is not the
// current one any more. Using a refresh token confirms its generation.
func (s *Sessions) rotate(e *core.RequestEvent, l *login, presented int64) (bool, error) {
	d, now := deviceOf(e), s.now()
	before := l.Generation
	l.seen(d, now, s.cfg.IdleLifetime.of(firstOf(d.Platform, l.Platform)))
	l.Generation, l.Confirmed, l.RotatedAt = presented+1, presented, now.UnixMilli()
	set := l.use()
	set["generation"], set["confirmed"], set["rotated_at"] = l.Generation, l.Confirmed, l.RotatedAt
	result, err := e.App.NonconcurrentDB().Update(loginsTable, set, dbx.NewExp(
		`id = {:id} AND generation = {:before} AND NOT EXISTS (SELECT 1 FROM `+endedTable+` e WHERE e.id = {:id})`,
		dbx.Params{"id": l.ID, "before": before})).Execute()
	if err != nil {
		return false, fmt.Errorf("rotate refresh token: %w", err)
	}
	n, err := result.RowsAffected()
	if err != nil {
		return false, fmt.Errorf("rotate refresh token: %w", err)
	}
	return n == 1, nil
}

// reused ends the session: two parties hold tokens of it, and which of them is the thief cannot be told.
func (s *Sessions) reused(e *core.RequestEvent, l *login, generation int64) error {
	err := e.App.RunInTransaction(func(tx core.App) error {
		ids, err := end(tx, s.now(), reasonReuse, `l.id = {:id}`, dbx.Params{"id": l.ID})
		if err != nil || len(ids) == 0 {
			return err
		}
		return s.record(tx, e, "sessions.refresh_reused", audit.Denied, party(tx, l), l.ID,
			map[string]any{"presented": generation, "current": l.Generation, "confirmed": l.Confirmed})
	})
	if err != nil {
		return err
	}
	return ErrRefreshReused
}
