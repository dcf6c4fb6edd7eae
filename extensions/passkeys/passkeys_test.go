package passkeys_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/passkeys"
	"github.com/satchelbase/satchel/extensions/settings"
)

const (
	rpID   = "example.test"
	origin = "https://app.example.test"

	base       = "/api/v1/auth/passkeys"
	beginNew   = base + "/options/register"
	beginEnter = base + "/options/sign-in"
	enter      = base + "/sign-in"
	ada        = "ada@example.test"
	eve        = "eve@example.test"
)

// world is a running application and what the extension told the outside.
type world struct {
	*apptest.App
	mu      sync.Mutex
	audited []string
	stale   bool // requests are not recent
	last    bool // passkeys are the last way in
	asked   []string
}

func (w *world) actions() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.audited)
}

func configured() passkeys.Config {
	cfg := settings.Defaults[passkeys.Config]()
	cfg.RPID, cfg.Origins = rpID, []string{origin, "android:apk-key-hash:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"}
	return cfg
}

func start(t testing.TB, cfg passkeys.Config, change ...func(*passkeys.Deps)) *world {
	t.Helper()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	w := &world{}
	deps := passkeys.Deps{
		Recent: &hook.Handler[*core.RequestEvent]{Id: "testRecent", Func: func(e *core.RequestEvent) error {
			w.mu.Lock()
			stale := w.stale
			w.mu.Unlock()
			if stale {
				return api.Fail(api.ErrForbidden, "prove it again")
			}
			return e.Next()
		}},
		Audit: func(_ core.App, _ *core.RequestEvent, action, outcome string, subject *core.Record, details map[string]any) error {
			w.mu.Lock()
			defer w.mu.Unlock()
			reason, _ := details["reason"].(string)
			w.audited = append(w.audited, strings.TrimSpace(action+" "+outcome+" "+subject.Email()+" "+reason))
			return nil
		},
		LastWayIn: func(_ core.App, record *core.Record, removing string) (bool, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.asked = append(w.asked, record.Email()+" "+removing)
			return w.last, nil
		},
	}
	for _, c := range change {
		c(&deps)
	}
	w.App = apptest.New(t, api.New(settings.Defaults[api.Config]()), passkeys.New(cfg, deps))
	return w
}

func (w *world) post(t testing.TB, path, token string, body any) apptest.Response {
	t.Helper()
	return w.Do(t, apptest.Request{Method: http.MethodPost, Path: path, Token: token, Body: body})
}

func data(t testing.TB, r apptest.Response) map[string]any {
	t.Helper()
	d, ok := r.JSON(t)["data"].(map[string]any)
	if !ok {
		t.Fatalf("no data: %d %s", r.Status, r.Body)
	}
	return d
}

// ceremony begins one and returns the options and the id of the challenge.
func (w *world) ceremony(t testing.TB, path, token string) (map[string]any, string) {
	t.Helper()
	d := data(t, w.post(t, path, token, nil))
	return d["options"].(map[string]any), d["challengeId"].(string)
}

func (w *world) register(t testing.TB, token string, d *device) apptest.Response {
	t.Helper()
	options, id := w.ceremony(t, beginNew, token)
	return w.post(t, base, token, map[string]any{"challengeId": id, "name": "Phone", "credential": d.create(t, options)})
}

func (w *world) signIn(t testing.TB, d *device) apptest.Response {
	t.Helper()
	options, id := w.ceremony(t, beginEnter, "")
	return w.post(t, enter, "", map[string]any{"challengeId": id, "credential": d.get(t, options)})
}

func (w *world) registered(t testing.TB, email string) (record *core.Record, token string, d *device) {
	t.Helper()
	record, token = w.User(t, email)
	d = newDevice(t)
	want(t, w.register(t, token, d), 201, "")
	return record, token, d
}

