package operations

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/router"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/idempotency"
	"github.com/satchelbase/satchel/extensions/internal/gcra"
)

const (
	prefix = api.Prefix + "/operations/"

	// priority is outside of the idempotency key's transaction, whose rollback must not take the entry of a failure along.
	priority = -985

	// invocationKey is where a request keeps its call.
	invocationKey = "satchelOperation"

	// limitedCallers bounds the memory of the limits: 17 bytes for each pair of caller and operation.
	limitedCallers = 1 << 14
)

// Deps is what operations need of other features.
type Deps struct {
	// Role reports with an error that the request does not come from an admin with at least the role; by default superusers
	// alone have every role.
	Role func(e *core.RequestEvent, role string) error

	// Staff are the auth collections of admins, besides that of the superusers.
	Staff []string

	// Key returns the id of the API key that the request has presented and what it may; the id is empty without one, and
	// by default.
	Key func(e *core.RequestEvent) (id string, may func(scope string) bool)

	// Recent refuses a user who has not shown a credential lately, Attested an app that is not attested.
	Recent, Attested func(e *core.RequestEvent) error

	// Audit writes an entry into the transaction.
	Audit func(tx core.App, e audit.Entry) error
}

// Operations is the set that a program has. It is safe for concurrent use.
type Operations struct {
	deps   Deps
	byName map[string]*Operation
	limits *gcra.Table
	err    error
}

// New returns an empty set.
func New() *Operations {
	return &Operations{byName: map[string]*Operation{}, limits: gcra.NewTable(limitedCallers)}
}

// Add declares operations. It must not be called once the extension is installed.
func (o *Operations) Add(lists ...[]Operation) {
	for _, op := range slices.Concat(lists...) {
		switch {
		case op.err != nil:
			o.err = errors.Join(o.err, op.err)
		case o.byName[op.Name] != nil:
			o.err = errors.Join(o.err, fmt.Errorf("operation %s is declared twice", op.Name))
		}
		o.byName[op.Name] = &op
	}
}

// Extension returns the extension.
func (o *Operations) Extension(deps Deps) extensions.Extension {
	o.deps = deps
	if deps.Role == nil {
		o.deps.Role = api.SuperusersOnly
	}
	if deps.Key == nil {
		o.deps.Key = func(*core.RequestEvent) (string, func(string) bool) { return "", nil }
	}
	o.deps.Staff = append(slices.Clone(deps.Staff), core.CollectionNameSuperusers)
	return extensions.Extension{
		Name:        "operations",
		Codes:       []*extensions.Code{ErrCallerRefused, ErrLimitExceeded, ErrUnknown},
		Bind:        func(*extensions.Host) error { return o.err },
		Middlewares: []*hook.Handler[*core.RequestEvent]{{Id: "satchelOperations", Priority: priority, Func: o.watch}},
		Routes:      o.routes,
		Checks:      []extensions.Check{{Name: "operations", Run: o.check}},
		Commands:    func(*extensions.Host) []*cobra.Command { return []*cobra.Command{o.command()} },
	}
}

// Descriptions describes all operations, in the order of their names.
func (o *Operations) Descriptions() []Description {
	out := make([]Description, 0, len(o.byName))
	for _, name := range slices.Sorted(maps.Keys(o.byName)) {
		out = append(out, o.byName[name].Description)
	}
	return out
}

// Cost is what the request takes from its caller's rate limit when it calls an operation that says so, else 0.
func (o *Operations) Cost(r *http.Request) int {
	if op := o.find(r); op != nil {
		return op.Cost
	}
	return 0
}

func (o *Operations) find(r *http.Request) *Operation {
	name, ok := strings.CutPrefix(r.URL.Path, prefix)
	if !ok {
		return nil
	}
	if op := o.byName[name]; op != nil && op.Method == r.Method {
		return op
	}
	return nil
}

