package sessions

import (
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/mails"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/routine"
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
func (s *Sessions) notify(e *core.RecordAuthRequestEvent, l *login) {
	if !e.Collection.AuthAlert.Enabled || e.Record.Email() == "" {
		return
	}
	isNew, err := s.newDevice(e.App, l)
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

func (s *Sessions) newDevice(app core.App, l *login) (bool, error) {
	same, value := `user_agent`, l.UserAgent
	if l.DeviceID != "" {
		same, value = `device_id`, l.DeviceID
	}
	var seen struct {
		Others int `db:"others"`
		Known  int `db:"known"`
	}
	err := app.ConcurrentDB().NewQuery(`SELECT count(*) AS others, COALESCE(sum(` + same + ` = {:value}), 0) AS known FROM ` + loginsTable + `
		WHERE collection = {:collection} AND record = {:record} AND id <> {:id} AND actor = ''`).
		Bind(dbx.Params{"value": value, "collection": l.Collection, "record": l.Record, "id": l.ID}).One(&seen)
	return seen.Others > 0 && seen.Known == 0, err
}

// KnownDevice reports whether the device has signed in to the account before and is signed in still, or was in the last
// weeks. The id is what the client says.
func (s *Sessions) KnownDevice(app core.App, record *core.Record, deviceID string) (bool, error) {
	if !deviceIDPattern.MatchString(deviceID) {
		return false, nil
	}
	var n int
	err := app.ConcurrentDB().NewQuery(`SELECT count(*) FROM ` + loginsTable + `
		WHERE collection = {:collection} AND record = {:record} AND device_id = {:device} AND actor = ''`).
		Bind(dbx.Params{"collection": record.Collection().Id, "record": record.Id, "device": deviceID}).Row(&n)
	return n > 0, err
}
