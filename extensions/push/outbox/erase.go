package outbox

import (
	"context"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/push/personal"
	"github.com/satchelbase/satchel/extensions/push/track"
)

// personal is what erases accounts from messages.
func (o *Outbox) personal() personal.Outbox {
	return personal.Outbox{End: o.ends().Erase, Inbox: o.inbox.Forget, Later: func(tx core.App, collection string) error {
		_, err := o.deps.Jobs.Enqueue(tx, eraseKind, erasure{collection}, jobs.Options{})
		return err
	}}
}

// erasure is what the job is given that erases the accounts of a deleted collection.
type erasure struct {
	Collection string `json:"collection"`
}

func (o *Outbox) eraseAll(ctx context.Context, _ *jobs.Job, in erasure) error {
	return o.personal().Rest(ctx, o.app, in.Collection)
}

// Clear does most of the work of erasing an account from messages before it is deleted; the rest happens with it.
func (o *Outbox) Clear(ctx context.Context, app core.App, account *core.Record) error {
	return o.personal().Clear(ctx, app, account)
}

// Routes adds the routes to the group /api/v1/push.
func (o *Outbox) Routes(g *router.RouterGroup[*core.RequestEvent]) {
	g.POST("/opened", track.Signer{Vault: o.deps.Vault}.HandleOpened).Bind(apis.BodyLimit(4 << 10))
	o.inbox.Routes(g)
}