func (w *world) count(t testing.TB, table string, where dbx.HashExp) int {
	t.Helper()
	var n int
	if err := w.DB().Select("count(*)").From(table).Where(where).Row(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func (w *world) exec(t testing.TB, sql string) {
	t.Helper()
	if _, err := w.NonconcurrentDB().NewQuery(sql).Execute(); err != nil {
		t.Fatal(err)
	}
}

func want(t testing.TB, r apptest.Response, status int, code string) {
	t.Helper()
	if r.Status != status || r.Code() != code {
		t.Fatalf("answer %d %q, want %d %q: %s", r.Status, r.Code(), status, code, r.Body)
	}
}

func TestRegisterAndSignIn(t *testing.T) {
	w := start(t, configured())
	record, token := w.User(t, ada)
	d := newDevice(t)
	options, id := w.ceremony(t, beginNew, token)
	selection := options["authenticatorSelection"].(map[string]any)
	if options["rp"].(map[string]any)["id"] != rpID || selection["residentKey"] != "required" || selection["userVerification"] != "required" ||
		options["attestation"] != "none" || options["timeout"] != 300000.0 {
		t.Errorf("options: %v", options)
	}
	credential := d.create(t, options)
	if len(d.handle) != 32 || bytes.Contains(d.handle, []byte(record.Id)) || bytes.Contains(d.handle, []byte(ada)) {
		t.Errorf("user handle %x", d.handle)
	}
	made := w.post(t, base, token, map[string]any{"challengeId": id, "name": "  Ada's phone ", "credential": credential})
	want(t, made, 201, "")
	if got := data(t, made); got["name"] != "Ada's phone" || got["synced"] != true || got["lastUsedAt"] != nil || got["id"] == b64(d.id) {
		t.Errorf("passkey: %v", got)
	}

	options, id = w.ceremony(t, beginEnter, "")
	if allowed, given := options["allowCredentials"]; (given && len(allowed.([]any)) > 0) || options["userVerification"] != "required" || options["rpId"] != rpID {
		t.Errorf("options: %v", options)
	}
	in := w.post(t, enter, "", map[string]any{"challengeId": id, "credential": d.get(t, options)})
	want(t, in, 200, "")
	body := in.JSON(t)
	if body["record"].(map[string]any)["id"] != record.Id || body["token"] == "" || len(body) != 2 || in.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("answer: %v %s", in.Header, in.Body)
	}
	list := w.Do(t, apptest.Request{Path: base, Token: token}).JSON(t)["data"].([]any)
	if len(list) != 1 || list[0].(map[string]any)["lastUsedAt"] == nil {
		t.Errorf("list: %v", list)
	}
	if got := w.actions(); !slices.Equal(got, []string{"passkeys.added success " + ada, "passkeys.sign_in success " + ada}) {
		t.Errorf("audited %q", got)
	}

	// The same handle for the next one, which excludes the first; self attestation is as good as none.
	options, _ = w.ceremony(t, beginNew, token)
	excluded := options["excludeCredentials"].([]any)
	if len(excluded) != 1 || excluded[0].(map[string]any)["id"] != b64(d.id) {
		t.Errorf("excluded: %v", excluded)
	}
	second := newDevice(t)
	second.packed, second.flags = true, userPresent|userVerified
	want(t, w.register(t, token, second), 201, "")
	if !bytes.Equal(second.handle, d.handle) {
		t.Error("another user handle")
	}
	want(t, w.signIn(t, second), 200, "")
	d.origin = "android:apk-key-hash:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
	want(t, w.signIn(t, d), 200, "")
}

// Whatever is wrong with an assertion, the answer is the same, and nobody is signed in.
func TestHostileSignIns(t *testing.T) {
	w := start(t, configured())
	_, _, mine := w.registered(t, ada)
	_, _, theirs := w.registered(t, eve)
	flip := func(b []byte) { b[len(b)-1] ^= 1 }
	cases := map[string]func(d *device){
		"wrong origin":            func(d *device) { d.origin = "https://app.example.test.evil.test" },
		"origin of another port":  func(d *device) { d.origin = origin + ":8443" },
		"plain http":              func(d *device) { d.origin = "http://app.example.test" },
		"unknown app":             func(d *device) { d.origin = "android:apk-key-hash:BBECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8" },
		"wrong RP id":             func(d *device) { d.rpID = "evil.test" },
		"user not verified":       func(d *device) { d.flags &^= userVerified },
		"user not present":        func(d *device) { d.flags &^= userPresent },
		"answer to registration":  func(d *device) { d.typeGet = "webauthn.create" },
		"tampered signature":      func(d *device) { d.tamper = func(_, _, signature []byte) { flip(signature) } },
		"tampered data":           func(d *device) { d.tamper = func(authData, _, _ []byte) { flip(authData) } },
		"another user's handle":   func(d *device) { d.handle = theirs.handle },
		"another user's key":      func(d *device) { d.key = theirs.key },
		"another user's id":       func(d *device) { d.id = theirs.id },
		"unknown credential":      func(d *device) { d.id = newDevice(t).id },
		"unknown handle":          func(d *device) { d.handle = newDevice(t).id },
		"no handle":               func(d *device) { d.handle = nil },
		"no longer backed up key": func(d *device) { d.flags &^= backupEligible | backedUp },
	}
	var answer map[string]any
	for name, lie := range cases {
		t.Run(name, func(t *testing.T) {
			d := *mine
			lie(&d)
			r := w.signIn(t, &d)
			want(t, r, 400, passkeys.ErrCredential.Name)
			got := r.JSON(t)
			delete(got, "timestamp")
			delete(got, "requestId")
			if answer == nil {
				answer = got
			}
			if a, b := mustJSON(t, answer), mustJSON(t, got); a != b {
				t.Errorf("answers differ: %s and %s", a, b)
			}
		})
	}
	t.Run("not a credential", func(t *testing.T) {
		for _, credential := range []any{map[string]any{}, "text", 1, []any{}, map[string]any{"id": strings.Repeat("A", 60000)}} {
			_, id := w.ceremony(t, beginEnter, "")
			want(t, w.post(t, enter, "", map[string]any{"challengeId": id, "credential": credential}), 400, passkeys.ErrCredential.Name)
		}
	})
	if got := w.actions(); slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "passkeys.sign_in success") }) {
		t.Errorf("audited: %q", got)
	}
	want(t, w.signIn(t, mine), 200, "")
}

