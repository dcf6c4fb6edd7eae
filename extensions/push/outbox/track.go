package outbox

import (
	"fmt"
	"net/http"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/push/device"
	"github.com/satchelbase/satchel/extensions/push/track"
)

// Routes adds the routes to the group /api/v1/push.
func (o *Outbox) Routes(g *router.RouterGroup[*core.RequestEvent]) {
	g.POST("/opened", o.handleOpened).Bind(apis.BodyLimit(4 << 10))
}

// handleOpened notes that somebody has opened a notification. It can be repeated.
func (o *Outbox) handleOpened(e *core.RequestEvent) error {
	if e.Auth == nil {
		return api.ErrUnauthorized
	}
	var in struct {
		Delivery string `json:"delivery"`
	}
	if err := api.Bind(e, &in); err != nil {
		return err
	}
	if err := o.deps.Vault.Unlock(); err != nil {
		return fmt.Errorf("unlock vault: %w", err)
	}
	message, id, ok := track.Signer{Vault: o.deps.Vault}.Open(in.Delivery, device.AccountOf(e.Auth))
	if !ok {
		return ErrDelivery
	}
	// Nothing is written when it is known or forgotten already.
	_, err := exec(e.App, `UPDATE `+deliveriesTable+` SET opened_at = {:now} WHERE message = {:message} AND device = {:device} AND opened_at = 0`,
		dbx.Params{"now": o.now().UnixMilli(), "message": message, "device": id})
	if err != nil {
		return fmt.Errorf("note that a notification was opened: %w", err)
	}
	return e.NoContent(http.StatusNoContent)
}
