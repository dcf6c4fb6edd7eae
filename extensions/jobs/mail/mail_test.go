package mail

import (
	"bufio"
	"errors"
	"net"
	netmail "net/mail"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/mails"
	"github.com/pocketbase/pocketbase/tools/mailer"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/internal/serial"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/jobs/table"
	"github.com/satchelbase/satchel/extensions/settings"
)

type fixture struct {
	*apptest.App
	jobs  *jobs.Jobs
	mails *Mails
}

func start(t testing.TB, enabled bool) *fixture {
	t.Helper()
	f := &fixture{jobs: jobs.New(settings.Defaults[jobs.Config]())}
	f.mails = New(f.jobs, enabled)
	f.App = apptest.New(t, f.mails.Extend(f.jobs.Extension(jobs.Deps{Vault: secret.Fixed([]byte("root key of the tests"))})))
	return f
}

func (f *fixture) waiting(t testing.TB) (list []table.Row) {
	t.Helper()
	if err := f.ConcurrentDB().NewQuery("SELECT * FROM " + table.Queue + " WHERE kind = '" + kind + "' ORDER BY id").All(&list); err != nil {
		t.Fatal(err)
	}
	return list
}

// Mails wait in the queue, in the transaction of who sends them, sealed, and no longer than their code is good.
func TestMail(t *testing.T) {
	f := start(t, true)
	ada, _ := f.User(t, "ada@example.test")
	if err := f.jobs.Pause(f.App.App, queue); err != nil {
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
			m := &mailer.Message{To: []netmail.Address{{Address: "bob@example.test"}}, Text: "a secret link"}
			return errors.Join(f.mails.Send(tx, m, until), failure)
		})
		if !errors.Is(err, failure) {
			t.Fatal(err)
		}
	}
	list := f.waiting(t)
	if len(list) != 2 {
		t.Fatalf("%d mails wait", len(list))
	}
	good := time.Duration(ada.Collection().PasswordResetToken.Duration) * time.Second * 3 / 4
	if got := time.UnixMilli(list[0].ExpiresAt).Sub(time.UnixMilli(list[0].CreatedAt)); got < good-time.Second || got > good+time.Second {
		t.Errorf("the code may be sent for %s, want %s", got, good)
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
		v, err := table.Show(f.App.App, serial.Format(r.ID))
		if err != nil || string(v.Payload) != "null" {
			t.Errorf("an operator sees %s, %v", v.Payload, err)
		}
	}
	if !strings.Contains(seen, "confirm-password-reset") {
		t.Errorf("the hook saw %s", seen)
	}
}

// What a hook stops is not sent.
func TestMailStopped(t *testing.T) {
	f := start(t, true)
	f.OnMailerSend().BindFunc(func(*core.MailerEvent) error { return nil })
	if err := f.NewMailClient().Send(&mailer.Message{}); err != nil || len(f.waiting(t)) != 0 {
		t.Errorf("%v, %d mails wait", err, len(f.waiting(t)))
	}
}

// server speaks as much SMTP as a client needs, and answers each mail with the next of the codes, then with 250.
type server struct {
	mu    sync.Mutex
	codes []string
	mails []string
}

func (s *server) listen(t testing.TB, app core.App) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go s.talk(c)
		}
	}()
	host, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	set := app.Settings()
	set.SMTP.Enabled, set.SMTP.Host = true, host
	if set.SMTP.Port, err = strconv.Atoi(port); err != nil {
		t.Fatal(err)
	}
	set.Meta.SenderAddress = "app@example.test"
	if err := app.Save(set); err != nil {
		t.Fatal(err)
	}
}

func (s *server) talk(c net.Conn) {
	defer func() { _ = c.Close() }()
	say := func(text string) { _, _ = c.Write([]byte(text + "\r\n")) }
	say("220 ready")
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		switch verb, _, _ := strings.Cut(strings.ToUpper(lines.Text()), " "); verb {
		case "DATA":
			say("354 go on")
			var text strings.Builder
			for lines.Scan() && lines.Text() != "." {
				text.WriteString(lines.Text() + "\n")
			}
			say(s.take(text.String()))
		case "QUIT":
			say("221 bye")
			return
		default:
			say("250 fine")
		}
	}
}

func (s *server) take(text string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.codes) > 0 {
		code := s.codes[0]
		s.codes = s.codes[1:]
		return code + " no"
	}
	s.mails = append(s.mails, text)
	return "250 taken"
}

func (s *server) got() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mails
}

func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("%s: has not come", what)
}

// A mail server that is busy is asked again, one that refuses is not, and a test tells what it has said.
func TestMailServer(t *testing.T) {
	f := start(t, true)
	s := &server{codes: []string{"451"}}
	s.listen(t, f.App.App)
	ada, _ := f.User(t, "ada@example.test")
	if err := mails.SendRecordVerification(f.App.App, ada); err != nil {
		t.Fatal(err)
	}
	var id string
	await(t, "the first attempt", func() bool {
		list := f.waiting(t)
		if len(list) == 1 && list[0].Stands() == jobs.Scheduled {
			id = serial.Format(list[0].ID)
		}
		return id != ""
	})
	if err := f.jobs.Retry(f.App.App, id, nil); err != nil {
		t.Fatal(err)
	}
	await(t, "the mail", func() bool { return len(s.got()) == 1 && len(f.waiting(t)) == 0 })
	if mail := s.got()[0]; !strings.Contains(mail, "ada@example.test") {
		t.Errorf("the mail: %s", mail)
	}

	s.mu.Lock()
	s.codes = []string{"550", "451"}
	s.mu.Unlock()
	if err := f.NewMailClient().Send(&mailer.Message{To: []netmail.Address{{Address: "bob@example.test"}}, Text: "hello"}); err != nil {
		t.Fatal(err)
	}
	await(t, "the refusal", func() bool { list := f.waiting(t); return len(list) == 1 && list[0].Stands() == jobs.Dead })

	_, root := f.Superuser(t)
	test := apptest.Request{Method: "POST", Path: testMail, Token: root, Body: `{"email":"root@example.test","template":"verification"}`}
	if got := f.Do(t, test); got.Status != 400 {
		t.Errorf("the server was busy: %d %s", got.Status, got.Body)
	}
	if got := f.Do(t, test); got.Status != 204 || len(s.got()) != 2 {
		t.Errorf("%d %s, %d mails", got.Status, got.Body, len(s.got()))
	}
}

// Without the queue a mail is sent once, after the commit.
func TestMailDirectly(t *testing.T) {
	f := start(t, false)
	s := &server{}
	s.listen(t, f.App.App)
	for _, failure := range []error{errors.New("no"), nil} {
		err := f.RunInTransaction(func(tx core.App) error {
			m := &mailer.Message{To: []netmail.Address{{Address: "bob@example.test"}}, Text: "hello", Subject: "s"}
			return errors.Join(f.mails.Send(tx, m, time.Now().Add(time.Hour)), failure)
		})
		if !errors.Is(err, failure) {
			t.Fatal(err)
		}
	}
	await(t, "the mail", func() bool { return len(s.got()) == 1 })
}
