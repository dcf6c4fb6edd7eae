package guard

import (
	"maps"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
)

const (
	phone   = "5f0c9a52-7a0e-4a3c-9f0e-2f6b1f7c0a11"
	another = "00000000-7a0e-4a3c-9f0e-2f6b1f7c0a11"
)

var errTaken = &extensions.Code{Name: "sessions.email_taken", Status: http.StatusConflict, Title: "The address is taken"}

// event is what the audit function was given.
type event struct{ action, outcome, subject string }

// world is a server behind a trusted proxy, with the guard, a device that ann's account knows, and a mail box.
type world struct {
	*apptest.App
	ann *core.Record

	mu     sync.Mutex
	events []event
	asked  []string // the accounts for which a device was looked up
	mails  []string // recipient and subject
	sent   chan struct{}

	spare []string // codes that a benchmark has made beforehand

	passed atomic.Pointer[atomic.Int64] // counts the tries that the guard lets through
}

func start(t testing.TB, change func(*Config)) *world {
	t.Helper()
	cfg := settings.Defaults[Config]()
	if change != nil {
		change(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	w := &world{sent: make(chan struct{}, 1000)}
	conventions := settings.Defaults[api.Config]()
	conventions.TrustedProxies = append(conventions.TrustedProxies, loopback())
	w.App = apptest.New(t, api.New(conventions), w.witness(), New(cfg, Deps{KnownDevice: w.known, Audit: w.audit, EmailTaken: errTaken}))
	w.OnMailerSend().BindFunc(func(e *core.MailerEvent) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.mails = append(w.mails, e.Message.To[0].Address+": "+e.Message.Subject)
		w.sent <- struct{}{}
		return nil
	})
	w.addAnn(t)
	return w
}

func (w *world) addAnn(t testing.TB) {
	t.Helper()
	ann, _ := w.User(t, "ann@example.test")
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ann = ann
}

// witness stands between the guard and PocketBase's handler.
func (w *world) witness() extensions.Extension {
	return extensions.Extension{Name: "witness", Middlewares: []*hook.Handler[*core.RequestEvent]{{Priority: codePriority + 1, Func: func(e *core.RequestEvent) error {
		if form := (codeForm{}); w.passed.Load() != nil && e.BindBody(&form) == nil && form.valid() {
			w.passed.Load().Add(1)
		}
		return e.Next()
	}}}}
}

func (w *world) known(_ core.App, record *core.Record, id string) (bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, record.Id)
	return w.ann != nil && record.Id == w.ann.Id && id == phone, nil
}

func (w *world) audit(_ core.App, _ *core.RequestEvent, action, outcome string, subject *core.Record, _ map[string]any) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	email := ""
	if subject != nil {
		email = subject.Email()
	}
	w.events = append(w.events, event{action, outcome, email})
	return nil
}

func (w *world) count(want event) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, e := range w.events {
		if e == want {
			n++
		}
	}
	return n
}

// mailbox waits until n mails were sent and returns them in the order of the alphabet.
func (w *world) mailbox(t testing.TB, n int) []string {
	t.Helper()
	for range n {
		select {
		case <-w.sent:
		case <-time.After(time.Minute):
			t.Fatal("a mail is missing")
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	out := slices.Clone(w.mails)
	slices.Sort(out)
	return out
}

// change saves a change to the collection of users.
func (w *world) change(t testing.TB, f func(c *core.Collection)) {
	t.Helper()
	c, err := w.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	f(c)
	if err := w.Save(c); err != nil {
		t.Fatal(err)
	}
}

// post sends a body to an action of the collection of users, from an address and a device.
func (w *world) post(t testing.TB, address, device, action string, body any) apptest.Response {
	t.Helper()
	return w.Do(t, from(address, device, apptest.Request{Method: http.MethodPost, Path: "/api/v1/collections/users/" + action, Body: body}))
}

func from(address, device string, r apptest.Request) apptest.Request {
	header := map[string]string{"X-Forwarded-For": address}
	if device != "" {
		header[api.DeviceHeader] = device
	}
	maps.Copy(header, r.Header)
	r.Header = header
	return r
}

func (w *world) signIn(t testing.TB, address, device, identity, password string) apptest.Response {
	t.Helper()
	return w.post(t, address, device, "auth-with-password", map[string]any{"identity": identity, "password": password})
}

func wantStatus(t testing.TB, r apptest.Response, status int, code string) {
	t.Helper()
	if r.Status != status || r.Code() != code {
		t.Fatalf("answer %d %q, want %d %q: %s", r.Status, r.Code(), status, code, r.Body)
	}
}

func loopback() netip.Prefix { return netip.MustParsePrefix("127.0.0.1/32") }
