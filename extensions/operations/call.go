package operations

import (
	"context"
	"encoding/json"
	"encoding/json/jsontext"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/idempotency"
)

// Call is one invocation of an operation. It belongs to one goroutine.
type Call struct {
	// App is the transaction of an operation that writes. A write through another application waits for this one and fails.
	App core.App

	// Event is the request, nil when the app itself calls.
	Event *core.RequestEvent

	// Auth is the account that calls, nil for guests, API keys and the app itself.
	Auth *core.Record

	ctx     context.Context
	subject *core.Record
	details map[string]any
}

// Context ends with the request.
func (c *Call) Context() context.Context { return c.ctx }

// Subject says on which record the operation acts, for the audit entry.
func (c *Call) Subject(record *core.Record) { c.subject = record }

// Detail adds to the audit entry, such as a field before and after. It must be small and never a secret.
func (c *Call) Detail(key string, value any) {
	if c.details == nil {
		c.details = map[string]any{}
	}
	c.details[key] = value
}

// AfterCommit runs f once the outermost transaction is committed, and never when it is rolled back.
func (c *Call) AfterCommit(f func()) { idempotency.AfterCommit(c.App, f) }

// invocation is a call that has passed what is judged before the transaction.
type invocation struct {
	operation *Operation
	input     jsontext.Value
	call      *Call
	trusted   bool // the caller need not pass the rule: an admin, a key, or the app itself
	begun     bool
	failed    error // of steps
}

// body is the input as rules see it in @request.body.
func (i *invocation) body() map[string]any {
	var body map[string]any
	_ = json.Unmarshal(i.input, &body) // it was validated
	return body
}

// note takes the members of the input that the audit wants.
func (i *invocation) note() {
	if len(i.operation.audit) == 0 {
		return
	}
	body := i.body()
	for _, name := range i.operation.audit {
		if value, given := body[name]; given {
			i.call.Detail(name, value)
		}
	}
}
