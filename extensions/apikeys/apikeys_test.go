package apikeys

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/settings"
)

// newLog is a log of its own, of whose master key nothing depends.
func newLog() *audit.Log { return audit.NewLog(secret.Fixed(bytes.Repeat([]byte{7}, secret.KeySize))) }

// deps are the scopes of the tests, and where keys are taken.
func deps(log *audit.Log) Deps {
	return Deps{Scopes: []string{"operations:*"}, Routes: []string{"/api/v1/probe", "/api/v1/probe/"}, Audit: log.Append}
}

// probe serves GET /api/v1/probe, which takes keys with the scope introspect and answers what it sees.
func probe() extensions.Extension {
	return extensions.Extension{Name: "probe", Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
		g.GET("", func(e *core.RequestEvent) error {
			if err := May(e, ScopeIntrospect); err != nil {
				return err
			}
			return api.Write(e, http.StatusOK, map[string]any{
				"key": KeyID(e), "signedIn": e.Auth != nil, "actor": audit.From(e).Actor, "authorization": e.Request.Header.Get("Authorization"),
			})
		})
	}}
}

func start(t testing.TB) *apptest.App {
	log := newLog()
	return apptest.New(t, api.New(settings.Defaults[api.Config]()), audit.New(audit.Config{}, log, nil), New(settings.Defaults[Config](), deps(log)), probe())
}

// service is one with the same settings, which shares nothing with the server's but the database.
func other() *service { return newService(settings.Defaults[Config](), deps(newLog())) }

func newKey(t testing.TB, app core.App, life time.Duration, allowed ...string) (Key, string) {
	t.Helper()
	w := wish{name: "gateway", scopes: allowed}
	if life > 0 {
		w.expires = time.Now().Add(life)
	}
	return newWish(t, app, w)
}

func newWish(t testing.TB, app core.App, w wish) (Key, string) {
	t.Helper()
	k, text, err := other().create(app, audit.Entry{}, w)
	if err != nil {
		t.Fatal(err)
	}
	return k, text
}

// revoke ends a key.
func revoke(app core.App, id string) (Key, bool, error) {
	return other().revoke(app, audit.Entry{}, id)
}

// authenticate asks as a request would, without a memory.
func authenticate(app core.App, text, scope string) (*Key, error) {
	k, err := other().authenticate(app, text)
	if err == nil && !k.May(scope) {
		err = ErrScopeMissing
	}
	return k, err
}

func set(t testing.TB, app core.App, id string, values dbx.Params) {
	t.Helper()
	if _, err := app.NonconcurrentDB().Update(table, values, dbx.HashExp{"id": id}).Execute(); err != nil {
		t.Fatal(err)
	}
}

