package operations

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
)

// watch writes the entry of a call that failed or was refused, once everything that it did is rolled back. Guests are not
// recorded, since they are nobody, nor is a request that was wrong in itself or came too often: they would let a client
// fill the table.
func (o *Operations) watch(e *core.RequestEvent) error {
	op := o.find(e.Request)
	err := e.Next()
	if op == nil {
		return err
	}
	i, prepared := e.Get(invocationKey).(*invocation)
	if !prepared {
		i = &invocation{operation: op, call: &Call{Event: e, Auth: e.Auth, ctx: e.Request.Context()}}
	}
	failed := err
	if failed == nil { // a failure can be an answer that is kept for the key
		failed = i.failed
	}
	if failed == nil {
		return nil
	}
	if outcome := o.outcome(e, i, failed); outcome != "" {
		if auditErr := o.record(e.App, i, outcome, failed); auditErr != nil {
			return auditErr
		}
	}
	return err
}

func (o *Operations) outcome(e *core.RequestEvent, i *invocation, err error) string {
	key, _ := o.deps.Key(e)
	status := api.StatusOf(e.Request.Context(), err)
	switch {
	case e.Auth == nil && key == "", status == http.StatusUnauthorized, status == http.StatusTooManyRequests, errors.Is(err, api.ErrValidation):
		return ""
	case status == http.StatusForbidden:
		return audit.Denied
	case i.begun:
		return audit.Failure
	}
	return ""
}

// record writes the entry of the call, in the transaction of app.
func (o *Operations) record(app core.App, i *invocation, outcome string, cause error) error {
	c := i.call
	i.note()
	if cause != nil {
		c.Detail("error", api.CodeOf(cause))
	}
	var entry audit.Entry
	switch {
	case c.Event != nil:
		entry = audit.From(c.Event)
	case c.Auth != nil: // a hook calls in the name of an account
		entry.ActAs = audit.PartyOf(c.Auth)
	}
	entry.Action, entry.Outcome, entry.Details = i.operation.Name, outcome, c.details
	if c.subject != nil {
		entry.Subject = audit.PartyOf(c.subject)
	}
	if err := o.deps.Audit(app, entry); err != nil {
		return fmt.Errorf("record call of %s: %w", i.operation.Name, err)
	}
	return nil
}
