package outbox

import (
	"context"

	"github.com/satchelbase/satchel/extensions/internal/serial"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/push/device"
	"github.com/satchelbase/satchel/extensions/push/sender"
)

// announce writes entries of the inbox for which the app's hooks are called, before the transaction of the page.
func (f *fan) announce(ctx context.Context, list []device.Device, first bool) error {
	if !f.m.Inbox || !f.cfg.Inbox.Hooks {
		return nil
	}
	refused, err := f.inbox.Announce(ctx, f.app, serial.Format(f.id), f.m, f.receivers(list, first))
	if refused > 0 {
		f.log.Info("entries of the inbox were refused", "message", serial.Format(f.id), "number", refused)
	}
	return err
}

func (o *Outbox) sweepInbox(ctx context.Context, _ *jobs.Job, _ struct{}) error {
	return o.inbox.Sweep(ctx, o.app, o.now())
}

// badges gives notifications the number of unread entries of each account, if the message wants that.
func (s *shipment) badges(devices []device.Device) (func(n *sender.Notification, d device.Device) *sender.Notification, error) {
	if !s.m.Unread {
		return func(n *sender.Notification, _ device.Device) *sender.Notification { return n }, nil
	}
	accounts := make([]device.Account, len(devices))
	for i, d := range devices {
		accounts[i] = d.User
	}
	unread, err := s.inbox.Unread(s.app, accounts)
	if err != nil {
		return nil, err
	}
	return func(n *sender.Notification, d device.Device) *sender.Notification {
		own := *n
		own.Badge = new(min(unread[d.User], sender.MaxBadge))
		return &own
	}, nil
}
