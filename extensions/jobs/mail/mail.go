// Package mail sends all mails of the application through the job queue: in the transaction of who sends them, again when
// the mail server fails, sealed while they wait, and never once the code in them has expired.
package mail

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	netmail "net/mail"
	"net/textproto"
	"sync"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/mailer"
	"github.com/pocketbase/pocketbase/tools/routine"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/pb"
	"github.com/satchelbase/satchel/extensions/jobs"
)

const (
	kind  = "jobs.mail"
	queue = "mail"

	// priority is behind the app's own hooks: what they change is what is sent, and what they stop is not.
	priority = 9999

	// life is how long a mail without a code may be late.
	life = 24 * time.Hour

	// testMail is the route by which an admin asks whether mails work: its answer is that of the mail server.
	testMail = "/api/settings/test/email"
)

// letter is a mail as a job holds it.
type letter struct {
	From    netmail.Address   `json:"from"`
	To      []netmail.Address `json:"to,omitempty"`
	Cc      []netmail.Address `json:"cc,omitempty"`
	Bcc     []netmail.Address `json:"bcc,omitempty"`
	Subject string            `json:"subject"`
	HTML    string            `json:"html,omitempty"`
	Text    string            `json:"text,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`
	Files   map[string][]byte `json:"files,omitempty"`
	Inline  map[string][]byte `json:"inline,omitempty"`
}

// Mails is the way of mails into the queue. It is safe for concurrent use.
type Mails struct {
	jobs    *jobs.Jobs
	enabled bool
	logger  *slog.Logger
	lives   sync.Map // *mailer.Message that is on its way into the queue -> until when it makes sense
}

// New adds the kind of mails to the queue. When it is not enabled, mails are sent as PocketBase does.
func New(j *jobs.Jobs, enabled bool) *Mails {
	m := &Mails{jobs: j, enabled: enabled}
	if enabled {
		j.Add(m.kind())
	}
	return m
}

// Extend lets the extension of the queue take the mails.
func (m *Mails) Extend(x extensions.Extension) extensions.Extension {
	bind := x.Bind
	x.Bind = func(h *extensions.Host) error {
		m.logger = h.Logger
		if m.enabled {
			m.bind(h.App)
		}
		return bind(h)
	}
	if m.enabled {
		x.Middlewares = append(x.Middlewares, &hook.Handler[*core.RequestEvent]{Id: "satchelJobsTestMail", Func: func(e *core.RequestEvent) error {
			if e.Request.URL.Path == testMail && e.Request.Method == http.MethodPost {
				e.App = unqueued{e.App}
			}
			return e.Next()
		}})
	}
	return x
}

// kind tries for the life of a mail, sooner at first than other kinds do: somebody waits for it.
func (m *Mails) kind() jobs.Kind {
	return jobs.Define(jobs.Spec[letter]{
		Kind: kind, Queue: queue, Priority: 3, Attempts: 30, FirstWait: 5 * time.Second, LongestWait: 15 * time.Minute, Timeout: time.Minute, Sealed: true,
		Work: func(_ context.Context, _ *jobs.Job, l letter) error {
			err := directly(m.jobs.App()).Send(l.message())
			if refused, ok := errors.AsType[*textproto.Error](err); ok && refused.Code >= 550 {
				return jobs.Permanent(fmt.Errorf("the mail server refuses the mail: %w", err)) // RFC 5321 section 4.2.1: the same will be refused again
			}
			return err
		},
	})
}

// Send sends a mail in the background, in the transaction of tx if it is one: it is sent if that is committed, and not
// after the moment at which it makes no sense any more. Hooks on mails take part when it is enqueued. When mails do not go
// through the queue it is sent once, after the commit.
func (m *Mails) Send(tx core.App, message *mailer.Message, until time.Time) error {
	if !m.enabled || tx.IsDev() {
		pb.AfterCommit(tx, func() {
			routine.FireAndForget(func() {
				if err := m.jobs.App().NewMailClient().Send(message); err != nil {
					m.logger.Error("a mail was not sent", "error", err)
				}
			})
		})
		return nil
	}
	m.lives.Store(message, until)
	defer m.lives.Delete(message)
	return tx.NewMailClient().Send(message)
}

// bind takes the mails of PocketBase and of hooks into the queue, in the transaction of who sends them.
func (m *Mails) bind(app core.App) {
	app.OnMailerSend().Bind(&hook.Handler[*core.MailerEvent]{Id: "satchelJobsMail", Priority: priority, Func: m.intercept})
	code := func(lifetime func(c *core.Collection) int64) func(*core.MailerRecordEvent) error {
		return func(e *core.MailerRecordEvent) error {
			// A quarter is left for the reader.
			good := time.Duration(lifetime(e.Record.Collection())) * time.Second * 3 / 4
			m.lives.Store(e.Message, time.Now().Add(good))
			defer m.lives.Delete(e.Message)
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
		b.on.Bind(&hook.Handler[*core.MailerRecordEvent]{Id: "satchelJobsMailLife", Priority: priority, Func: code(b.lifetime)})
	}
}

// intercept enqueues a mail instead of sending it. One that the queue cannot take is sent at once, as without it; in the
// development mode of PocketBase all are, because it prints them.
func (m *Mails) intercept(e *core.MailerEvent) error {
	if e.App.IsDev() {
		return e.Next()
	}
	until := time.Now().Add(life)
	if told, ok := m.lives.Load(e.Message); ok {
		until, _ = told.(time.Time)
	}
	l, err := newLetter(e.Message)
	if err == nil {
		_, err = m.jobs.Enqueue(e.App, kind, l, jobs.Options{Expires: until})
	}
	if err != nil {
		m.logger.Warn("a mail does not go through the queue", "error", err)
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
