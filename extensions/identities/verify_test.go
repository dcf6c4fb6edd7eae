package identities_test

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"maps"
	"strconv"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/identities"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/stubs/idp"
)

func at(d time.Duration) int64 { return time.Now().Add(d).Unix() }

func TestTokens(t *testing.T) {
	w := newWorld(t)
	half := func(sum []byte) string { return base64.RawURLEncoding.EncodeToString(sum[:len(sum)/2]) }
	sum256, sum512 := sha256.Sum256([]byte("access")), sha512.Sum512([]byte("access"))
	claims := func(extra map[string]any) func(testing.TB) string {
		return func(t testing.TB) string { return w.token(t, "ada", extra) }
	}
	header := func(h map[string]any) func(testing.TB) string {
		return func(t testing.TB) string { return w.sign(t, "ES256", w.Claims("ada", nil), h) }
	}
	invalid, nonce := identities.ErrTokenInvalid.Name, identities.ErrNonceInvalid.Name
	refusing := w.start(t) // every refused token leaves it empty
	for _, c := range []struct {
		name  string
		token func(t testing.TB) string
		more  []string
		code  string // empty is accepted
	}{
		{"good", claims(nil), nil, ""},
		{"RS256", func(t testing.TB) string { return w.sign(t, "RS256", w.Claims("ada", nil), nil) }, nil, ""},
		{"EdDSA", func(t testing.TB) string { return w.sign(t, "EdDSA", w.Claims("ada", nil), nil) }, nil, ""},
		{"garbage", func(testing.TB) string { return "garbage" }, nil, invalid},
		{"alg none", func(t testing.TB) string { s, _ := w.None(w.Claims("ada", nil)); return s }, nil, invalid},
		{"HS256 with the public key", func(t testing.TB) string { s, _ := w.Confused(w.Claims("ada", nil)); return s }, nil, invalid},
		{"signature cut off", func(t testing.TB) string { s := w.token(t, "ada", nil); return s[:len(s)-4] }, nil, invalid},
		{"changed", func(t testing.TB) string { s := w.token(t, "ada", nil); return s[:60] + "A" + s[61:] }, nil, invalid},
		{"unknown kid", header(map[string]any{"kid": "made up"}), nil, invalid},
		{"kid is a number", header(map[string]any{"kid": 7}), nil, invalid},
		{"no kid", header(map[string]any{"kid": ""}), nil, invalid},
		{"access token", header(map[string]any{"typ": "at+jwt"}), nil, invalid},
		{"access token, long form", header(map[string]any{"typ": "application/AT+JWT"}), nil, invalid},
		{"logout token", header(map[string]any{"typ": "logout+jwt"}), nil, invalid},
		{"no typ", header(map[string]any{"typ": ""}), nil, ""},
		{"crit", header(map[string]any{"crit": []string{"b64"}}), nil, invalid},
		{"key in the header", header(map[string]any{"kid": "x", "jku": "https://attacker.example/keys", "jwk": map[string]any{"kty": "oct"}}), nil, invalid},

		{"another issuer", claims(map[string]any{"iss": "https://attacker.example"}), nil, invalid},
		{"issuer with a slash", claims(map[string]any{"iss": w.Issuer + "/"}), nil, invalid},
		{"no issuer", claims(map[string]any{"iss": nil}), nil, invalid},
		{"another audience", claims(map[string]any{"aud": "other"}), nil, invalid},
		{"no audience", claims(map[string]any{"aud": nil}), nil, invalid},
		{"audience is a number", claims(map[string]any{"aud": 1}), nil, invalid},
		{"audience in a list of one", claims(map[string]any{"aud": []string{idp.Audience}}), nil, ""},
		{"several audiences without azp", claims(map[string]any{"aud": []string{"other", idp.Audience}}), nil, invalid},
		{"several audiences with azp", claims(map[string]any{"aud": []string{"other", idp.Audience}, "azp": idp.Audience}), nil, ""},
		{"azp", claims(map[string]any{"azp": idp.Audience}), nil, ""},
		{"another azp", claims(map[string]any{"azp": "other"}), nil, invalid},
		{"azp is not a string", claims(map[string]any{"azp": []string{idp.Audience}}), nil, invalid},
		{"azp is empty", claims(map[string]any{"azp": ""}), nil, invalid},
		{"expired", claims(map[string]any{"exp": at(-10 * time.Second)}), nil, invalid},
		{"no exp", claims(map[string]any{"exp": nil}), nil, invalid},
		{"exp is text", claims(map[string]any{"exp": "tomorrow"}), nil, invalid},
		{"iat in the future", claims(map[string]any{"iat": at(time.Minute)}), nil, invalid},
		{"iat eleven minutes ago", claims(map[string]any{"iat": at(-11 * time.Minute)}), nil, invalid},
		{"iat nine minutes ago", claims(map[string]any{"iat": at(-9 * time.Minute)}), nil, ""},
		{"no iat", claims(map[string]any{"iat": nil}), nil, invalid},
		{"not yet", claims(map[string]any{"nbf": at(time.Minute)}), nil, invalid},
		{"no sub", claims(map[string]any{"sub": nil}), nil, invalid},
		{"empty sub", claims(map[string]any{"sub": ""}), nil, invalid},
		{"sub is a number", claims(map[string]any{"sub": 7}), nil, invalid},
		{"sub of 255", claims(map[string]any{"sub": long(255)}), nil, ""},
		{"sub of 256", claims(map[string]any{"sub": long(256)}), nil, invalid},

		{"access token fits", claims(map[string]any{"at_hash": half(sum256[:])}), []string{"accessToken", "access"}, ""},
		{"access token fits, Ed25519", func(t testing.TB) string {
			return w.sign(t, "EdDSA", w.Claims("ada", map[string]any{"at_hash": half(sum512[:])}), nil)
		}, []string{"accessToken", "access"}, ""},
		{"another access token", claims(map[string]any{"at_hash": half(sum256[:])}), []string{"accessToken", "other"}, invalid},
		{"access token without at_hash", claims(nil), []string{"accessToken", "access"}, invalid},
		{"at_hash without access token", claims(map[string]any{"at_hash": half(sum256[:])}), nil, ""},

		{"nonce", claims(map[string]any{"nonce": "n-1"}), []string{"nonce", "n-1"}, ""},
		{"another nonce", claims(map[string]any{"nonce": "n-1"}), []string{"nonce", "n-2"}, nonce},
		{"hashed nonce where raw is expected", claims(map[string]any{"nonce": sha("n-1")}), []string{"nonce", "n-1"}, nonce},
		{"nonce in the token only", claims(map[string]any{"nonce": "n-1"}), nil, nonce},
		{"nonce in the request only", claims(nil), []string{"nonce", "n-1"}, nonce},
		{"empty nonce in the token", claims(map[string]any{"nonce": ""}), nil, nonce},
	} {
		t.Run(c.name, func(t *testing.T) {
			app := refusing
			if c.code == "" {
				app = w.start(t)
			}
			r := app.Do(t, post(exchange, body(c.token(t), c.more...)))
			if r.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("Cache-Control %q", r.Header.Get("Cache-Control"))
			}
			if c.code != "" {
				refused(t, r, 401, c.code)
				if n := count(t, app, "users", "") + count(t, app, "identities_links", "") + count(t, app, "identities_tokens", ""); n != 0 {
					t.Errorf("%d rows were written", n)
				}
				return
			}
			if got := data[signedIn](t, r, 200); !got.IsNew || got.Session.AccessToken == "" || got.Session.TokenType != "Bearer" || got.Record.ID == "" {
				t.Errorf("answer %s", r.Body)
			}
		})
	}
}

