package attestation_test

import (
	"encoding/json"
	"maps"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/attestation"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/internal/stubs/idp"
	"github.com/satchelbase/satchel/extensions/settings"
)

const (
	project = "123456789012"
	appID   = "1:123456789012:ios:0123456789abcdef"
	create  = "/api/collections/users/records"
)

type world struct{ *idp.Server }

func newWorld(t testing.TB) world {
	t.Helper()
	provider, err := idp.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = provider.Close() })
	return world{provider}
}

func (w world) start(t testing.TB, routes, mode string) *apptest.App {
	t.Helper()
	s := settings.Load([]string{
		"SATCHEL_ATTESTATION_PROJECT=" + project, "SATCHEL_ATTESTATION_APPS=" + appID + ",1:123456789012:android:x",
		"SATCHEL_ATTESTATION_ROUTES=" + routes, "SATCHEL_ATTESTATION_MODE=" + mode,
	})
	cfg := settings.Section[attestation.Config](s, "attestation")
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	client := outbound.NewClient(outbound.Options{Root: w.CA, AllowLoopback: true})
	// /api/v1/probe answers what a handler sees.
	probe := extensions.Extension{Name: "probe", Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
		g.Any("/{rest...}", func(e *core.RequestEvent) error {
			a, ok := attestation.Of(e)
			return api.Write(e, http.StatusOK, map[string]any{"attested": ok, "app": a.App, "id": a.ID})
		})
	}}
	return apptest.New(t, api.New(settings.Defaults[api.Config]()), attestation.NewAt(cfg, client, w.JWKS()), probe)
}

func (w world) token(t testing.TB, change, header map[string]any) string {
	t.Helper()
	claims := map[string]any{"iss": "https://firebaseappcheck.googleapis.com/" + project, "aud": []string{"projects/" + project, "projects/example"}}
	maps.Copy(claims, change)
	alg := "RS256"
	if a, ok := header["useAlg"].(string); ok {
		alg = a
		delete(header, "useAlg")
	}
	token, err := w.Sign(alg, w.Claims(appID, claims), header)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func with(token string) map[string]string {
	if token == "" {
		return nil
	}
	return map[string]string{attestation.Header: token}
}

func TestTokens(t *testing.T) {
	w := newWorld(t)
	app := w.start(t, "/api/v1/probe/enforced=enforce,/api/v1/probe/logged=log", "off")
	none, _ := w.None(w.Claims(appID, nil))
	confused, _ := w.Confused(w.Claims(appID, nil))
	required, invalid := attestation.ErrRequired.Name, attestation.ErrInvalid.Name
	for _, c := range []struct{ name, token, code string }{
		{"good", w.token(t, nil, nil), ""},
		{"the other app", w.token(t, map[string]any{"sub": "1:123456789012:android:x"}, nil), ""},
		{"none", "", required},
		{"garbage", "garbage", invalid},
		{"long", strings.Repeat("x", 9000), invalid},
		{"alg none", none, invalid},
		{"HS256 with the public key", confused, invalid},
		{"ES256", w.token(t, nil, map[string]any{"useAlg": "ES256"}), invalid},
		{"another project", w.token(t, map[string]any{"iss": "https://firebaseappcheck.googleapis.com/999999999999"}, nil), invalid},
		{"another audience", w.token(t, map[string]any{"aud": []string{"projects/999999999999"}}, nil), invalid},
		{"no audience", w.token(t, map[string]any{"aud": nil}, nil), invalid},
		{"an app that is not listed", w.token(t, map[string]any{"sub": "1:123456789012:web:evil"}, nil), invalid},
		{"no app", w.token(t, map[string]any{"sub": nil}, nil), invalid},
		{"expired", w.token(t, map[string]any{"exp": time.Now().Add(-time.Minute).Unix()}, nil), invalid},
		{"no exp", w.token(t, map[string]any{"exp": nil}, nil), invalid},
		{"iat in the future", w.token(t, map[string]any{"iat": time.Now().Add(time.Minute).Unix()}, nil), invalid},
		{"typ", w.token(t, nil, map[string]any{"typ": "at+jwt"}), invalid},
		{"crit", w.token(t, nil, map[string]any{"crit": []string{"exp"}}), invalid},
		{"unknown key", w.token(t, nil, map[string]any{"kid": "made up"}), invalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := app.Do(t, apptest.Request{Path: "/api/v1/probe/enforced", Header: with(c.token)})
			if want := map[bool]int{true: 200, false: 401}[c.code == ""]; r.Status != want || r.Code() != c.code {
				t.Errorf("enforced: %d %s", r.Status, r.Body)
			}
			if c.code != "" && !strings.HasPrefix(r.Header.Get("WWW-Authenticate"), "AppCheck") {
				t.Errorf("WWW-Authenticate %q", r.Header.Get("WWW-Authenticate"))
			}
			attested := `"attested":` + strconv.FormatBool(c.code == "")
			r = app.Do(t, apptest.Request{Path: "/api/v1/probe/logged", Header: with(c.token)})
			if r.Status != 200 || !strings.Contains(string(r.Body), attested) {
				t.Errorf("logged: %d %s", r.Status, r.Body)
			}
			r = app.Do(t, apptest.Request{Path: "/api/v1/probe/other", Header: with(c.token)})
			if r.Status != 200 || !strings.Contains(string(r.Body), `"attested":false`) {
				t.Errorf("off: %d %s", r.Status, r.Body)
			}
		})
	}
	if n := w.KeySets(); n != 1 {
		t.Errorf("%d requests for keys, want 1", n)
	}
}

