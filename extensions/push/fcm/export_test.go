package fcm

import "github.com/satchelbase/satchel/extensions/push/sender"

// NewRaw makes a sender without Google's SDK, whatever the build.
func NewRaw(c Credentials, o Options) (*Sender, error) { return build(c, o, newRawWire) }

// Result reads an answer.
func Result(status int, body string) sender.Result {
	return result(&sender.Answer{Status: status, Body: []byte(body)})
}
