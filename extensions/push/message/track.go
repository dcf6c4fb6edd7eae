package message

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"net/http"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/push/device"
)

const (
	// macSize is the length of a signature in bytes: guessing one of 2^128 is not a way.
	macSize = 16

	// maxDelivery bounds the text of a delivery.
	maxDelivery = 200
)

// Routes adds the routes to the group /api/v1/push.
func (o *Outbox) Routes(g *router.RouterGroup[*core.RequestEvent]) {
	g.POST("/opened", o.handleOpened).Bind(apis.BodyLimit(4 << 10))
}

// sign names the delivery of a message to a device, for the account that it is for. It tells apps nothing else.
func (o *Outbox) sign(message int64, id string, to device.Account) string {
	head := append(binary.BigEndian.AppendUint64(nil, uint64(message)), id...)
	return base64.RawURLEncoding.EncodeToString(append(o.mac(head, to), head...))
}

func (o *Outbox) mac(head []byte, to device.Account) []byte {
	h := hmac.New(sha256.New, o.deps.Vault.Key("push.deliveries"))
	h.Write(head)
	h.Write([]byte("\x00" + to.Collection + "\x00" + to.ID))
	return h.Sum(nil)[:macSize]
}

// opened is the delivery that a text names, if it is one to the account.
func (o *Outbox) opened(text string, by device.Account) (message int64, id string, ok bool) {
	raw, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil || len(raw) <= macSize+8 {
		return 0, "", false
	}
	head := raw[macSize:]
	if !hmac.Equal(raw[:macSize], o.mac(head, by)) {
		return 0, "", false
	}
	return int64(binary.BigEndian.Uint64(head)), string(head[8:]), true //nolint:gosec // it was written by sign
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
	if len(in.Delivery) > maxDelivery {
		return ErrDelivery
	}
	if err := o.deps.Vault.Unlock(); err != nil {
		return fmt.Errorf("unlock vault: %w", err)
	}
	message, id, ok := o.opened(in.Delivery, device.AccountOf(e.Auth))
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
