package sessions

import (
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/sessions/login"
)

// ActLife is how long an admin acts for a user at most.
const ActLife = 15 * time.Minute

const methodImpersonation = "impersonation"

// Acting is why and how an admin acts for a user.
type Acting struct {
	Life     time.Duration
	Reason   string
	ReadOnly bool
}

// Act begins a session of a user for the admin who asks. It cannot be refreshed, and the audit keeps the reason.
func (s *Sessions) Act(e *core.RequestEvent, record *core.Record, a Acting) (Grant, error) {
	l, err := s.act(e, record, a)
	if err != nil {
		return Grant{}, err
	}
	return s.grant(l)
}

func (s *Sessions) act(e *core.RequestEvent, record *core.Record, a Acting) (*login.Login, error) {
	l := s.begin(record, login.DeviceOf(e), methodImpersonation)
	l.Actor, l.ActorCollection, l.Reason, l.ReadOnly = e.Auth.Id, e.Auth.Collection().Id, a.Reason, a.ReadOnly
	l.ExpiresAt = s.now().Add(a.Life).UnixMilli()
	l.DeviceID = "" // it is the admin's
	err := e.App.RunInTransaction(func(tx core.App) error {
		if err := l.Insert(tx); err != nil {
			return err
		}
		return s.record(tx, e, "sessions.impersonated", audit.Success, audit.PartyOf(record), l.ID, map[string]any{"reason": a.Reason, "readOnly": a.ReadOnly})
	})
	return l, err
}

// onStockImpersonation puts PocketBase's own impersonation, which the dashboard offers, under the same limits.
func (s *Sessions) onStockImpersonation(e *core.RecordAuthRequestEvent) error {
	life := ActLife
	if exp := expiryOf(e.Token); !exp.IsZero() {
		life = min(life, exp.Sub(s.now()))
	}
	l, err := s.act(e.RequestEvent, e.Record, Acting{Life: life, Reason: "by the dashboard or PocketBase's API"})
	if err != nil {
		return err
	}
	if e.Token, err = s.seals.Bind(e.Record, e.Token, l.ID); err != nil {
		return err
	}
	return e.Next()
}