func mustJSON(t testing.TB, v any) string {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func TestHostileRegistrations(t *testing.T) {
	w := start(t, configured())
	_, token := w.User(t, ada)
	_, other := w.User(t, eve)
	cases := map[string]func(d *device){
		"wrong origin":           func(d *device) { d.origin = "https://evil.test" },
		"wrong RP id":            func(d *device) { d.rpID = "evil.test" },
		"user not verified":      func(d *device) { d.flags &^= userVerified },
		"user not present":       func(d *device) { d.flags &^= userPresent },
		"answer to sign-in":      func(d *device) { d.typeCreate = "webauthn.get" },
		"tampered attestation":   func(d *device) { d.packed, d.tamper = true, func(_, _, s []byte) { s[len(s)-1] ^= 1 } },
		"backed up but may not":  func(d *device) { d.flags = userPresent | userVerified | backedUp },
		"credential id too long": func(d *device) { d.id = make([]byte, 1024) },
	}
	for name, lie := range cases {
		t.Run(name, func(t *testing.T) {
			d := newDevice(t)
			lie(d)
			want(t, w.register(t, token, d), 400, passkeys.ErrCredential.Name)
		})
	}
	d := newDevice(t)
	options, id := w.ceremony(t, beginNew, token)
	body := map[string]any{"challengeId": id, "credential": d.create(t, options)}
	want(t, w.post(t, base, other, body), 400, passkeys.ErrChallenge.Name) // and the owner's still works:
	want(t, w.post(t, base, token, body), 201, "")
	want(t, w.post(t, base, token, body), 400, passkeys.ErrChallenge.Name)
	want(t, w.register(t, other, d), 409, passkeys.ErrRegistered.Name)
	for _, c := range []struct {
		body any
		code string
	}{
		{map[string]any{}, "api.validation_failed"},
		{map[string]any{"challengeId": "x", "credential": map[string]any{}, "admin": true}, "api.validation_failed"},
		{map[string]any{"challengeId": "x", "credential": map[string]any{}, "name": strings.Repeat("n", 65)}, "api.validation_failed"},
		{"[]", "api.body_malformed"},
		{"{", "api.body_malformed"},
	} {
		want(t, w.post(t, base, token, c.body), 400, c.code)
	}
	_, id = w.ceremony(t, beginNew, token)
	huge := map[string]any{"id": strings.Repeat("A", 70<<10)}
	want(t, w.post(t, base, token, map[string]any{"challengeId": id, "credential": huge}), 400, passkeys.ErrCredential.Name)
}

func TestChallengesWorkOnce(t *testing.T) {
	w := start(t, configured())
	_, token, d := w.registered(t, ada)
	options, id := w.ceremony(t, beginEnter, "")
	body := map[string]any{"challengeId": id, "credential": d.get(t, options)}
	statuses := make([]int, 4)
	var group sync.WaitGroup
	for i := range statuses {
		group.Go(func() { statuses[i] = w.post(t, enter, "", body).Status })
	}
	group.Wait()
	slices.Sort(statuses)
	if !slices.Equal(statuses, []int{200, 400, 400, 400}) {
		t.Errorf("one challenge at once: %v", statuses)
	}
	want(t, w.post(t, enter, "", body), 400, passkeys.ErrChallenge.Name)

	// A failed use ends it, too.
	options, id = w.ceremony(t, beginEnter, "")
	liar := *d
	liar.origin = "https://evil.test"
	want(t, w.post(t, enter, "", map[string]any{"challengeId": id, "credential": liar.get(t, options)}), 400, passkeys.ErrCredential.Name)
	want(t, w.post(t, enter, "", map[string]any{"challengeId": id, "credential": d.get(t, options)}), 400, passkeys.ErrChallenge.Name)

	// The answer to one challenge does not fit another, and a registration's is none for a sign-in.
	first, _ := w.ceremony(t, beginEnter, "")
	_, id = w.ceremony(t, beginEnter, "")
	want(t, w.post(t, enter, "", map[string]any{"challengeId": id, "credential": d.get(t, first)}), 400, passkeys.ErrCredential.Name)
	options, id = w.ceremony(t, beginNew, token)
	want(t, w.post(t, enter, "", map[string]any{"challengeId": id, "credential": d.get(t, options)}), 400, passkeys.ErrChallenge.Name)

	options, id = w.ceremony(t, beginEnter, "")
	w.exec(t, "UPDATE passkeys_challenges SET expires_at = unixepoch() - 1")
	want(t, w.post(t, enter, "", map[string]any{"challengeId": id, "credential": d.get(t, options)}), 400, passkeys.ErrChallenge.Name)
	w.ceremony(t, beginEnter, "")
	if n := w.count(t, "passkeys_challenges", nil); n != 1 {
		t.Errorf("%d challenges after the sweep", n)
	}
}

func TestChallengesAreBounded(t *testing.T) {
	w := start(t, configured())
	_, token := w.User(t, ada)
	w.exec(t, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10050)
		INSERT INTO passkeys_challenges SELECT 'x' || i, 'sign-in', '', '', '{}', unixepoch() + 100 FROM n`)
	w.ceremony(t, beginNew, token)
	w.ceremony(t, beginNew, token)
	_, id := w.ceremony(t, beginEnter, "")
	if n := w.count(t, "passkeys_challenges", dbx.HashExp{"purpose": "sign-in"}); n != 10000 {
		t.Errorf("%d sign-ins are under way", n)
	}
	if n := w.count(t, "passkeys_challenges", dbx.HashExp{"id": id}); n != 1 {
		t.Error("the newest was dropped")
	}
	if n := w.count(t, "passkeys_challenges", dbx.HashExp{"purpose": "register"}); n != 1 {
		t.Errorf("%d registrations are under way", n)
	}
}

// A counter of 0 is what synced passkeys send; one that does not grow says that somebody copied the key.
func TestSignatureCounter(t *testing.T) {
	w := start(t, configured())
	_, _, d := w.registered(t, ada)
	want(t, w.signIn(t, d), 200, "")
	want(t, w.signIn(t, d), 200, "")
	d.count = 5
	want(t, w.signIn(t, d), 200, "")
	for _, count := range []uint32{5, 4, 0} {
		d.count = count
		want(t, w.signIn(t, d), 400, passkeys.ErrCredential.Name)
	}
	d.count = 6
	want(t, w.signIn(t, d), 200, "")
	n := 0
	for _, line := range w.actions() {
		if strings.Contains(line, "denied "+ada+" the signature counter went backwards") {
			n++
		}
	}
	if n != 3 {
		t.Errorf("audited: %q", w.actions())
	}
}

func TestManage(t *testing.T) {
	w := start(t, configured())
	_, token, _ := w.registered(t, ada)
	_, other, _ := w.registered(t, eve)
	_, root := w.Superuser(t)
	second := newDevice(t)
	id := data(t, w.register(t, token, second))["id"].(string)
	do := func(method, path, token string, body any) apptest.Response {
		return w.Do(t, apptest.Request{Method: method, Path: path, Token: token, Body: body})
	}
	renamed := do("PATCH", base+"/"+id, token, map[string]any{"name": "Key"})
	want(t, renamed, 200, "")
	if data(t, renamed)["name"] != "Key" {
		t.Errorf("renamed: %s", renamed.Body)
	}
	want(t, do("PATCH", base+"/"+id, other, map[string]any{"name": "Mine"}), 404, "api.not_found")
	want(t, do("DELETE", base+"/"+id, other, nil), 404, "api.not_found")
	want(t, do("PATCH", base+"/"+id, token, map[string]any{"name": 1}), 400, "api.validation_failed")
	for _, r := range []apptest.Response{
		do("GET", base, "", nil), do("POST", beginNew, "", nil), do("POST", base, "", nil), do("DELETE", base+"/"+id, "", nil), do("PATCH", base+"/"+id, "", nil),
	} {
		want(t, r, 401, "api.unauthorized")
	}
	want(t, do("POST", beginNew, root, nil), 403, passkeys.ErrCollection.Name)

	w.stale = true
	for _, r := range []apptest.Response{do("POST", beginNew, token, nil), do("POST", base, token, nil), do("DELETE", base+"/"+id, token, nil)} {
		want(t, r, 403, "api.forbidden")
	}
	w.stale, w.last = false, true
	want(t, do("DELETE", base+"/"+id, token, nil), 204, "") // another one is left, so nobody is asked
	want(t, w.signIn(t, second), 400, passkeys.ErrCredential.Name)
	list := do("GET", base, token, nil).JSON(t)["data"].([]any)
	if len(list) != 1 || len(w.asked) != 0 {
		t.Fatalf("list %v, asked %q", list, w.asked)
	}
	id = list[0].(map[string]any)["id"].(string)
	want(t, do("DELETE", base+"/"+id, token, nil), 409, passkeys.ErrLastWayIn.Name)
	w.last = false
	want(t, do("DELETE", base+"/"+id, token, nil), 204, "")
	if !slices.Equal(w.asked, []string{ada + " passkey", ada + " passkey"}) {
		t.Errorf("asked %q", w.asked)
	}
}

func TestAtMostTwenty(t *testing.T) {
	w := start(t, configured())
	_, token := w.User(t, ada)
	for range 19 {
		want(t, w.register(t, token, newDevice(t)), 201, "")
	}
	options, id := w.ceremony(t, beginNew, token)
	late := map[string]any{"challengeId": id, "credential": newDevice(t).create(t, options)}
	w.exec(t, `INSERT INTO passkeys_credentials (id, credential, collection, record, name, public_key, flags, sign_count, aaguid, transports, created_at)
		SELECT 'copy', x'01', collection, record, name, public_key, flags, sign_count, aaguid, transports, created_at FROM passkeys_credentials LIMIT 1`)
	want(t, w.post(t, base, token, late), 409, passkeys.ErrLimit.Name)
	want(t, w.post(t, beginNew, token, nil), 409, passkeys.ErrLimit.Name)
}

func TestRowsGoWithTheirOwner(t *testing.T) {
	w := start(t, configured())
	record, token, d := w.registered(t, ada)
	other, otherToken, _ := w.registered(t, eve)
	w.ceremony(t, beginNew, token)
	w.ceremony(t, beginNew, otherToken)
	if err := w.Delete(record); err != nil {
		t.Fatal(err)
	}
	tables := []string{"passkeys_users", "passkeys_credentials", "passkeys_challenges"}
	for _, table := range tables {
		if w.count(t, table, dbx.HashExp{"record": record.Id}) != 0 || w.count(t, table, dbx.HashExp{"record": other.Id}) == 0 {
			t.Errorf("%s after the user was deleted", table)
		}
	}
	want(t, w.signIn(t, d), 400, passkeys.ErrCredential.Name)
	if err := w.Delete(other.Collection()); err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		if n := w.count(t, table, nil); n != 0 {
			t.Errorf("%s has %d rows after the collection was deleted", table, n)
		}
	}
}

// A user who was deleted behind the back of the hooks cannot come back.
func TestOrphan(t *testing.T) {
	w := start(t, configured())
	record, _, d := w.registered(t, ada)
	w.exec(t, "DELETE FROM users WHERE id = '"+record.Id+"'")
	want(t, w.signIn(t, d), 400, passkeys.ErrCredential.Name)
}

// A passkey is two factors, so PocketBase's MFA asks for no second step, and a rule that keeps users out still does.
func TestWithStockMFA(t *testing.T) {
	w := start(t, configured())
	_, _, d := w.registered(t, ada)
	users, err := w.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	users.MFA.Enabled, users.OTP.Enabled = true, true
	if err := w.Save(users); err != nil {
		t.Fatal(err)
	}
	want(t, w.signIn(t, d), 200, "")
	if n := w.count(t, "_mfas", nil); n != 0 {
		t.Errorf("%d mfas are left", n)
	}
	rule := "name = 'somebody else'"
	users.AuthRule = &rule
	if err := w.Save(users); err != nil {
		t.Fatal(err)
	}
	want(t, w.signIn(t, d), 403, "api.forbidden")
	if n := w.count(t, "_mfas", nil); n != 0 {
		t.Errorf("%d mfas are left", n)
	}
}

func TestNotConfigured(t *testing.T) {
	for _, publicURL := range []string{"", "http://192.168.1.2:8090", "https://[::1]", "http://example.test", "://"} {
		w := start(t, settings.Defaults[passkeys.Config](), func(d *passkeys.Deps) { d.PublicURL = publicURL })
		want(t, w.post(t, beginEnter, "", nil), 501, passkeys.ErrNotConfigured.Name)
	}
	for _, publicURL := range []string{"http://localhost:8090", "https://api.example.test/base", "https://example.test:8443"} {
		w := start(t, settings.Defaults[passkeys.Config](), func(d *passkeys.Deps) { d.PublicURL = publicURL })
		want(t, w.post(t, beginEnter, "", nil), 200, "")
	}
}

func TestCheck(t *testing.T) {
	for level, cfg := range map[extensions.Level]passkeys.Config{
		extensions.OK: configured(), extensions.Info: {}, extensions.Fail: {RPID: "example.test", Origins: []string{"https://elsewhere.test"}},
	} {
		if got := passkeys.New(cfg, passkeys.Deps{}).Checks[0].Run(t.Context(), nil); got.Level != level {
			t.Errorf("%+v: %+v", cfg, got)
		}
	}
}

func TestConfig(t *testing.T) {
	for _, c := range []struct {
		name string
		cfg  passkeys.Config
		bad  string
	}{
		{"nothing", passkeys.Config{}, ""},
		{"all", passkeys.Config{
			RPID: "example.test", Origins: []string{"https://example.test", "http://localhost:3000"}, AppleApps: []string{"ABCDE12345.com.example.app"},
			AndroidApps: []string{"com.example.app=" + strings.Repeat("0A:", 31) + "0B"},
		}, ""},
		{"address", passkeys.Config{RPID: "192.0.2.1"}, "RP_ID: "},
		{"path", passkeys.Config{Origins: []string{"https://example.test/"}}, "ORIGINS: "},
		{"plain", passkeys.Config{Origins: []string{"http://example.test"}}, "ORIGINS: "},
		{"team", passkeys.Config{AppleApps: []string{"com.example.app"}}, "APPLE_APPS: "},
		{"short fingerprint", passkeys.Config{AndroidApps: []string{"com.example.app=0A:0B"}}, "ANDROID_APPS: "},
		{"no package", passkeys.Config{AndroidApps: []string{"app=" + strings.Repeat("0A", 32)}}, "ANDROID_APPS: "},
	} {
		err := c.cfg.Validate()
		if (err == nil) != (c.bad == "") || (err != nil && !strings.HasPrefix(err.Error(), c.bad)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestWellKnown(t *testing.T) {
	fingerprint := strings.Repeat("0A:", 31) + "0B"
	cfg := configured()
	cfg.AppleApps, cfg.AndroidApps = []string{"ABCDE12345.com.example.app"}, []string{"com.example.app=" + strings.ToLower(fingerprint)}
	w := start(t, cfg)
	for path, body := range map[string]string{
		"/.well-known/apple-app-site-association": `{"webcredentials":{"apps":["ABCDE12345.com.example.app"]}}`,
		"/.well-known/assetlinks.json": `[{"relation":["delegate_permission/common.get_login_creds"],"target":{"namespace":"android_app",` +
			`"package_name":"com.example.app","sha256_cert_fingerprints":["` + fingerprint + `"]}}]`,
	} {
		r := w.Do(t, apptest.Request{Path: path})
		if r.Status != 200 || string(r.Body) != body || r.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: %d %v %s", path, r.Status, r.Header, r.Body)
		}
	}
	// The app of the fingerprint may use passkeys without another setting.
	_, _, d := w.registered(t, ada)
	raw := append(bytes.Repeat([]byte{0x0a}, 31), 0x0b)
	d.origin = "android:apk-key-hash:" + base64.RawURLEncoding.EncodeToString(raw)
	want(t, w.signIn(t, d), 200, "")

	own := start(t, cfg, func(d *passkeys.Deps) {
		d.Public = fstest.MapFS{".well-known/assetlinks.json": &fstest.MapFile{Data: []byte("[]")}}
	})
	if r := own.Do(t, apptest.Request{Path: "/.well-known/assetlinks.json"}); r.Status == 200 {
		t.Errorf("the site's own file is hidden: %s", r.Body)
	}
	if r := start(t, configured()).Do(t, apptest.Request{Path: "/.well-known/assetlinks.json"}); r.Status == 200 {
		t.Errorf("nothing is configured: %s", r.Body)
	}
}

// codeByMail makes the one-time password that PocketBase would send to the address.
func codeByMail(t testing.TB, app core.App, user *core.Record) map[string]any {
	t.Helper()
	users, err := app.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	users.OTP.Enabled = true
	if err := app.Save(users); err != nil {
		t.Fatal(err)
	}
	otp := core.NewOTP(app)
	otp.SetCollectionRef(users.Id)
	otp.SetRecordRef(user.Id)
	otp.SetSentTo(user.Email())
	otp.SetPassword("12345678")
	if err := app.Save(otp); err != nil {
		t.Fatal(err)
	}
	return map[string]any{"otpId": otp.Id, "password": "12345678"}
}

// Somebody signs up with another's address and leaves a passkey behind. When the owner of the address signs in by a code
// that was mailed there, it is gone; the passkey of a user who only confirms the own address stays.
func TestTakeover(t *testing.T) {
	for _, mfa := range []bool{false, true} {
		w := start(t, configured())
		record, _, d := w.registered(t, ada)
		_, _, other := w.registered(t, eve)
		w.exec(t, "UPDATE users SET verified = FALSE")
		body := codeByMail(t, w, record)
		if mfa {
			users, err := w.FindCollectionByNameOrId("users")
			if err != nil {
				t.Fatal(err)
			}
			users.MFA.Enabled = true
			if err := w.Save(users); err != nil {
				t.Fatal(err)
			}
		}
		status := map[bool]int{false: 200, true: 401}[mfa] // with MFA it is the first of two
		want(t, w.post(t, "/api/v1/collections/users/auth-with-otp", "", body), status, "")
		want(t, w.signIn(t, d), 400, passkeys.ErrCredential.Name)
		want(t, w.signIn(t, other), 200, "")
		if got := w.actions(); !slices.Contains(got, "passkeys.dropped success "+ada) {
			t.Errorf("audited: %q", got)
		}
		if mfa {
			continue
		}
		confirmed, err := w.FindAuthRecordByEmail("users", eve)
		if err != nil {
			t.Fatal(err)
		}
		confirmed.SetVerified(true)
		if err := w.Save(confirmed); err != nil {
			t.Fatal(err)
		}
		want(t, w.signIn(t, other), 200, "")
	}
}