func TestKeys(t *testing.T) {
	bearer := func(life time.Duration, change func(app *apptest.App, k Key, text string) string, allowed ...string) func(testing.TB, *apptest.App, *apptest.Request) {
		return func(t testing.TB, app *apptest.App, r *apptest.Request) {
			k, text := newKey(t, app, life, allowed...)
			if change != nil {
				text = change(app, k, text)
			}
			r.Header = map[string]string{"Authorization": "Bearer " + text}
		}
	}
	basic := func(t testing.TB, app *apptest.App, r *apptest.Request) {
		_, text := newKey(t, app, 0, ScopeIntrospect)
		req, _ := http.NewRequest(http.MethodGet, "/", nil)
		req.SetBasicAuth("gateway", text)
		r.Header = map[string]string{"Authorization": req.Header.Get("Authorization")}
	}
	// As RFC 6749 section 2.3.1 wants it, by a client that encodes all it may.
	encoded := func(t testing.TB, app *apptest.App, r *apptest.Request) {
		_, text := newKey(t, app, 0, ScopeIntrospect)
		req, _ := http.NewRequest(http.MethodGet, "/", nil)
		req.SetBasicAuth("gateway", strings.NewReplacer("_", "%5F", "-", "%2D").Replace(text))
		r.Header = map[string]string{"Authorization": req.Header.Get("Authorization")}
	}
	challenged := func(want string) func(testing.TB, *apptest.App, apptest.Response) {
		return func(t testing.TB, _ *apptest.App, r apptest.Response) {
			if got := r.Header.Get("WWW-Authenticate"); got != want {
				t.Errorf("WWW-Authenticate %q, want %q", got, want)
			}
		}
	}
	probe := apptest.Request{Path: "/api/v1/probe"}
	invalidToken := `Bearer error="invalid_token"`
	apptest.Run(t, start, []apptest.Scenario{
		{Name: "none", Request: probe, Status: 401, Code: ErrInvalid.Name, After: challenged("Bearer")},
		{Name: "bearer", Request: probe, Before: bearer(0, nil, ScopeIntrospect), Status: 200, Contains: []string{`"signedIn":false`, `"Kind":"key"`, `"authorization":""`}},
		{Name: "basic", Request: probe, Before: basic, Status: 200},
		{Name: "basic, encoded", Request: probe, Before: encoded, Status: 200},
		{Name: "with a future end", Request: probe, Before: bearer(time.Hour, nil, ScopeIntrospect), Status: 200},
		{Name: "another scheme", Request: apptest.Request{Path: "/api/v1/probe", Token: "sk_abcdefghijklmno_x"}, Status: 401, Code: ErrInvalid.Name},
		{Name: "a route that takes no keys", Request: apptest.Request{Path: "/api/v1/other"}, Before: bearer(0, nil, ScopeIntrospect), Status: 404},
		{Name: "from a browser", Request: probe, Before: func(t testing.TB, app *apptest.App, r *apptest.Request) {
			bearer(0, nil, ScopeIntrospect)(t, app, r)
			r.Header["Origin"] = "https://app.example.test"
		}, Status: 401, Code: ErrInvalid.Name},
		{Name: "no scope", Request: probe, Before: bearer(0, nil), Status: 403, Code: ErrScopeMissing.Name, After: challenged(`Bearer error="insufficient_scope", scope="introspect"`)},
		{Name: "another secret", Request: probe, Before: bearer(0, func(_ *apptest.App, _ Key, text string) string {
			last := "A"
			if strings.HasSuffix(text, "A") {
				last = "B"
			}
			return text[:len(text)-1] + last
		}, ScopeIntrospect), Status: 401, Code: ErrInvalid.Name, After: challenged(invalidToken)},
		{Name: "unknown id", Request: probe, Before: bearer(0, func(_ *apptest.App, _ Key, text string) string {
			return "sk_aaaaaaaaaaaaaaa" + text[len(prefix)+idLength:]
		}, ScopeIntrospect), Status: 401, Code: ErrInvalid.Name, After: challenged(invalidToken)},
		{Name: "the stored hash is not the secret", Request: probe, Before: bearer(0, func(app *apptest.App, k Key, _ string) string {
			r, _ := find(app, k.ID)
			return "sk_" + k.ID + "_" + base64.RawURLEncoding.EncodeToString(r.Hash)
		}, ScopeIntrospect), Status: 401},
		{Name: "expired", Request: probe, Before: bearer(time.Hour, func(app *apptest.App, k Key, text string) string {
			set(t, app, k.ID, dbx.Params{"expires_at": time.Now().Unix()})
			return text
		}, ScopeIntrospect), Status: 401, Code: ErrInvalid.Name, After: challenged(invalidToken)},
		{Name: "revoked", Request: probe, Before: bearer(0, func(app *apptest.App, k Key, text string) string {
			if _, done, err := revoke(app, k.ID); err != nil || !done {
				t.Errorf("revoke: %v, %v", done, err)
			}
			return text
		}, ScopeIntrospect), Status: 401, Code: ErrInvalid.Name, After: challenged(invalidToken)},
		{Name: "revoked and without scope says no more than invalid", Request: probe, Before: bearer(0, func(app *apptest.App, k Key, text string) string {
			_, _, _ = revoke(app, k.ID)
			return text
		}), Status: 401, Code: ErrInvalid.Name},
		{Name: "no door to the generated API", Request: apptest.Request{Path: "/api/collections"}, Before: bearer(0, nil, ScopeIntrospect), Status: 401},
	})
}

