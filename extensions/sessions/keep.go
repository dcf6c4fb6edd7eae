package sessions

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/sessions/login"
)

// keptKey is the session that a change of credentials leaves alone.
type keptKey struct{}

// KeepCurrent is the context of the request in which a change of credentials ends all sessions of the user but the one
// of the request: it is the user himself who has just chosen them. Save the record with it.
func (s *Sessions) KeepCurrent(e *core.RequestEvent) context.Context {
	ctx := e.Request.Context()
	if c := Current(e); c != nil && c.SessionID != "" && c.Actor == nil {
		ctx = context.WithValue(ctx, keptKey{}, c.SessionID)
	}
	return ctx
}

// endForCredentials ends the sessions of a user whose credentials have changed.
func (s *Sessions) endForCredentials(e *core.RecordEvent) error {
	kept, _ := e.Context.Value(keptKey{}).(string)
	return s.endAllBut(e.App, nil, e.Record, reasonCredentials, kept)
}

// Reissue answers the tokens (a [Grant]) of the session of the request once more, after its user has shown or chosen a
// credential by the method. The refresh token that the app holds stays good, so a lost answer does no harm. It is nil
// when no session is behind the request that lives still.
func (s *Sessions) Reissue(e *core.RequestEvent, method string) (json.RawMessage, error) {
	c := Current(e)
	if c == nil || c.SessionID == "" || c.Actor != nil {
		return nil, nil
	}
	l, err := login.Find(e.App.ConcurrentDB(), c.SessionID)
	if err != nil {
		return nil, err
	}
	if !l.Alive(s.now()) {
		return nil, nil
	}
	l.AuthAt = s.now().UnixMilli()
	if methods := l.AMR(); !slices.Contains(methods, method) {
		l.Methods = strings.Join(append(methods, method), " ")
	}
	if _, err := e.App.NonconcurrentDB().Update(login.Table, dbx.Params{"auth_at": l.AuthAt, "methods": l.Methods}, dbx.HashExp{"id": l.ID}).Execute(); err != nil {
		return nil, fmt.Errorf("note credential of session: %w", err)
	}
	grant, err := s.grant(l)
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(grant) //nolint:gosec // tokens are what the caller asks for
	if err != nil {
		return nil, fmt.Errorf("marshal tokens: %w", err)
	}
	return raw, nil
}

// LastUse is when a session of the user signed in or refreshed for the last time, the zero time if none is left. An
// impersonation is no use of the account.
func (s *Sessions) LastUse(app core.App, collection, record string) (time.Time, error) {
	return login.LastUse(app, collection, record)
}
