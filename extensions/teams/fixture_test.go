package teams

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/mailer"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/settings"
)

// world is a server with teams, people who have signed in, and a mailbox that everybody's mail falls into.
type world struct {
	*apptest.App
	*Teams

	ops *operations.Operations

	ids, tokens map[string]string

	base  time.Time
	later atomic.Int64 // nanoseconds that the clock of the teams is ahead of base, where it stands still

	mailbox sync.Mutex
	mails   []*mailer.Message
	arrived chan struct{}
}

func config() Config {
	cfg := settings.Defaults[Config]()
	cfg.Roles = []string{"viewer"}
	return cfg
}

// open starts a server. change may set what a test is about.
func open(t testing.TB, change func(cfg *Config, deps *Deps)) *world {
	t.Helper()
	log := audit.NewLog(secret.Fixed([]byte("root key of the tests")))
	cfg, deps := config(), Deps{PublicURL: "https://api.example.test", Audit: log.Note}
	if change != nil {
		change(&cfg, &deps)
	}
	w := &world{Teams: New(cfg, deps), ops: operations.New(), ids: map[string]string{}, tokens: map[string]string{"guest": ""}, arrived: make(chan struct{}, 1000)}
	w.base = time.Now()
	w.now = func() time.Time { return w.base.Add(time.Duration(w.later.Load())) }
	w.ops.Add(w.Operations())
	pass := func(*core.RequestEvent) error { return nil }
	w.App = apptest.New(t, api.New(settings.Defaults[api.Config]()), audit.New(audit.Config{}, log, nil), w.Extension(), w.ops.Extension(operations.Deps{
		Key:    func(*core.RequestEvent) (string, func(string) bool) { return "", nil },
		Role:   func(*core.RequestEvent, string) error { return api.ErrForbidden },
		Recent: pass, Attested: pass, Audit: log.Append, Staff: []string{core.CollectionNameSuperusers},
	}))
	w.OnMailerSend().BindFunc(func(e *core.MailerEvent) error {
		w.mailbox.Lock()
		w.mails = append(w.mails, e.Message)
		w.mailbox.Unlock()
		w.arrived <- struct{}{}
		return nil
	})
	return w
}

// wait lets time pass.
func (w *world) wait(d time.Duration) { w.later.Add(int64(d)) }

// people signs them in; their addresses are verified.
func (w *world) people(t testing.TB, names ...string) {
	t.Helper()
	for _, name := range names {
		user, token := w.User(t, name+"@example.test")
		user.Set("name", strings.ToUpper(name[:1])+name[1:])
		if err := w.Save(user); err != nil {
			t.Fatal(err)
		}
		w.ids[name], w.tokens[name] = user.Id, token
	}
}

// call calls an operation.
func (w *world) call(t testing.TB, who, operation string, in map[string]any) apptest.Response {
	t.Helper()
	return w.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/operations/teams." + operation, Token: w.tokens[who], Body: in})
}

// must calls an operation that has to succeed and returns data.
func (w *world) must(t testing.TB, who, operation string, in map[string]any) map[string]any {
	t.Helper()
	got := w.call(t, who, operation, in)
	if got.Status != http.StatusOK {
		t.Fatalf("%s: teams.%s %v: %d %s", who, operation, in, got.Status, got.Body)
	}
	data, _ := got.JSON(t)["data"].(map[string]any)
	return data
}

// refuse calls an operation that has to fail with the code.
func (w *world) refuse(t testing.TB, code *string, who, operation string, in map[string]any) {
	t.Helper()
	if got := w.call(t, who, operation, in); got.Status < http.StatusBadRequest || got.Code() != *code {
		t.Errorf("%s: teams.%s %v: %d %s, want %s", who, operation, in, got.Status, got.Body, *code)
	}
}

// found makes a team of people and their roles; the first is the owner who founds it.
func (w *world) found(t testing.TB, owner string, others map[string]string) (team string) {
	t.Helper()
	team, _ = w.must(t, owner, "create", map[string]any{"name": "Team of " + owner})["id"].(string)
	for _, who := range slices.Sorted(maps.Keys(others)) {
		w.add(t, team, who, others[who])
	}
	return team
}

// add puts somebody into a team, past the operations.
func (w *world) add(t testing.TB, team, who, role string) {
	t.Helper()
	c, err := w.FindCollectionByNameOrId(membersCollection)
	if err != nil {
		t.Fatal(err)
	}
	r := core.NewRecord(c)
	r.Load(map[string]any{"team": team, "user": w.ids[who], "role": role})
	if err := w.Save(r); err != nil {
		t.Fatal(err)
	}
}

func (w *world) member(t testing.TB, team, who string) string {
	t.Helper()
	r, err := membership(w.App, team, w.ids[who])
	if err != nil || r == nil {
		t.Fatalf("%s is not in the team (%v)", who, err)
	}
	return r.Id
}

// roles is who is what in the team, "" for a team that is gone.
func (w *world) roles(t testing.TB, team string) string {
	t.Helper()
	var rows []struct{ User, Role string }
	if err := w.DB().Select("user", "role").From(membersCollection).Where(dbx.HashExp{"team": team}).All(&rows); err != nil {
		t.Fatal(err)
	}
	var out []string
	for name, id := range w.ids {
		for _, r := range rows {
			if r.User == id {
				out = append(out, name+" "+r.Role)
			}
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// entries are the actions in the audit, with their outcome unless it was a success.
func (w *world) entries(t testing.TB) []string {
	t.Helper()
	var rows []struct{ Action, Outcome, Details string }
	if err := w.DB().Select("action", "outcome", "details").From("audit_entries").OrderBy("id").All(&rows); err != nil {
		t.Fatal(err)
	}
	out := make([]string, len(rows))
	for i, r := range rows {
		out[i] = r.Action + " " + r.Outcome + " " + r.Details
	}
	return out
}

// mail waits for the next mail.
func (w *world) mail(t testing.TB) *mailer.Message {
	t.Helper()
	select {
	case <-w.arrived:
	case <-time.After(20 * time.Second):
		t.Fatal("no mail came")
	}
	w.mailbox.Lock()
	defer w.mailbox.Unlock()
	return w.mails[len(w.mails)-1]
}

func (w *world) mailed() int {
	w.mailbox.Lock()
	defer w.mailbox.Unlock()
	return len(w.mails)
}

// invited mails an invitation and returns its id and the token in the mail.
func (w *world) invited(t testing.TB, who, team, email, role string) (id, token string) {
	t.Helper()
	id, _ = w.must(t, who, "invite", map[string]any{"team": team, "email": email, "role": role})["id"].(string)
	return id, tokenIn(t, w.mail(t))
}

func tokenIn(t testing.TB, m *mailer.Message) string {
	t.Helper()
	_, after, ok := strings.Cut(m.Text, "#token=")
	if !ok || len(after) < tokenLength {
		t.Fatalf("no token in %q", m.Text)
	}
	return after[:tokenLength]
}

// linked makes a link and returns the id and the token.
func (w *world) linked(t testing.TB, who, team, role string) (id, token string) {
	t.Helper()
	data := w.must(t, who, "invite", map[string]any{"team": team, "role": role})
	id, _ = data["id"].(string)
	token, _ = data["token"].(string)
	return id, token
}

func has(list []string, parts ...string) bool {
	return slices.ContainsFunc(list, func(line string) bool {
		return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) })
	})
}

func jsonOf(t testing.TB, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}