func TestMalformedKeys(t *testing.T) {
	app := start(t)
	_, text := newKey(t, app, 0, ScopeIntrospect)
	for _, bad := range []string{"", "sk_", "sk__", text + "A", text[:len(text)-1], " " + text, text + "\n", strings.ToUpper(text), "sk_" + text, strings.Repeat("sk_", 1<<16), text[:20] + "'" + text[21:]} {
		if _, err := authenticate(app, bad, ScopeIntrospect); !errors.Is(err, ErrInvalid) {
			t.Errorf("%.80q: %v", bad, err)
		}
	}
	if k, err := authenticate(app, text, ScopeIntrospect); err != nil || k.Name != "gateway" {
		t.Errorf("the good one: %+v, %v", k, err)
	}
}

// The secret is nowhere in the database: its hash is, and the audit knows the key by id.
func TestStored(t *testing.T) {
	app := start(t)
	k, text := newKey(t, app, time.Hour, ScopeIntrospect)
	if _, done, err := revoke(app, k.ID); !done || err != nil {
		t.Fatal(done, err)
	}
	if _, done, err := revoke(app, k.ID); done || err != nil {
		t.Errorf("second revoke: %v, %v", done, err)
	}
	var stored []struct {
		Action  string `db:"action"`
		ID      string `db:"subject_id"`
		Details string `db:"details"`
	}
	if err := app.DB().Select("action", "subject_id", "details").From("audit_entries").Where(dbx.NewExp("action LIKE 'apikeys.%'")).OrderBy("id").All(&stored); err != nil {
		t.Fatal(err)
	}
	if len(stored) != 2 || stored[0].Action != "apikeys.created" || stored[1].Action != "apikeys.revoked" || stored[0].ID != k.ID || stored[1].ID != k.ID {
		t.Errorf("audit: %+v", stored)
	}
	secret := text[len(prefix)+idLength+1:]
	if len(secret) != 43 {
		t.Errorf("the secret has %d characters", len(secret))
	}
	r, err := find(app, k.ID)
	if err != nil || strings.Contains(string(r.Hash)+r.Name+r.Scopes+stored[0].Details, secret) {
		t.Errorf("the secret is stored: %+v, %v", r, err)
	}
}

// A key in constant use writes once a minute, and a use is no change of the key.
func TestLastUse(t *testing.T) {
	app := start(t)
	k, text := newKey(t, app, 0, ScopeIntrospect)
	s := other()
	now := time.Now()
	s.now = func() time.Time { return now }
	used := func() int64 {
		t.Helper()
		if _, err := s.authenticate(app, text); err != nil {
			t.Fatal(err)
		}
		r, err := find(app, k.ID)
		if err != nil {
			t.Fatal(err)
		}
		return r.LastUsed
	}
	first := used()
	if first != now.Unix() {
		t.Errorf("first use at %d", first)
	}
	now = now.Add(30 * time.Second)
	if got := used(); got != first {
		t.Error("a use after 30 s was written")
	}
	now = now.Add(31 * time.Second)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := s.authenticate(app, text); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := used(); got != now.Unix() {
		t.Error("a use after 61 s was not written")
	}
	if _, err := s.authenticate(app, text[:len(text)-1]+"!"); err == nil {
		t.Error("a wrong key was taken")
	}
}

// run executes the command as the program does and returns its output.
func run(t testing.TB, app *apptest.App, args ...string) (string, error) {
	t.Helper()
	root := &cobra.Command{Use: "satchel", SilenceErrors: true, SilenceUsage: true}
	root.PersistentFlags().Bool("json", false, "")
	root.AddCommand(New(settings.Defaults[Config](), deps(newLog())).Commands(app.Host)...)
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetArgs(append([]string{"apikeys"}, args...))
	err := root.Execute()
	return out.String(), err
}

