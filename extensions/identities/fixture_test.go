package identities_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/authcache"
	"github.com/satchelbase/satchel/extensions/identities"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/internal/stubs/idp"
	"github.com/satchelbase/satchel/extensions/sessions"
	"github.com/satchelbase/satchel/extensions/settings"
)

const (
	exchange = "/api/v1/auth/exchange"
	own      = "/api/v1/auth/identities"
)

// world is a provider, and applications that trust it.
type world struct {
	*idp.Server
	caFile string

	mu      sync.Mutex
	stale   bool // the callers' sign-in is not recent
	audited []string
	revoked []string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	provider, err := idp.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = provider.Close() })
	w := &world{Server: provider, caFile: filepath.Join(t.TempDir(), "ca.pem")}
	if err := os.WriteFile(w.caFile, provider.CAPEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) deps() identities.Deps {
	note := func(list *[]string, text string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		*list = append(*list, text)
	}
	return identities.Deps{
		Recent: &hook.Handler[*core.RequestEvent]{Id: "recent", Func: func(e *core.RequestEvent) error {
			w.mu.Lock()
			stale := w.stale
			w.mu.Unlock()
			if stale {
				return api.Fail(errRecent, "")
			}
			return e.Next()
		}},
		RevokeSessions: func(_ core.App, record *core.Record, reason string) error {
			note(&w.revoked, record.Id+" "+reason)
			return nil
		},
		Audit: func(_ core.App, _ *core.RequestEvent, action, outcome string, _ *core.Record, _ map[string]any) error {
			note(&w.audited, action+" "+outcome)
			return nil
		},
	}
}

var errRecent = &extensions.Code{Name: "sessions.recent_auth_required", Status: 403, Title: "Sign in again"}

// config is a generic provider at the stub, with settings laid over.
func (w *world) config(t testing.TB, more ...string) identities.Config {
	t.Helper()
	env := append([]string{
		"PROVIDERS=oidc", "OIDC_ISSUER=" + w.Issuer, "OIDC_AUDIENCES=" + idp.Audience, "EMAIL_TRUST=oidc", "CA_FILE=" + w.caFile, "ALLOW_LOOPBACK=true",
	}, more...)
	for i := range env {
		env[i] = "SATCHEL_IDENTITIES_" + env[i]
	}
	s := settings.Load(env)
	cfg := settings.Section[identities.Config](s, "identities")
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	return cfg
}

func (w *world) start(t testing.TB, more ...string) *apptest.App {
	t.Helper()
	return open(t, identities.New(w.config(t, more...), w.deps()))
}

// open starts an application whose users may have no address. A migration makes it so, because that is done once and not
// in every test.
func open(t testing.TB, x extensions.Extension) *apptest.App {
	t.Helper()
	optional := extensions.Extension{Name: "optional", Migrations: []extensions.Migration{{Unix: 1795320099, What: "email", Up: func(app core.App) error {
		c, err := app.FindCollectionByNameOrId("users")
		if err != nil {
			return err
		}
		c.Fields.GetByName(core.FieldNameEmail).(*core.EmailField).Required = false
		return app.Save(c)
	}}}}
	var version atomic.Uint64 // nothing is taken for unchanged
	changed := func(string) uint64 { return version.Add(1) }
	cfg := settings.Defaults[sessions.Config]()
	cfg.StockTokens = sessions.StockOn
	vault := secret.Fixed([]byte("root key of the tests"))
	log := audit.NewLog(vault)
	sess := sessions.New(cfg, sessions.Deps{Vault: vault, Audit: log.Append, Version: changed})
	return apptest.New(t, api.New(settings.Defaults[api.Config]()), audit.New(audit.Config{}, log, nil),
		authcache.New(authcache.Config{}, authcache.NewCache(authcache.Config{}, changed, sess.Verify)), sess.Extension(), x, optional)
}

func users(t testing.TB, app *apptest.App, change func(c *core.Collection)) {
	t.Helper()
	c, err := app.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	change(c)
	if err := app.Save(c); err != nil {
		t.Fatal(err)
	}
}

func (w *world) token(t testing.TB, subject string, extra map[string]any) string {
	t.Helper()
	return w.sign(t, "ES256", w.Claims(subject, extra), nil)
}

func (w *world) sign(t testing.TB, alg string, claims, header map[string]any) string {
	t.Helper()
	token, err := w.Sign(alg, claims, header)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func mail(address string) map[string]any {
	return map[string]any{"email": address, "email_verified": true}
}

func body(token string, more ...string) map[string]any {
	b := map[string]any{"provider": "oidc", "idToken": token}
	for i := 0; i+1 < len(more); i += 2 {
		b[more[i]] = more[i+1]
	}
	return b
}

func post(path string, b any) apptest.Request {
	return apptest.Request{Method: "POST", Path: path, Body: b}
}

// as adds a caller and a device.
func as(r apptest.Request, token, device string) apptest.Request {
	r.Token = token
	if device != "" {
		r.Header = map[string]string{"X-Device-Id": device}
	}
	return r
}

type session struct {
	AccessToken string `json:"accessToken"`
	TokenType   string `json:"tokenType"`
	ExpiresIn   int    `json:"expiresIn"`
}

type signedIn struct {
	Session session `json:"session"`
	Record  struct {
		ID       string `json:"id"`
		Email    string `json:"email"`
		Verified bool   `json:"verified"`
		Name     string `json:"name"`
	} `json:"record"`
	IsNew bool `json:"isNew"`
}

func data[T any](t testing.TB, r apptest.Response, status int) T {
	t.Helper()
	var out struct {
		Data T `json:"data"`
	}
	if r.Status != status {
		t.Fatalf("status %d, want %d: %s", r.Status, status, r.Body)
	}
	if err := json.Unmarshal(r.Body, &out); err != nil {
		t.Fatal(err)
	}
	return out.Data
}

func (w *world) enter(t testing.TB, app *apptest.App, token string) signedIn {
	t.Helper()
	return data[signedIn](t, app.Do(t, post(exchange, body(token))), 200)
}

func refused(t testing.TB, r apptest.Response, status int, code string) {
	t.Helper()
	if r.Status != status || r.Code() != code {
		t.Errorf("%d %q, want %d %q: %s", r.Status, r.Code(), status, code, r.Body)
	}
}

func count(t testing.TB, app *apptest.App, table, where string) int {
	t.Helper()
	var n int
	query := "SELECT count(*) FROM " + table
	if where != "" {
		query += " WHERE " + where
	}
	if err := app.DB().NewQuery(query).Row(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func sha(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:])
}

func nowMillis() string { return strconv.FormatInt(time.Now().UnixMilli(), 10) }

func long(n int) string { return strings.Repeat("x", n) }
