package operations

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/dop251/goja"
	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/search"

	"github.com/satchelbase/satchel/extensions/api"
)

// Call calls an operation from a hook, a job or a command, in the transaction of app when that is one. With an account
// the operation's rule must let it call; without one the app itself calls, which may everything. Limits, recency and
// attestation are those of requests and are not asked for.
func (o *Operations) Call(ctx context.Context, app core.App, name string, input any, account *core.Record) (any, error) {
	op := o.byName[name]
	if op == nil {
		return nil, api.Fail(ErrUnknown, name)
	}
	if op.steps != nil {
		return nil, api.Fail(api.ErrBadRequest, name+" calls other services, which needs a request with an idempotency key")
	}
	if account != nil && op.callers.Collections != nil && !slices.Contains(op.callers.Collections, account.Collection().Name) {
		return nil, ErrCallerRefused
	}
	body, err := json.Marshal(input)
	if err != nil {
		return nil, fmt.Errorf("marshal input of %s: %w", name, err)
	}
	parsed, err := op.input.parse(body)
	if err != nil {
		return nil, err
	}
	return o.run(app, &invocation{operation: op, input: parsed, trusted: account == nil, call: &Call{Auth: account, ctx: ctx}})
}

// Script gives a JavaScript runtime $operations.call(app, name, input, account), which returns what the operation
// answers and throws its error. Within a hook app is e.app.
func (o *Operations) Script(vm *goja.Runtime) error {
	object := vm.NewObject()
	err := object.Set("call", func(app core.App, name string, input any, account *core.Record) (any, error) {
		out, err := o.Call(context.Background(), app, name, input, account)
		if err != nil {
			return nil, err
		}
		text, err := json.Marshal(out)
		if err != nil {
			return nil, fmt.Errorf("marshal answer of %s: %w", name, err)
		}
		var plain any
		return plain, json.Unmarshal(text, &plain)
	})
	if err != nil {
		return fmt.Errorf("set $operations.call: %w", err)
	}
	return vm.Set("$operations", object)
}

// checkRule builds the rule of the operation for each collection whose accounts may call.
func checkRule(app core.App, op *Operation) error {
	collections, err := app.FindAllCollections(core.CollectionTypeAuth)
	if err != nil {
		return fmt.Errorf("find auth collections: %w", err)
	}
	for _, c := range collections {
		if c.System || op.callers.Collections != nil && !slices.Contains(op.callers.Collections, c.Name) {
			continue
		}
		resolver := core.NewRecordFieldResolver(app, c, &core.RequestInfo{Auth: core.NewRecord(c)}, true)
		var expression dbx.Expression
		if expression, err = search.FilterData(op.callers.Rule).BuildExpr(resolver); err != nil || expression == nil {
			return fmt.Errorf("the rule of %s does not fit %s: %w", op.Name, c.Name, err)
		}
	}
	return nil
}
