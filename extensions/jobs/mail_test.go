package jobs

import (
	"errors"
	"net/mail"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/mails"
	"github.com/pocketbase/pocketbase/tools/mailer"
)

func (f *fixture) mails(t testing.TB) (list []row) {
	t.Helper()
	if err := f.ConcurrentDB().NewQuery("SELECT * FROM " + queueTable + " WHERE kind = '" + mailName + "' ORDER BY id").All(&list); err != nil {
		t.Fatal(err)
	}
	return list
}

// Mails wait in the queue, in the transaction of who sends them, sealed, and no longer than their code is good.
func TestMail(t *testing.T) {
	f := start(t)
	ada, _ := f.User(t, "ada@example.test")
	if err := f.jobs.Pause(f.App.App, mailQueue); err != nil {
		t.Fatal(err)
	}
	var seen string
	f.OnMailerSend().BindFunc(func(e *core.MailerEvent) error {
		e.Message.Subject = "changed by a hook"
		seen += e.Message.HTML + e.Message.Text
		return e.Next()
	})
	if err := mails.SendRecordPasswordReset(f.App.App, ada); err != nil {
		t.Fatal(err)
	}
	no := errors.New("no")
	until := time.Now().Add(time.Hour)
	for _, failure := range []error{no, nil} {
		err := f.RunInTransaction(func(tx core.App) error {
			m := &mailer.Message{To: []mail.Address{{Address: "bob@example.test"}}, Text: "a secret link", Attachments: nil}
			return errors.Join(f.jobs.Mail(tx, m, until), failure)
		})
		if !errors.Is(err, failure) {
			t.Fatal(err)
		}
	}
	list := f.mails(t)
	if len(list) != 2 {
		t.Fatalf("%d mails wait", len(list))
	}
	life := time.Duration(ada.Collection().PasswordResetToken.Duration) * time.Second * 3 / 4
	if got := time.UnixMilli(list[0].ExpiresAt).Sub(time.UnixMilli(list[0].CreatedAt)); got < life-time.Second || got > life+time.Second {
		t.Errorf("the code may be sent for %s, want %s", got, life)
	}
	if list[1].ExpiresAt != until.UnixMilli() {
		t.Errorf("until %d, want %d", list[1].ExpiresAt, until.UnixMilli())
	}
	for _, r := range list {
		for _, clear := range []string{"example.test", "secret", "token", "{"} {
			if strings.Contains(r.Payload, clear) {
				t.Errorf("%q can be read in %s", clear, r.Payload)
			}
		}
		v, err := f.jobs.show(f.App.App, formatID(r.ID))
		if err != nil || string(v.Payload) != "null" {
			t.Errorf("an operator sees %s, %v", v.Payload, err)
		}
	}
	if !strings.Contains(seen, "confirm-password-reset") {
		t.Errorf("the hook saw %s", seen)
	}
}

// What a hook stops is not sent, and an answer about a test of the mail server is that of the mail server.
func TestMailStopped(t *testing.T) {
	f := start(t)
	f.OnMailerSend().BindFunc(func(*core.MailerEvent) error { return nil })
	if err := f.NewMailClient().Send(&mailer.Message{}); err != nil || len(f.mails(t)) != 0 {
		t.Errorf("%v, %d mails wait", err, len(f.mails(t)))
	}
}