func (o *Operations) routes(g *router.RouterGroup[*core.RequestEvent]) {
	for name, op := range o.byName {
		g.Route(op.Method, "/"+name, func(e *core.RequestEvent) error { return o.serve(e, op) })
	}
	g.GET("", func(e *core.RequestEvent) error {
		if err := o.deps.Role(e, "viewer"); err != nil {
			return err
		}
		return api.Write(e, http.StatusOK, o.Descriptions())
	})
}

func (o *Operations) serve(e *core.RequestEvent, op *Operation) error {
	i, err := o.invocation(e, op)
	if err != nil {
		return err
	}
	if op.steps != nil {
		return o.take(e, i)
	}
	out, err := o.run(e.App, i)
	if err != nil {
		return err
	}
	return api.Write(e, http.StatusOK, out)
}

// Policy is what the route of an operation wants of idempotency keys.
func (o *Operations) Policy(method, pattern string) idempotency.Policy {
	name, ok := strings.CutPrefix(pattern, prefix)
	if !ok {
		return idempotency.Policy{}
	}
	op := o.byName[name]
	if op == nil || op.Method != method {
		return idempotency.Policy{}
	}
	return idempotency.Policy{Required: op.KeyRequired, Guests: op.Guests, Phased: op.steps != nil}
}

// Prepare judges a request for an operation by all that needs no transaction: the caller, the input, the limits. It
// judges once for each request; other requests pass.
func (o *Operations) Prepare(e *core.RequestEvent) error {
	op := o.find(e.Request)
	if op == nil {
		return nil
	}
	_, err := o.invocation(e, op)
	return err
}

// invocation is what the request wants, once it was judged. The next attempt at steps that have begun was judged before.
func (o *Operations) invocation(e *core.RequestEvent, op *Operation) (*invocation, error) {
	if i, ok := e.Get(invocationKey).(*invocation); ok {
		return i, nil
	}
	caller, trusted, err := o.authorize(e, op)
	if err != nil {
		return nil, err
	}
	i := &invocation{operation: op, trusted: trusted, call: &Call{Event: e, Auth: e.Auth, ctx: e.Request.Context()}}
	if op.Method == http.MethodGet {
		i.input, err = op.input.fromQuery(e.Request.URL.Query())
	} else {
		var body []byte
		if body, err = api.ReadBody(e); err == nil {
			i.input, err = op.input.parse(body)
		}
	}
	if err != nil {
		return nil, err
	}
	if steps, err := idempotency.StepsOf(e); err == nil && steps.Resumed() {
		i.trusted = true
	} else if err := o.admit(e, i, caller); err != nil {
		return nil, err
	}
	e.Set(invocationKey, i)
	return i, nil
}

// admit applies what the operation asks of a caller who may call it.
func (o *Operations) admit(e *core.RequestEvent, i *invocation, caller string) error {
	if err := o.limit(i.operation, caller); err != nil {
		return err
	}
	if i.operation.Attested && !i.trusted {
		if err := o.deps.Attested(e); err != nil {
			return err
		}
	}
	if i.operation.Recent && e.Auth != nil {
		return o.deps.Recent(e)
	}
	return nil
}

// authorize tells who calls and whether that alone is enough. It asks no database.
func (o *Operations) authorize(e *core.RequestEvent, op *Operation) (caller string, trusted bool, err error) {
	if e.Auth == nil {
		id, may := o.deps.Key(e)
		switch {
		case id != "" && op.Scope != "" && may(op.Scope):
			return "key\x00" + id, true, nil
		case id != "":
			return "", false, ErrCallerRefused
		case op.Guests:
			return "guest\x00" + api.Network(e.RealIP()), false, nil
		}
		return "", false, api.ErrUnauthorized
	}
	caller = e.Auth.Collection().Id + "\x00" + e.Auth.Id
	collection := e.Auth.Collection().Name
	switch {
	case slices.Contains(o.deps.Staff, collection):
		if op.Role == "" {
			return "", false, ErrCallerRefused
		}
		return caller, true, o.deps.Role(e, op.Role)
	case op.callers.Collections != nil && !slices.Contains(op.callers.Collections, collection):
		return "", false, ErrCallerRefused
	}
	return caller, false, nil
}