func TestRoutes(t *testing.T) {
	w := newWorld(t)
	const routes = "POST /api/v1/collections/users/records/=enforce,/api/v1/probe=log,/api/v1/probe/deep=enforce,/api/v1/probe/deep/open=off,DELETE /api/v1/probe/deep/open=enforce"
	app := w.start(t, routes, "off")
	users, err := app.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	_, root := app.Superuser(t)
	body := `{"email":"ada@example.test","password":"correct-horse","passwordConfirm":"correct-horse"}`
	for _, c := range []struct {
		method, path, token string
		refused             bool
	}{
		{"POST", create, "", true},
		{"POST", "/api/v1/collections/users/records", "", true},
		{"POST", "/api/collections/USERS/records", "", true},
		{"POST", "/api/collections/user%73/records", "", true},
		{"POST", "/api/collections/" + users.Id + "/records", "", true},
		{"POST", "/api/collections/users/records?x=1", "", true},
		{"POST", create, root, false},
		{"GET", create, "", false},
		{"OPTIONS", create, "", false},
		{"GET", "/api/v1/probe", "", false},
		{"GET", "/api/v1/probe/deeper", "", false},
		{"GET", "/api/v1/probe/deep", "", true},
		{"HEAD", "/api/v1/probe/deep", "", true},
		{"GET", "/api/v1/probe/deep/down/there", "", true},
		{"GET", "/api/v1/probe/dee%70", "", true},
		{"GET", "/api/v1/probe/deep/open", "", false},
		{"DELETE", "/api/v1/probe/deep/open", "", true},
		{"GET", "/api/health", "", false},
	} {
		r := app.Do(t, apptest.Request{Method: c.method, Path: c.path, Token: c.token, Body: map[bool]any{true: body}[c.method == "POST"]})
		if (r.Status == 401) != c.refused {
			t.Errorf("%s %s: %d %s", c.method, c.path, r.Status, r.Body)
		}
	}
}

// With a strict default the dashboard and probes still work.
func TestDefault(t *testing.T) {
	w := newWorld(t)
	app := w.start(t, "/api/files=off", "enforce")
	app.Superuser(t)
	for _, c := range []struct {
		method, path, body string
		status             int
	}{
		{"GET", create, "", 401},
		{"GET", "/api/v1/nothing", "", 404},
		{"GET", "/api/health", "", 200},
		{"GET", "/api/files/users/x/y", "", 404},
		{"POST", "/api/collections/_superusers/auth-with-password", `{"identity":"root@example.test","password":"` + apptest.Password + `"}`, 200},
		{"POST", "/api/collections/users/auth-with-password", `{"identity":"root@example.test","password":"x"}`, 401},
	} {
		if r := app.Do(t, apptest.Request{Method: c.method, Path: c.path, Body: c.body}); r.Status != c.status {
			t.Errorf("%s %s: %d %s", c.method, c.path, r.Status, r.Body)
		}
	}
}

