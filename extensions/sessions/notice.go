package sessions

import (
	"fmt"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/mails"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/routine"

	"github.com/satchelbase/satchel/extensions/sessions/login"
)

// A user is told of a sign-in from a new device, by PocketBase's own mail and where the collection says so. PocketBase
// takes every new address for a new device, which a phone has many of; here a device is what the app says it is, or else
// the program it runs.

// bindNotice keeps PocketBase's own judgement back for sign-ins that have a session.
func (s *Sessions) bindNotice(app core.App) {
	app.OnMailerRecordAuthAlertSend().Bind(&hook.Handler[*core.MailerRecordEvent]{Id: "satchelSessions", Priority: -999, Func: func(e *core.MailerRecordEvent) error {
		if _, underWay := s.signIns.Load(e.Record); underWay {
			return nil
		}
		return e.Next()
	}})
}

// notify sends the mail when the user has had other sessions, none of them on this device. The sign-in does not wait for
// the mail, and does not fail with it.
func (s *Sessions) notify(e *core.RecordAuthRequestEvent, l *login.Login) {
	if !e.Collection.AuthAlert.Enabled || e.Record.Email() == "" {
		return
	}
	isNew, err := login.NewDevice(e.App, l)
	if err != nil {
		s.logger.Warn("a new device could not be told from a known one", "error", err)
		return
	}
	if !isNew {
		return
	}
	app, record := e.App, e.Record.Fresh() // not the one whose mails are held back
	info := fmt.Sprintf("%s - %s %s %s", time.UnixMilli(l.CreatedAt).UTC().Format(time.DateTime+" UTC"), l.Address, l.DeviceName, l.UserAgent)
	routine.FireAndForget(func() {
		if err := mails.SendRecordAuthAlert(app, record, info); err != nil {
			s.logger.Warn("the notice about a new device was not sent", "error", err)
		}
	})
}

// KnownDevice reports whether the device has signed in to the account before and is signed in still, or was in the last
// weeks. The id is what the client says.
func (s *Sessions) KnownDevice(app core.App, record *core.Record, deviceID string) (bool, error) {
	return login.Known(app, record, deviceID)
}
