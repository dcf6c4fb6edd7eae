package outbox

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions/push/personal"
	"github.com/satchelbase/satchel/extensions/push/track"
)

// personal is what erases accounts from messages.
func (o *Outbox) personal() personal.Outbox {
	return personal.Outbox{End: o.ends().Erase, Unreceipt: o.unreceipt, Inbox: o.inbox.Forget}
}

// Clear does most of the work of erasing an account from messages before it is deleted; the rest happens with it.
func (o *Outbox) Clear(ctx context.Context, app core.App, account *core.Record) error {
	return o.personal().Clear(ctx, app, account)
}

// unreceipt takes devices out of what the jobs for receipts are given.
func (o *Outbox) unreceipt(tx core.App, devices []string) error {
	return o.deps.Jobs.Rewrite(tx, receiptKind, func(payload []byte) ([]byte, error) {
		var in receipts
		if err := json.Unmarshal(payload, &in); err != nil {
			return nil, fmt.Errorf("read receipts: %w", err)
		}
		n := len(in.Pushes)
		in.Pushes = slices.DeleteFunc(in.Pushes, func(p receipt) bool { return slices.Contains(devices, p.Device) })
		if len(in.Pushes) == n {
			return payload, nil
		}
		return json.Marshal(in)
	})
}

// Routes adds the routes to the group /api/v1/push.
func (o *Outbox) Routes(g *router.RouterGroup[*core.RequestEvent]) {
	g.POST("/opened", track.Signer{Vault: o.deps.Vault}.HandleOpened).Bind(apis.BodyLimit(4 << 10))
	o.inbox.Routes(g)
}