func TestInput(t *testing.T) {
	w := newWorld(t)
	start := func(t testing.TB) *apptest.App { return w.start(t) }
	malformed, invalid := api.ErrBodyMalformed.Name, api.ErrValidation.Name
	apptest.Run(t, start, []apptest.Scenario{
		{Name: "empty", Request: post(exchange, ""), Status: 400, Code: "api.validation_failed"},
		{Name: "not an object", Request: post(exchange, "[]"), Status: 400, Code: malformed},
		{Name: "null", Request: post(exchange, "null"), Status: 400, Code: malformed},
		{Name: "twice", Request: post(exchange, `{"provider":"oidc","provider":"x"}`), Status: 400, Code: malformed},
		{
			Name: "all mistakes", Request: post(exchange, `{"provider":1,"nonse":"x","id_token":"y","accessToken":[]}`), Status: 400, Code: invalid,
			Contains: []string{`"provider"`, `"idToken"`, `"nonse"`, `"id_token"`, `"accessToken"`},
		},
		{Name: "long", Request: post(exchange, body(long(17000))), Status: 400, Code: invalid, Contains: []string{`"idToken"`}},
		{Name: "issuer in the request", Request: post(exchange, body("x", "issuer", "https://attacker.example")), Status: 400, Code: invalid},
		{Name: "unknown provider", Request: post(exchange, `{"provider":"nobody","idToken":"x"}`), Status: 400, Code: identities.ErrProviderUnknown.Name},
		{Name: "provider that is off", Request: post(exchange, `{"provider":"google","idToken":"x"}`), Status: 400, Code: identities.ErrProviderUnknown.Name},
		{Name: "superusers", Request: post(exchange, body("x", "collection", "_superusers")), Status: 400, Code: invalid},
		{Name: "superusers by id", Request: post(exchange, body("x", "collection", "pbc_3142635823")), Status: 400, Code: invalid},
		{Name: "collection that is not listed", Request: post(exchange, body("x", "collection", "members")), Status: 400, Code: invalid},
		{Name: "GET", Request: apptest.Request{Path: exchange}, Status: 404},
		{Name: "stale token attached", Request: as(post(exchange, body("x")), "garbage", ""), Status: 401, Code: identities.ErrTokenInvalid.Name},
		{
			Name: "alias answers errors in PocketBase's form", Request: post("/api/auth/sync", body("x")), Status: 401,
			Contains: []string{`"status":401`, `"data":{}`}, NotContains: []string{"requestId"},
		},
		{Name: "alias", Request: post("/api/auth/sync", ""), Before: func(t testing.TB, _ *apptest.App, r *apptest.Request) {
			r.Body = body(w.token(t, "ada", nil))
		}, Status: 200, Contains: []string{`"isNew":true`, `"accessToken"`}},
	})
}

