package jobs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/mail"
	"net/textproto"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/mailer"
	"github.com/pocketbase/pocketbase/tools/routine"

	"github.com/satchelbase/satchel/extensions/internal/pb"
)

const (
	mailName  = "jobs.mail"
	mailQueue = "mail"

	// mailPriority is behind the app's own hooks: what they change is what is sent, and what they stop is not.
	mailPriority = 9999

	// mailLife is how long a mail without a code may be late.
	mailLife = 24 * time.Hour

	// testMail is the route by which an admin asks whether mails work: its answer is that of the mail server.
	testMail = "/api/settings/test/email"
)

// letter is a mail as a job holds it.
type letter struct {
	From    mail.Address      `json:"from"`
	To      []mail.Address    `json:"to,omitempty"`
	Cc      []mail.Address    `json:"cc,omitempty"`
	Bcc     []mail.Address    `json:"bcc,omitempty"`
	Subject string            `json:"subject"`
	HTML    string            `json:"html,omitempty"`
	Text    string            `json:"text,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`
	Files   map[string][]byte `json:"files,omitempty"`
	Inline  map[string][]byte `json:"inline,omitempty"`
}

// mailKind tries for the life of a mail, sooner at first than other kinds do: somebody waits for it.
func (j *Jobs) mailKind() Kind {
	return Define(Spec[letter]{
		Kind: mailName, Queue: mailQueue, Priority: 3, Attempts: 30, FirstWait: 5 * time.Second, LongestWait: 15 * time.Minute, Timeout: time.Minute, Sealed: true,
		Work: func(_ context.Context, _ *Job, l letter) error {
			err := directly(j.app).Send(l.message())
			if refused, ok := errors.AsType[*textproto.Error](err); ok && refused.Code >= 550 {
				return Permanent(fmt.Errorf("the mail server refuses the mail: %w", err)) // RFC 5321 section 4.2.1: the same will be refused again
			}
			return err
		},
	})
}

// Mail sends a mail in the background, in the transaction of tx if it is one: it is sent if that is committed, and not
// after the moment at which it makes no sense any more. Hooks on mails take part when it is enqueued. When mails do not go
// through the queue it is sent once, after the commit.
func (j *Jobs) Mail(tx core.App, m *mailer.Message, until time.Time) error {
	if j.kinds[mailName] == nil || tx.IsDev() {
		pb.AfterCommit(tx, func() {
			routine.FireAndForget(func() {
				if err := j.app.NewMailClient().Send(m); err != nil {
					j.logger.Error("a mail was not sent", "error", err)
				}
			})
		})
		return nil
	}
	j.lives.Store(m, until)
	defer j.lives.Delete(m)
	return tx.NewMailClient().Send(m)
}

// bindMail takes the mails of PocketBase and of hooks into the queue, in the transaction of who sends them.
func (j *Jobs) bindMail(app core.App) {
	if j.kinds[mailName] == nil {
		return
	}
	app.OnMailerSend().Bind(&hook.Handler[*core.MailerEvent]{Id: "satchelJobsMail", Priority: mailPriority, Func: j.intercept})
	code := func(lifetime func(c *core.Collection) int64) func(*core.MailerRecordEvent) error {
		return func(e *core.MailerRecordEvent) error {
			// A quarter is left for the reader.
			life := time.Duration(lifetime(e.Record.Collection())) * time.Second * 3 / 4
			j.lives.Store(e.Message, j.now().Add(life))
			defer j.lives.Delete(e.Message)
			return e.Next()
		}
	}
	for _, b := range []struct {
		on       *hook.TaggedHook[*core.MailerRecordEvent]
		lifetime func(c *core.Collection) int64
	}{
		{app.OnMailerRecordOTPSend(), func(c *core.Collection) int64 { return c.OTP.Duration }},
		{app.OnMailerRecordPasswordResetSend(), func(c *core.Collection) int64 { return c.PasswordResetToken.Duration }},
		{app.OnMailerRecordVerificationSend(), func(c *core.Collection) int64 { return c.VerificationToken.Duration }},
		{app.OnMailerRecordEmailChangeSend(), func(c *core.Collection) int64 { return c.EmailChangeToken.Duration }},
	} {
		b.on.Bind(&hook.Handler[*core.MailerRecordEvent]{Id: "satchelJobsMailLife", Priority: mailPriority, Func: code(b.lifetime)})
	}
}

