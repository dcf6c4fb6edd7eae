package totp_test

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"maps"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pquerna/otp/totp"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
	factor "github.com/satchelbase/satchel/extensions/totp"
)

const (
	enrol   = "/api/v1/auth/totp"
	confirm = "/api/v1/auth/totp/confirm"
	verify  = "/api/v1/auth/totp/verify"
	renew   = "/api/v1/auth/totp/recovery-codes"
	signIn  = "/api/v1/collections/users/auth-with-password"
	ada     = "ada@example.test"
)

// vault is AES-256-GCM with a key of the test.
type vault struct{ key [32]byte }

func newVault(t testing.TB) *vault {
	t.Helper()
	v := &vault{}
	if _, err := rand.Read(v.key[:]); err != nil {
		t.Fatal(err)
	}
	return v
}

func (v *vault) aead() (cipher.AEAD, error) {
	block, err := aes.NewCipher(v.key[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func (v *vault) Seal(aad string, plain []byte) (string, error) {
	a, err := v.aead()
	if err != nil {
		return "", err
	}
	return base64.StdEncoding.EncodeToString(a.Seal(nil, nil, plain, []byte(aad))), nil
}

func (v *vault) Open(aad, sealed string) ([]byte, error) {
	a, err := v.aead()
	if err != nil {
		return nil, err
	}
	raw, err := base64.StdEncoding.DecodeString(sealed)
	if err != nil {
		return nil, err
	}
	return a.Open(nil, nil, raw, []byte(aad))
}

func (v *vault) Key(purpose string) []byte {
	mac := hmac.New(sha256.New, v.key[:])
	mac.Write([]byte(purpose))
	return mac.Sum(nil)
}

// world is a running application and what the extension told the outside.
type world struct {
	*apptest.App
	mu      sync.Mutex
	audited []string // "action outcome"
	stale   bool     // requests are not recent
	issued  []string // methods for which a session would have been made
}

func (w *world) actions() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.audited)
}

func (w *world) sessions() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.issued)
}

// start runs the extension with a stand-in for the session layer: a hook at its priority that notes every sign-in that
// reaches it and, as sessions do, forgets it when the rest fails.
func start(t testing.TB) *world {
	t.Helper()
	w := &world{}
	x := factor.New(settings.Defaults[factor.Config](), factor.Deps{
		Vault: newVault(t),
		Recent: &hook.Handler[*core.RequestEvent]{Id: "testRecent", Func: func(e *core.RequestEvent) error {
			w.mu.Lock()
			stale := w.stale
			w.mu.Unlock()
			if stale {
				return api.Fail(api.ErrForbidden, "prove it again")
			}
			return e.Next()
		}},
		Audit: func(_ core.App, _ *core.RequestEvent, action, outcome string, subject *core.Record, _ map[string]any) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.audited = append(w.audited, action+" "+outcome+" "+subject.Email())
			return nil
		},
		Exempt: []string{"passkey"},
	})
	probe := extensions.Extension{Name: "probe", Bind: func(h *extensions.Host) error {
		h.App.OnRecordAuthRequest().Bind(&hook.Handler[*core.RecordAuthRequestEvent]{Id: "testSessions", Priority: 999, Func: func(e *core.RecordAuthRequestEvent) error {
			if err := e.Next(); err != nil {
				return err
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			w.issued = append(w.issued, e.AuthMethod)
			return nil
		}})
		return nil
	}, Serve: func(_ *extensions.Host, e *core.ServeEvent) error {
		e.Router.POST("/test/auth/{method}", authenticate)
		e.Router.POST("/test/auth/{$}", authenticate)
		return nil
	}}
	w.App = apptest.New(t, api.New(settings.Defaults[api.Config]()), x, probe)
	return w
}

// user signs up and enrols. It returns the secret and the recovery codes.
type user struct {
	*core.Record
	token, secret string
	recovery      []string
}

func (w *world) enrolled(t testing.TB, email string) *user {
	t.Helper()
	record, token := w.User(t, email)
	u := &user{Record: record, token: token}
	began := w.Do(t, apptest.Request{Method: "POST", Path: enrol, Token: token})
	if began.Status != http.StatusCreated {
		t.Fatalf("begin: %d %s", began.Status, began.Body)
	}
	u.secret = data(t, began)["secret"].(string)
	done := w.Do(t, apptest.Request{Method: "POST", Path: confirm, Token: token, Body: map[string]any{"code": u.code(t, 0)}})
	if done.Status != http.StatusOK {
		t.Fatalf("confirm: %d %s", done.Status, done.Body)
	}
	for _, c := range data(t, done)["recoveryCodes"].([]any) {
		u.recovery = append(u.recovery, c.(string))
	}
	w.forget(t)
	w.mu.Lock()
	w.audited, w.issued = nil, nil
	w.mu.Unlock()
	return u
}

// forget lets tests use another code within the same half minute, and fail again.
func (w *world) forget(t testing.TB) {
	w.exec(t, "UPDATE totp_secrets SET last_step = 0, failures = 0, locked_until = 0")
}

func (w *world) exec(t testing.TB, sql string) {
	t.Helper()
	if _, err := w.NonconcurrentDB().NewQuery(sql).Execute(); err != nil {
		t.Fatal(err)
	}
}

func (w *world) count(t testing.TB, table string, where dbx.HashExp) int {
	t.Helper()
	var n int
	if err := w.DB().Select("count(*)").From(table).Where(where).Row(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// code is what the user's phone shows, with its clock off by some steps.
func (u *user) code(t testing.TB, steps int) string {
	t.Helper()
	code, err := totp.GenerateCode(u.secret, time.Now().Add(time.Duration(steps)*30*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	return code
}

// wrong is a code that the user's phone shows at no near time.
func (u *user) wrong(t testing.TB) string {
	t.Helper()
	for _, code := range []string{"000000", "111111", "222222", "333333", "444444", "555555"} {
		if !slices.Contains([]string{u.code(t, -1), u.code(t, 0), u.code(t, 1), u.code(t, 2)}, code) {
			return code
		}
	}
	panic("unreachable: four codes cannot be six")
}

// first is the first step of a sign-in.
func (w *world) first(t testing.TB, email string) string {
	t.Helper()
	r := w.Do(t, apptest.Request{Method: "POST", Path: signIn, Body: map[string]any{"identity": email, "password": apptest.Password}})
	id, _ := r.JSON(t)["mfaId"].(string)
	if r.Status != http.StatusUnauthorized || id == "" {
		t.Fatalf("first step: %d %s", r.Status, r.Body)
	}
	return id
}

func (w *world) second(t testing.TB, mfa string, proof map[string]any) apptest.Response {
	t.Helper()
	body := map[string]any{"mfaId": mfa}
	maps.Copy(body, proof)
	return w.Do(t, apptest.Request{Method: "POST", Path: verify, Body: body})
}

func code(c string) map[string]any     { return map[string]any{"code": c} }
func recovery(c string) map[string]any { return map[string]any{"recoveryCode": c} }

func data(t testing.TB, r apptest.Response) map[string]any {
	t.Helper()
	d, ok := r.JSON(t)["data"].(map[string]any)
	if !ok {
		t.Fatalf("no data: %s", r.Body)
	}
	return d
}

func want(t testing.TB, r apptest.Response, status int, code string) {
	t.Helper()
	if r.Status != status || r.Code() != code {
		t.Fatalf("answer %d %q, want %d %q: %s", r.Status, r.Code(), status, code, r.Body)
	}
}