// limit applies the operation's own bound.
func (o *Operations) limit(op *Operation, caller string) error {
	if op.limit.Count == 0 {
		return nil
	}
	policy := gcra.Policy{Name: op.Name, Limit: op.limit.Count, Window: op.limit.Per, Burst: op.limit.Count}
	if d := o.limits.Take([]byte(caller), policy, 1); !d.Allowed {
		p := api.Fail(ErrLimitExceeded, "at most "+policy.String())
		p.RetryAfter = d.RetryAfter
		return p
	}
	return nil
}

// take runs an operation that takes steps. What it answers and the entry of the audit are its last step.
func (o *Operations) take(e *core.RequestEvent, i *invocation) error {
	steps, err := idempotency.StepsOf(e)
	if err != nil {
		return err
	}
	i.call.App, i.begun = e.App, true
	if err := o.judge(e.App, i); err != nil {
		return err
	}
	out, err := i.operation.steps(i.call, steps, i.input)
	if err != nil {
		i.failed = err
		return err
	}
	return steps.Finish(func(tx core.App) error {
		if err := o.record(tx, i, audit.Success, nil); err != nil {
			return err
		}
		return api.Write(e, http.StatusOK, out)
	})
}

// run calls the operation, an operation that writes in a transaction.
func (o *Operations) run(app core.App, i *invocation) (out any, err error) {
	if i.operation.Method == http.MethodGet {
		return o.do(app, i)
	}
	err = app.RunInTransaction(func(tx core.App) error {
		if e := i.call.Event; e != nil {
			defer func(outer core.App) { e.App = outer }(e.App)
			e.App = tx
		}
		out, err = o.do(tx, i)
		return err
	})
	return out, err
}

func (o *Operations) do(app core.App, i *invocation) (any, error) {
	i.call.App, i.begun = app, true
	if err := o.judge(app, i); err != nil {
		return nil, err
	}
	out, err := i.operation.do(i.call, i.input)
	if invalid, ok := errors.AsType[validation.Errors](err); ok {
		err = router.NewBadRequestError("", invalid) // a record that may not be saved
	}
	if err != nil || i.operation.Method == http.MethodGet && len(i.operation.audit) == 0 {
		return out, err
	}
	return out, o.record(app, i, audit.Success, nil)
}

// judge applies the rule of the operation to the caller.
func (o *Operations) judge(app core.App, i *invocation) error {
	rule := i.operation.callers.Rule
	if rule == "" || i.trusted {
		return nil
	}
	info := &core.RequestInfo{Context: core.RequestInfoContextDefault, Method: i.operation.Method, Auth: i.call.Auth, Body: i.body()}
	if e := i.call.Event; e != nil {
		var err error
		if info, err = e.RequestInfo(); err != nil {
			return api.Malformed(err)
		}
	}
	ok, err := app.CanAccessRecord(i.call.Auth, info, &rule)
	switch {
	case err != nil:
		return fmt.Errorf("judge rule of operation %s: %w", i.operation.Name, err)
	case !ok:
		return ErrCallerRefused
	}
	return nil
}

// check finds rules that name what is not there.
func (o *Operations) check(_ context.Context, h *extensions.Host) extensions.Result {
	for _, op := range o.byName {
		if op.callers.Rule == "" {
			continue
		}
		if err := checkRule(h.App, op); err != nil {
			return extensions.Result{Level: extensions.Fail, Message: err.Error(), Next: "mend the rule of the operation, or what it names"}
		}
	}
	return extensions.Result{Level: extensions.OK, Message: fmt.Sprintf("%d operations", len(o.byName))}
}