// 200 tokens with made-up keys are one request to the provider.
func TestUnknownKeyStorm(t *testing.T) {
	w := newWorld(t)
	app := w.start(t)
	for i := range 200 {
		token := w.sign(t, "ES256", w.Claims("ada", nil), map[string]any{"kid": "made-up-" + strconv.Itoa(i)})
		refused(t, app.Do(t, post(exchange, body(token))), 401, identities.ErrTokenInvalid.Name)
	}
	if n := w.KeySets(); n != 1 {
		t.Errorf("%d requests for keys, want 1", n)
	}
	w.enter(t, app, w.token(t, "ada", nil))
}

func TestHostileProvider(t *testing.T) {
	w := newWorld(t)
	for name, behaviour := range map[string]idp.Behaviour{
		"huge": idp.Huge, "many keys": idp.ManyKeys, "redirect": idp.Redirect, "wrong content": idp.Wrong, "down": idp.Down,
		"no keys": idp.NoKeys, "another issuer": idp.Stranger, "http": idp.Downgrade,
	} {
		t.Run(name, func(t *testing.T) {
			w.Behave(behaviour)
			defer w.Behave(idp.Fine)
			app := w.start(t)
			r := app.Do(t, post(exchange, body(w.token(t, "ada", nil))))
			refused(t, r, 503, identities.ErrProviderUnavailable.Name)
			if seconds, err := strconv.Atoi(r.Header.Get("Retry-After")); err != nil || seconds < 1 || seconds > 60 {
				t.Errorf("Retry-After %q", r.Header.Get("Retry-After"))
			}
		})
	}
	t.Run("loopback is not allowed", func(t *testing.T) {
		app := w.start(t, "ALLOW_LOOPBACK=false")
		refused(t, app.Do(t, post(exchange, body(w.token(t, "ada", nil)))), 503, identities.ErrProviderUnavailable.Name)
	})
	t.Run("its certificate is not trusted", func(t *testing.T) {
		app := w.start(t, "CA_FILE=")
		refused(t, app.Do(t, post(exchange, body(w.token(t, "ada", nil)))), 503, identities.ErrProviderUnavailable.Name)
	})
}

