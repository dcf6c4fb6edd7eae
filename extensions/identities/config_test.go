package identities_test

import (
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/identities"
	"github.com/satchelbase/satchel/extensions/settings"
)

func TestConfig(t *testing.T) {
	for text, want := range map[string]string{ // settings, and the key of the problem
		"":                                    "",
		"PROVIDERS=google GOOGLE_AUDIENCES=a": "",
		"PROVIDERS=facebook":                  "PROVIDERS",
		"PROVIDERS=google,google GOOGLE_AUDIENCES=a": "PROVIDERS",
		"PROVIDERS=google":                           "GOOGLE_AUDIENCES",
		"PROVIDERS=apple":                            "APPLE_AUDIENCES",
		"PROVIDERS=apple APPLE_AUDIENCES=a APPLE_KEY=x APPLE_TEAM=t APPLE_KEY_ID=k": "APPLE_KEY",
		"PROVIDERS=clerk CLERK_AUDIENCES=a":                                         "CLERK_ISSUER",
		"PROVIDERS=clerk CLERK_ISSUER=http://c.example CLERK_AUDIENCES=a":           "CLERK_ISSUER",
		"PROVIDERS=clerk CLERK_ISSUER=https://c.example":                            "CLERK_AUDIENCES",
		"PROVIDERS=auth0 AUTH0_ISSUER=https://a.example AUTH0_AUDIENCES=a":          "AUTH0_ISSUER",
		"PROVIDERS=firebase":                                                              "FIREBASE_PROJECT",
		"PROVIDERS=firebase FIREBASE_PROJECT=../x":                                        "FIREBASE_PROJECT",
		"PROVIDERS=supabase SUPABASE_URL=https://s.example/":                              "SUPABASE_URL",
		"PROVIDERS=supabase SUPABASE_URL=https://s.example SUPABASE_AUDIENCES=":           "SUPABASE_AUDIENCES",
		"PROVIDERS=microsoft MICROSOFT_TENANT=common MICROSOFT_AUDIENCES=a":               "MICROSOFT_TENANT",
		"PROVIDERS=oidc OIDC_ISSUER=https://o.example":                                    "OIDC_AUDIENCES",
		"PROVIDERS=oidc OIDC_ISSUER=https://u@o.example OIDC_AUDIENCES=a":                 "OIDC_ISSUER",
		"PROVIDERS=oidc OIDC_ISSUER=https://o.example OIDC_AUDIENCES=a OIDC_JWKS=http://": "OIDC_JWKS",
		"OIDC_ALGORITHMS=HS256":                                                           "OIDC_ALGORITHMS",
		"OIDC_ALGORITHMS=none":                                                            "OIDC_ALGORITHMS",
		"OIDC_NONCE=never":                                                                "OIDC_NONCE",
		"EMAIL_TRUST=google":                                                              "EMAIL_TRUST",
		"PROVIDERS=google GOOGLE_AUDIENCES=a LINK_VERIFIED=google":                        "LINK_VERIFIED",
		"PROVIDERS=supabase SUPABASE_URL=https://s.example EMAIL_TRUST=supabase":          "EMAIL_TRUST",
		"COLLECTIONS=_superusers":                                                         "COLLECTIONS",
		"COLLECTIONS=":                                                                    "COLLECTIONS",
		"PROVIDERS=microsoft MICROSOFT_TENANT=11111111-2222-3333-4444-555555555555 MICROSOFT_AUDIENCES=a EMAIL_TRUST=microsoft": "EMAIL_TRUST",
	} {
		var env []string
		for pair := range strings.FieldsSeq(text) {
			env = append(env, "SATCHEL_IDENTITIES_"+pair)
		}
		s := settings.Load(env)
		settings.Section[identities.Config](s, "identities")
		err := s.Err()
		if (err == nil) != (want == "") || (want != "" && !strings.HasPrefix(err.Error(), "SATCHEL_IDENTITIES_"+want+":")) || (err != nil && strings.Contains(err.Error(), "\n")) {
			t.Errorf("%s: %v, want one problem of %q", text, err, want)
		}
	}
}

// What loosens the guard for stubs does not reach production.
func TestProduction(t *testing.T) {
	w := newWorld(t)
	for name, more := range map[string][]string{
		"loopback": {"CA_FILE="}, "root": {"ALLOW_LOOPBACK=false"}, "neither": {"CA_FILE=", "ALLOW_LOOPBACK=false"}, "missing file": {"CA_FILE=/nowhere/ca.pem", "ALLOW_LOOPBACK=false"},
	} {
		for _, production := range []bool{true, false} {
			x := identities.New(w.config(t, more...), w.deps())
			app := core.NewBaseApp(core.BaseAppConfig{DataDir: t.TempDir()})
			h := &extensions.Host{App: app, Production: production, Logger: slog.New(slog.DiscardHandler)}
			router, err := apis.NewRouter(app)
			if err != nil {
				t.Fatal(err)
			}
			err = x.Serve(h, &core.ServeEvent{App: app, Router: router, Server: &http.Server{}})
			if refused := err != nil; refused != (name != "neither" && (production || name == "missing file")) {
				t.Errorf("%s, production %v: %v", name, production, err)
			}
			if name != "neither" && production {
				if got := x.Checks[0].Run(context.Background(), h); got.Level != extensions.Fail || got.Next == "" {
					t.Errorf("check: %+v", got)
				}
			}
		}
	}
}

func TestCheck(t *testing.T) {
	w := newWorld(t)
	for _, c := range []struct {
		name string
		more []string
		want extensions.Level
	}{
		{"none", []string{"PROVIDERS=", "EMAIL_TRUST="}, extensions.Skip},
		{"good", nil, extensions.OK},
		{"no such collection", []string{"COLLECTIONS=nobody"}, extensions.Fail},
		{"address required and not trusted", []string{"EMAIL_TRUST="}, extensions.Warn},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := identities.New(w.config(t, c.more...), w.deps())
			app := open(t, x)
			users(t, app, func(c *core.Collection) { c.Fields.GetByName(core.FieldNameEmail).(*core.EmailField).Required = true })
			if got := x.Checks[0].Run(t.Context(), app.Host); got.Level != c.want {
				t.Errorf("%+v", got)
			}
		})
	}
}

// Without the session feature PocketBase's own token is the session, and nothing can be linked.
func TestWithoutOthers(t *testing.T) {
	w := newWorld(t)
	app := open(t, identities.New(w.config(t), identities.Deps{}))
	_, token := app.User(t, ada)
	if r := app.Do(t, as(post(own, body(w.token(t, "ada", nil))), token, "")); r.Status != 403 {
		t.Errorf("link: %d %s", r.Status, r.Body)
	}
	in := w.enter(t, app, w.token(t, "bob", mail("bob@example.test")))
	if in.Session.ExpiresIn < 60 || in.Session.AccessToken == "" {
		t.Errorf("%+v", in)
	}
}