func batch(t testing.TB, method, url string) string {
	t.Helper()
	raw, err := json.Marshal(map[string]any{"requests": []any{
		map[string]any{"method": "POST", "url": "/api/collections/notes/records", "body": map[string]any{}},
		map[string]any{"method": method, "url": url, "body": map[string]any{"id": "abcdefghijklmno"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// What is inside a batch is not a way around.
func TestBatch(t *testing.T) {
	w := newWorld(t)
	app := w.start(t, "POST "+create+"=once,PATCH "+create+"=enforce,/api/batch=once", "off")
	plain := w.start(t, "POST "+create+"=enforce", "off")
	users, err := plain.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		method, url string
		refused     bool
	}{
		{"POST", create, true},
		{"POST", create + "?fields=id", true},
		{"POST", "/api/v1/collections/users/records", true},
		{"POST", "/api/collections/Users/records", true},
		{"POST", "/api/collections/" + users.Id + "/records", true},
		{"PUT", create, true},
		{"PATCH", create + "/abc", false},
		{"POST", "/api/collections/notes/records", false},
	} {
		r := plain.Do(t, apptest.Request{Method: "POST", Path: "/api/v1/batch", Body: batch(t, c.method, c.url)})
		if (r.Status == 401 && r.Code() == attestation.ErrRequired.Name) != c.refused {
			t.Errorf("%s %s: %d %s", c.method, c.url, r.Status, r.Body)
		}
	}
	token := w.token(t, nil, nil)
	send := func() apptest.Response {
		return app.Do(t, apptest.Request{Method: "POST", Path: "/api/v1/batch", Header: with(token), Body: batch(t, "POST", create)})
	}
	if r := send(); r.Status == 401 {
		t.Errorf("one token for a batch: %s", r.Body)
	}
	if r := send(); r.Status != 401 || r.Code() != attestation.ErrInvalid.Name {
		t.Errorf("again: %d %s", r.Status, r.Body)
	}
}

func TestOnce(t *testing.T) {
	w := newWorld(t)
	app := w.start(t, "/api/v1/probe/once=once,/api/v1/probe/enforced=enforce", "off")
	status := func(path, token string, want int) {
		t.Helper()
		if r := app.Do(t, apptest.Request{Path: "/api/v1/probe/" + path, Header: with(token)}); r.Status != want {
			t.Errorf("%s: %d, want %d: %s", path, r.Status, want, r.Body)
		}
	}
	token := w.token(t, nil, nil)
	status("enforced", token, 200)
	status("enforced", token, 200)
	status("once", token, 200)
	status("once", token, 401)
	status("enforced", token, 200)
	status("once", w.token(t, map[string]any{"jti": nil}, nil), 401)
	for range 25 {
		status("once", w.token(t, nil, nil), 200)
	}
	if _, err := app.DB().NewQuery("UPDATE attestation_tokens SET expiresAt = 1").Execute(); err != nil {
		t.Fatal(err)
	}
	status("once", w.token(t, nil, nil), 200)
	var n int
	if err := app.DB().NewQuery("SELECT count(*) FROM attestation_tokens").Row(&n); err != nil || n != 7 {
		t.Errorf("%d ids are kept, want 7 (%v)", n, err)
	}
}

func TestGoogleIsDown(t *testing.T) {
	w := newWorld(t)
	w.Behave(idp.Down)
	app := w.start(t, "/api/v1/probe/enforced=enforce,/api/v1/probe/logged=log", "off")
	r := app.Do(t, apptest.Request{Path: "/api/v1/probe/enforced", Header: with(w.token(t, nil, nil))})
	if r.Status != 503 || r.Code() != api.ErrUnavailable.Name || r.Header.Get("Retry-After") == "" {
		t.Errorf("enforced: %d %s", r.Status, r.Body)
	}
	if r := app.Do(t, apptest.Request{Path: "/api/v1/probe/logged", Header: with(w.token(t, nil, nil))}); r.Status != 200 {
		t.Errorf("logged: %d %s", r.Status, r.Body)
	}
}

func TestConfig(t *testing.T) {
	for text, want := range map[string]string{
		"":                                      "",
		"MODE=log":                              "PROJECT APPS",
		"MODE=log PROJECT=example":              "PROJECT APPS",
		"MODE=on":                               "MODE",
		"MODE=once PROJECT=123456789012 APPS=a": "",
		"ROUTES=/api/v1/x=enforce":              "PROJECT APPS",
		"ROUTES=/api/v1/x=off":                  "",
		"ROUTES=/api/v1/x":                      "ROUTES",
		"ROUTES=x=log":                          "ROUTES",
		"ROUTES=/api/v1/x=sometimes":            "ROUTES",
		"ROUTES=/api/{x}=log":                   "ROUTES",
		"ROUTES=FETCH_/api/x=log":               "ROUTES",
		"ROUTES=get_/api/x=log":                 "ROUTES",
		"ROUTES=/api/collections/a=off,/api/v1/collections/a/=off": "ROUTES",
	} {
		var env []string
		for pair := range strings.FieldsSeq(text) {
			env = append(env, "SATCHEL_ATTESTATION_"+strings.ReplaceAll(pair, "_/", " /"))
		}
		s := settings.Load(env)
		settings.Section[attestation.Config](s, "attestation")
		var keys []string
		if err := s.Err(); err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				key, _, _ := strings.Cut(line, ":")
				keys = append(keys, strings.TrimPrefix(key, "SATCHEL_ATTESTATION_"))
			}
		}
		if got := strings.Join(keys, " "); got != want {
			t.Errorf("%s: problems of %q, want %q", text, got, want)
		}
	}
}