// Every preset takes its own provider's tokens, and not those that differ in what matters for it.
func TestPresets(t *testing.T) {
	w := newWorld(t)
	const tenant, object = "11111111-2222-3333-4444-555555555555", "aaaaaaaa-2222-3333-4444-555555555555"
	all := []string{
		"PROVIDERS=google,apple,clerk,auth0,firebase,supabase,microsoft", "EMAIL_TRUST=google,apple,clerk,auth0,firebase",
		"GOOGLE_AUDIENCES=web", "GOOGLE_AZP=web,android", "APPLE_AUDIENCES=com.example.app", "CLERK_ISSUER=https://clerk.example.com", "CLERK_AUDIENCES=app",
		"CLERK_AZP=https://app.example.com", "AUTH0_ISSUER=https://example.eu.auth0.com/", "AUTH0_AUDIENCES=client", "FIREBASE_PROJECT=example-app",
		"SUPABASE_URL=https://example.supabase.co", "MICROSOFT_TENANT=" + tenant, "MICROSOFT_AUDIENCES=client",
	}
	start := func(t testing.TB) *apptest.App {
		return open(t, identities.NewAt(w.config(t, all...), w.deps(), w.JWKS()))
	}
	google := map[string]any{"iss": "https://accounts.google.com", "aud": "web", "azp": "android", "nonce": "n", "email": "ada@gmail.com", "email_verified": true}
	apple := map[string]any{"iss": "https://appleid.apple.com", "aud": "com.example.app", "nonce": sha("n"), "email": "ada@icloud.com", "email_verified": "true"}
	clerk := map[string]any{"iss": "https://clerk.example.com", "aud": "app", "azp": "https://app.example.com"}
	auth0 := map[string]any{"iss": "https://example.eu.auth0.com/", "aud": "client", "email": "ada@example.com", "email_verified": true}
	firebase := map[string]any{"iss": "https://securetoken.google.com/example-app", "aud": "example-app", "firebase": map[string]any{"sign_in_provider": "password"}}
	supabase := map[string]any{"iss": "https://example.supabase.co/auth/v1", "aud": "authenticated", "email": "ada@example.com", "email_verified": true}
	microsoft := map[string]any{"iss": "https://login.microsoftonline.com/" + tenant + "/v2.0", "aud": "client", "tid": tenant, "oid": object, "email": "ada@example.com", "email_verified": true}
	invalid, nonce := identities.ErrTokenInvalid.Name, identities.ErrNonceInvalid.Name
	for _, c := range []struct {
		name, provider, alg string
		base, change        map[string]any
		nonce               string
		code                string
		email               string // of the new user
	}{
		{"google", "google", "RS256", google, nil, "n", "", "ada@gmail.com"},
		{"google, short issuer", "google", "RS256", google, map[string]any{"iss": "accounts.google.com"}, "n", "", "ada@gmail.com"},
		{"google, hashed nonce", "google", "RS256", google, map[string]any{"nonce": sha("n")}, "n", "", "ada@gmail.com"},
		{"google, workspace", "google", "RS256", google, map[string]any{"email": "ada@example.com", "hd": "example.com"}, "n", "", "ada@example.com"},
		{"google, address of others", "google", "RS256", google, map[string]any{"email": "ada@example.com"}, "n", "", ""},
		{"google, unverified", "google", "RS256", google, map[string]any{"email_verified": false}, "n", "", ""},
		{"google without nonce", "google", "RS256", google, map[string]any{"nonce": nil}, "", nonce, ""},
		{"google, ES256", "google", "ES256", google, nil, "n", invalid, ""},
		{"google, another app", "google", "RS256", google, map[string]any{"azp": "other"}, "n", invalid, ""},
		{"apple", "apple", "RS256", apple, nil, "n", "", "ada@icloud.com"},
		{"apple, raw nonce", "apple", "RS256", apple, map[string]any{"nonce": "n"}, "n", nonce, ""},
		{"apple without nonce", "apple", "RS256", apple, map[string]any{"nonce": nil}, "", nonce, ""},
		{"apple, unverified", "apple", "RS256", apple, map[string]any{"email_verified": "false"}, "n", "", ""},
		{"clerk", "clerk", "RS256", clerk, nil, "", "", ""},
		{"clerk, native app", "clerk", "RS256", clerk, map[string]any{"azp": nil}, "", "", ""},
		{"clerk, another site", "clerk", "RS256", clerk, map[string]any{"azp": "https://evil.example"}, "", invalid, ""},
		{"clerk, session token", "clerk", "RS256", clerk, map[string]any{"aud": nil}, "", invalid, ""},
		{"auth0", "auth0", "RS256", auth0, nil, "", "", "ada@example.com"},
		{"auth0, access token", "auth0", "RS256", auth0, map[string]any{"scope": "openid"}, "", invalid, ""},
		{"auth0, no slash", "auth0", "RS256", auth0, map[string]any{"iss": "https://example.eu.auth0.com"}, "", invalid, ""},
		{"firebase", "firebase", "RS256", firebase, nil, "", "", ""},
		{"firebase, another project", "firebase", "RS256", firebase, map[string]any{"iss": "https://securetoken.google.com/other"}, "", invalid, ""},
		{"firebase, anonymous", "firebase", "RS256", firebase, map[string]any{"firebase": map[string]any{"sign_in_provider": "anonymous"}, "email": "ada@example.com", "email_verified": true}, "", "", ""},
		{"supabase", "supabase", "ES256", supabase, nil, "", "", ""},
		{"supabase, service role", "supabase", "ES256", supabase, map[string]any{"aud": nil}, "", invalid, ""},
		{"microsoft", "microsoft", "RS256", microsoft, nil, "", "", ""},
		{"microsoft, another tenant", "microsoft", "RS256", microsoft, map[string]any{"tid": object}, "", invalid, ""},
		{"microsoft without oid", "microsoft", "RS256", microsoft, map[string]any{"oid": nil}, "", invalid, ""},
		{"a token of another provider", "auth0", "RS256", clerk, nil, "", invalid, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			app := start(t)
			extra := map[string]any{}
			for _, m := range []map[string]any{c.base, c.change} {
				maps.Copy(extra, m)
			}
			b := map[string]any{"provider": c.provider, "idToken": w.sign(t, c.alg, w.Claims("ada", extra), nil)}
			if c.nonce != "" {
				b["nonce"] = c.nonce
			}
			r := app.Do(t, post(exchange, b))
			if c.code != "" {
				refused(t, r, 401, c.code)
				return
			}
			got := data[signedIn](t, r, 200)
			if got.Record.Email != c.email || got.Record.Verified != (c.name != "firebase, anonymous") {
				t.Errorf("record %+v, want e-mail %q", got.Record, c.email)
			}
			want := "ada"
			if c.provider == "microsoft" {
				want = tenant + "." + object
			}
			if count(t, app, "identities_links", "subject='"+want+"' AND issuer LIKE 'https://%'") != 1 {
				t.Error("the identity is kept under another name")
			}
		})
	}
}
