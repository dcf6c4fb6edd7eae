package track

import (
	"fmt"
	"net/http"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/push/device"
	"github.com/satchelbase/satchel/extensions/push/ledger"
)

// ErrDelivery is the code of a name that is not good.
var ErrDelivery = &extensions.Code{Name: "push.delivery_invalid", Status: http.StatusBadRequest, Title: "The delivery is not one of yours"}

// HandleOpened notes that somebody has opened a notification. It can be repeated.
func (s Signer) HandleOpened(e *core.RequestEvent) error {
	if e.Auth == nil {
		return api.ErrUnauthorized
	}
	var in struct {
		Delivery string `json:"delivery"`
	}
	if err := api.Bind(e, &in); err != nil {
		return err
	}
	if err := s.Vault.Unlock(); err != nil {
		return fmt.Errorf("unlock vault: %w", err)
	}
	message, id, ok := s.Open(in.Delivery, device.AccountOf(e.Auth))
	if !ok {
		return ErrDelivery
	}
	// Nothing is written when it is known or forgotten already.
	_, err := e.App.NonconcurrentDB().NewQuery(`UPDATE ` + ledger.Deliveries + ` SET opened_at = {:now} WHERE message = {:message} AND device = {:device} AND opened_at = 0`).
		Bind(dbx.Params{"now": time.Now().UnixMilli(), "message": message, "device": id}).Execute()
	if err != nil {
		return fmt.Errorf("note that a notification was opened: %w", err)
	}
	return e.NoContent(http.StatusNoContent)
}