// intercept enqueues a mail instead of sending it. One that the queue cannot take is sent at once, as without it; in the
// development mode of PocketBase all are, because it prints them.
func (j *Jobs) intercept(e *core.MailerEvent) error {
	if e.App.IsDev() {
		return e.Next()
	}
	until := j.now().Add(mailLife)
	if told, ok := j.lives.Load(e.Message); ok {
		until, _ = told.(time.Time)
	}
	l, err := newLetter(e.Message)
	if err == nil {
		_, err = j.Enqueue(e.App, mailName, l, Options{Expires: until})
	}
	if err != nil {
		j.logger.Warn("a mail does not go through the queue", "error", err)
		l.rewind(e.Message)
		return e.Next()
	}
	return nil
}

// directly is the mail client without the hooks: those have seen the mail when it was enqueued.
func directly(app core.App) mailer.Mailer {
	client := app.NewMailClient()
	if hooked, ok := client.(mailer.SendInterceptor); ok {
		hooked.OnSend().UnbindAll()
	}
	return client
}

// unqueued is an application whose mails are sent at once.
type unqueued struct{ core.App }

// NewMailClient implements core.App.
func (u unqueued) NewMailClient() mailer.Mailer { return directly(u.App) }

func (j *Jobs) middlewares() []*hook.Handler[*core.RequestEvent] {
	if j.kinds[mailName] == nil {
		return nil
	}
	return []*hook.Handler[*core.RequestEvent]{{Id: "satchelJobsTestMail", Func: func(e *core.RequestEvent) error {
		if e.Request.URL.Path == testMail && e.Request.Method == http.MethodPost {
			e.App = unqueued{e.App}
		}
		return e.Next()
	}}}
}

func newLetter(m *mailer.Message) (l letter, err error) {
	l = letter{From: m.From, To: m.To, Cc: m.Cc, Bcc: m.Bcc, Subject: m.Subject, HTML: m.HTML, Text: m.Text, Headers: m.Headers}
	if l.Files, err = readFiles(m.Attachments); err != nil {
		return l, err
	}
	l.Inline, err = readFiles(m.InlineAttachments)
	return l, err
}

func readFiles(from map[string]io.Reader) (map[string][]byte, error) {
	if len(from) == 0 {
		return nil, nil //nolint:nilnil // no files are no error
	}
	files := make(map[string][]byte, len(from))
	for name, r := range from {
		data, err := io.ReadAll(r)
		files[name] = data
		if err != nil {
			return files, fmt.Errorf("read attachment: %w", err)
		}
	}
	return files, nil
}

// rewind gives the message its attachments back, which were read.
func (l letter) rewind(m *mailer.Message) {
	m.Attachments, m.InlineAttachments = readers(l.Files, m.Attachments), readers(l.Inline, m.InlineAttachments)
}

func readers(files map[string][]byte, others map[string]io.Reader) map[string]io.Reader {
	for name, data := range files {
		if others == nil {
			others = map[string]io.Reader{}
		}
		others[name] = bytes.NewReader(data)
	}
	return others
}

func (l letter) message() *mailer.Message {
	return &mailer.Message{
		From: l.From, To: l.To, Cc: l.Cc, Bcc: l.Bcc, Subject: l.Subject, HTML: l.HTML, Text: l.Text, Headers: l.Headers,
		Attachments: readers(l.Files, nil), InlineAttachments: readers(l.Inline, nil),
	}
}
