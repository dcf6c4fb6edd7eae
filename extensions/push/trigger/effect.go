package trigger

import (
	"errors"

	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/push/message"
	"github.com/satchelbase/satchel/extensions/push/outbox"
)

// ErrNothing is what a trigger returns for a change after which there is nothing to do.
var ErrNothing = errors.New("there is nothing to do after this change")

// Enqueue asks for a job of the kind, which is given what input returns. The change is the job's key.
func Enqueue[In any](queue *jobs.Jobs, kind string, input func(c *Change) (In, error)) func(c *Change) error {
	return func(c *Change) error {
		in, err := input(c)
		if err != nil {
			return err
		}
		_, err = queue.Enqueue(c.App, kind, in, jobs.Options{Key: c.Key})
		return err
	}
}

// Call calls an operation in the name of the app itself, with what input returns. What it does is in the transaction that
// remembers that it is done, so it needs no key. Operations with Steps cannot be called.
func Call[In any](ops *operations.Operations, name string, input func(c *Change) (In, error)) func(c *Change) error {
	return func(c *Change) error {
		in, err := input(c)
		if err != nil {
			return err
		}
		_, err = ops.Call(c.Ctx, c.App, name, in, nil)
		return err
	}
}

// Send sends the push message that say returns. Its key is the change, if it has no other.
func Send(out *outbox.Outbox, say func(c *Change) (message.Message, error)) func(c *Change) error {
	return func(c *Change) error {
		m, err := say(c)
		if err != nil {
			return err
		}
		if m.Key == "" {
			m.Key = c.Key
		}
		_, err = out.Send(c.App, m)
		return err
	}
}
