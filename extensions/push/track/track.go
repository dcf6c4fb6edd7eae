// Package track names deliveries in a way that only their receivers can use: the app sends the name back when somebody has
// opened the notification.
package track

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"

	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/push/device"
)

const (
	// macSize is the length of a signature in bytes: guessing one of 2^128 is not a way.
	macSize = 16

	// maxName bounds the text of a name.
	maxName = 200
)

// Signer signs names. Its vault must be unlocked.
type Signer struct{ Vault *secret.Vault }

// Sign names the delivery of a message to a device, for the account that it is for. It tells apps nothing else.
func (s Signer) Sign(message int64, id string, to device.Account) string {
	head := append(binary.BigEndian.AppendUint64(nil, uint64(message)), id...)
	return base64.RawURLEncoding.EncodeToString(append(s.mac(head, to), head...))
}

func (s Signer) mac(head []byte, to device.Account) []byte {
	h := hmac.New(sha256.New, s.Vault.Key("push.deliveries"))
	h.Write(head)
	h.Write([]byte("\x00" + to.Collection + "\x00" + to.ID))
	return h.Sum(nil)[:macSize]
}

// Open is the delivery that a name stands for, if it is one to the account.
func (s Signer) Open(name string, by device.Account) (message int64, id string, ok bool) {
	raw, err := base64.RawURLEncoding.DecodeString(name)
	if err != nil || len(name) > maxName || len(raw) <= macSize+8 {
		return 0, "", false
	}
	head := raw[macSize:]
	if !hmac.Equal(raw[:macSize], s.mac(head, by)) {
		return 0, "", false
	}
	return int64(binary.BigEndian.Uint64(head)), string(head[8:]), true
}
