package anonymous

import (
	"net/http"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tests"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

// mailbox takes the mails of the application.
type mailbox struct{ *tests.TestMailer }

func (f *fixture) mails(t testing.TB) mailbox {
	t.Helper()
	box := mailbox{&tests.TestMailer{}}
	f.OnMailerSend().BindFunc(func(e *core.MailerEvent) error {
		e.Mailer = box.TestMailer
		return e.Next()
	})
	return box
}

// await waits until one mail has gone to the address.
func (b mailbox) await(t testing.TB, address string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); b.TotalSend() == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no mail was sent")
		}
	}
	if m := b.LastMessage(); b.TotalSend() != 1 || m.To[0].Address != address {
		t.Errorf("%d mails, the last to %v", b.TotalSend(), m.To)
	}
}

// age makes the account and its sessions older.
func (f *fixture) age(t testing.TB, a account, account, use time.Duration) {
	t.Helper()
	for statement, by := range map[string]time.Duration{
		`UPDATE anonymous_users SET created_at = created_at - {:by} WHERE record = {:record}`: account,
		`UPDATE sessions_logins SET used_at = used_at - {:by} WHERE record = {:record}`:       use,
	} {
		if _, err := f.NonconcurrentDB().NewQuery(statement).Bind(dbx.Params{"by": by.Milliseconds(), "record": a.Record.ID}).Execute(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSweep(t *testing.T) {
	const day = 24 * time.Hour
	f := start(t, func(c *Config) { c.MaxUnused = 30 * day })
	// More than one chunk of accounts that are in use lies before the others.
	for range sweepChunk + 1 {
		user, err := f.accounts.create(f, f.collection(t, "users"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.NonconcurrentDB().NewQuery(`INSERT INTO sessions_logins SELECT {:id}, collection, {:id}, salt, generation, confirmed, rotated_at, created_at,
			used_at, auth_at, idle_until, expires_at, methods, device_id, device_name, platform, app_version, user_agent, address, actor, actor_collection, reason, read_only
			FROM (SELECT {:collection} AS collection, x'00' AS salt, 1 AS generation, 0 AS confirmed, 0 AS rotated_at, 0 AS created_at, {:now} AS used_at, 0 AS auth_at,
			{:later} AS idle_until, {:later} AS expires_at, '' AS methods, '' AS device_id, '' AS device_name, '' AS platform, '' AS app_version, '' AS user_agent, '' AS address,
			'' AS actor, '' AS actor_collection, '' AS reason, 0 AS read_only)`).
			Bind(dbx.Params{"id": user.Id, "collection": user.Collection().Id, "now": time.Now().UnixMilli(), "later": time.Now().Add(day).UnixMilli()}).Execute(); err != nil {
			t.Fatal(err)
		}
		if _, err := f.NonconcurrentDB().NewQuery(`UPDATE anonymous_users SET created_at = 5 WHERE record = {:id}`).Bind(dbx.Params{"id": user.Id}).Execute(); err != nil {
			t.Fatal(err)
		}
	}
	before := f.count(t, "users")

	unused, used, young, upgraded, gone := f.anonymous(t), f.anonymous(t), f.anonymous(t), f.anonymous(t), f.anonymous(t)
	note := f.Do(t, apptest.Request{Method: http.MethodPost, Path: notesPath, Token: unused.Session.AccessToken, Body: map[string]string{"owner": unused.Record.ID, "title": "old"}})
	if note.Status != http.StatusOK {
		t.Fatalf("%s", note.Body)
	}
	accountOf(t, f.upgrade(t, upgraded.Session.AccessToken, email, "a long password"))
	f.age(t, unused, 40*day, 31*day)
	f.age(t, used, 40*day, 29*day)
	f.age(t, young, 0, 0)
	f.age(t, upgraded, 40*day, 40*day)
	f.age(t, gone, 40*day, 40*day)
	if _, err := f.NonconcurrentDB().Delete("users", dbx.HashExp{"id": gone.Record.ID}).Execute(); err != nil { // past the hooks
		t.Fatal(err)
	}

	for range 2 { // the second finds nothing
		if err := f.accounts.sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if users, marks, notes := f.count(t, "users"), f.count(t, table), f.count(t, "notes"); users != before+3 || marks != before+2 || notes != 0 {
		t.Errorf("%d users, %d marks, %d notes", users-before, marks-before, notes)
	}
	if got := f.status(t, unused.Session.AccessToken); got != http.StatusUnauthorized {
		t.Errorf("the token of a swept account: %d", got)
	}
	for _, a := range []account{used, young, upgraded} {
		if got := f.status(t, a.Session.AccessToken); got != http.StatusOK {
			t.Errorf("the token of another account: %d", got)
		}
	}
	if got := f.count(t, `audit_entries WHERE action = 'anonymous.swept' AND details LIKE '%"count":1%'`); got != 1 {
		t.Errorf("%d entries in the audit", got)
	}
}

func TestMarkFollows(t *testing.T) {
	f := start(t, nil)
	find := func(a account) *core.Record {
		user, err := f.FindRecordById("users", a.Record.ID)
		if err != nil {
			t.Fatal(err)
		}
		return user
	}
	for name, act := range map[string]func(*core.Record) error{
		"an address by other means": func(r *core.Record) error { r.SetEmail("by-an-admin@example.test"); return f.Save(r) },
		"deleted":                   func(r *core.Record) error { return f.Delete(r) },
		"another extension":         func(r *core.Record) error { return Upgraded(f, r) },
		"a provider's identity": func(r *core.Record) error {
			x := core.NewExternalAuth(f)
			x.SetCollectionRef(r.Collection().Id)
			x.SetRecordRef(r.Id)
			x.SetProvider("google")
			x.SetProviderId("1")
			return f.Save(x)
		},
	} {
		a := f.anonymous(t)
		if err := act(find(a)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if f.is(t, a.Record.ID) {
			t.Errorf("%s: the user is anonymous still", name)
		}
	}
	a := f.anonymous(t)
	user := find(a)
	user.Set("name", "Ada")
	if err := f.Save(user); err != nil {
		t.Fatal(err)
	}
	if !f.is(t, a.Record.ID) || f.status(t, a.Session.AccessToken) != http.StatusOK {
		t.Error("a name ends the anonymity or the session")
	}
}

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		config func(*Config)
		users  func(*core.Collection)
		level  extensions.Level
	}{
		"off":             {config: func(c *Config) { c.Collections = nil }, level: extensions.Skip},
		"no collection":   {config: func(c *Config) { c.Collections = []string{"members"} }, level: extensions.Fail},
		"e-mail required": {users: func(c *core.Collection) { c.Fields.GetByName("email").(*core.EmailField).Required = true }, level: extensions.Fail},
		"no sweep":        {level: extensions.Info},
		"good":            {config: func(c *Config) { c.MaxUnused = 7 * 24 * time.Hour }, level: extensions.OK},
	} {
		f := start(t, c.config)
		if c.users != nil {
			f.users(t, c.users)
		}
		if got := f.accounts.check(t.Context(), f.Host); got.Level != c.level {
			t.Errorf("%s: %v", name, got)
		}
	}
	if err := (Config{MaxUnused: time.Hour}).Validate(); err == nil {
		t.Error("an hour is taken")
	}
}