func TestCommands(t *testing.T) {
	app := start(t)
	if out, err := run(t, app, "list"); err != nil || !strings.Contains(out, "There are no keys") {
		t.Errorf("%q, %v", out, err)
	}
	out, err := run(t, app, "create", "gateway", "--scope", "introspect", "--expires", "90d")
	text, _, _ := strings.Cut(out, "\n")
	if _, authErr := authenticate(app, text, ScopeIntrospect); err != nil || authErr != nil {
		t.Fatalf("%q: %v, %v", out, err, authErr)
	}
	out, err = run(t, app, "create", "other", "--scope", "introspect,introspect", "--rate", "5", "--network", "192.0.2.9/24", "--json")
	var made struct {
		ID, Key   string
		Scopes    []string
		ExpiresAt *time.Time
	}
	if jsonErr := json.Unmarshal([]byte(out), &made); err != nil || jsonErr != nil || made.ExpiresAt != nil || !slices.Equal(made.Scopes, []string{ScopeIntrospect}) {
		t.Fatalf("%q: %v, %v", out, err, jsonErr)
	}
	if _, err := authenticate(app, made.Key, ScopeIntrospect); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"is revoked", "already"} {
		if out, err := run(t, app, "revoke", made.ID); err != nil || !strings.Contains(out, want) {
			t.Errorf("%q, %v", out, err)
		}
	}
	out, err = run(t, app, "list", "--json")
	var listed struct {
		Keys []struct {
			Name      string
			ExpiresAt *time.Time
			RevokedAt *time.Time
		}
	}
	if jsonErr := json.Unmarshal([]byte(out), &listed); err != nil || jsonErr != nil || len(listed.Keys) != 2 || strings.Contains(out, made.Key) {
		t.Fatalf("%q: %v, %v", out, err, jsonErr)
	}
	for _, k := range listed.Keys {
		if (k.ExpiresAt != nil) != (k.Name == "gateway") || (k.RevokedAt != nil) != (k.Name == "other") {
			t.Errorf("%+v", k)
		}
	}
	out, err = run(t, app, "list")
	for _, want := range []string{"revoked", "active", "5/min", "192.0.2.0/24"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("no %s: %q, %v", want, out, err)
		}
	}
}

func TestCommandMistakes(t *testing.T) {
	app := start(t)
	for _, c := range []struct {
		exit int
		args []string
	}{
		{cli.ExitUsage, []string{"create", "x"}},
		{cli.ExitUsage, []string{"create", " ", "--scope", "introspect"}},
		{cli.ExitUsage, []string{"create", "a\nb", "--scope", "introspect"}},
		{cli.ExitUsage, []string{"create", strings.Repeat("x", 101), "--scope", "introspect"}},
		{cli.ExitUsage, []string{"create", "x", "--scope", "admin"}},
		{cli.ExitUsage, []string{"create", "x", "--scope", "operations"}},
		{cli.ExitUsage, []string{"create", "x", "--scope", "*"}},
		{cli.ExitUsage, []string{"create", "x", "--scope", "introspect", "--rate", "0"}},
		{cli.ExitUsage, []string{"create", "x", "--scope", "introspect", "--rate", "1000001"}},
		{cli.ExitUsage, []string{"create", "x", "--scope", "introspect", "--network", "192.0.2.0/33"}},
		{cli.ExitUsage, []string{"create", "x", "--scope", "introspect", "--network", "example.test"}},
		{cli.ExitUsage, []string{"create", "x", "--scope", "introspect", "--expires", "0d"}},
		{cli.ExitUsage, []string{"create", "x", "--scope", "introspect", "--expires", "-5d"}},
		{cli.ExitUsage, []string{"create", "x", "--scope", "introspect", "--expires", "soon"}},
		{cli.ExitUsage, []string{"create", "x", "--scope", "introspect", "--expires", "9999999999d"}},
		{cli.ExitUsage, []string{"create", "x", "--scope", "introspect", "--expires", "1s"}},
		{cli.ExitError, []string{"revoke", "unknown"}},
	} {
		_, err := run(t, app, c.args...)
		f, ok := errors.AsType[*cli.Failure](err)
		if !ok || f.Exit != c.exit || f.Next == "" {
			t.Errorf("%q: %v", c.args, err)
		}
	}
	if keys, _, err := page(app, 10, ""); err != nil || len(keys) != 0 {
		t.Errorf("keys were made: %+v, %v", keys, err)
	}
}
