package identities_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions/identities"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/stubs/idp"
)

const bundle = "com.example.app"

func appleKey(t testing.TB) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func (w *world) startApple(t testing.TB) *apptest.App {
	t.Helper()
	deps := w.deps()
	deps.Seal = func(aad string, plain []byte) (string, error) { return aad + "\x00" + string(plain), nil }
	deps.Open = func(aad, sealed string) ([]byte, error) {
		plain, ok := strings.CutPrefix(sealed, aad+"\x00")
		if !ok {
			return nil, errors.New("sealed for another row")
		}
		return []byte(plain), nil
	}
	cfg := w.config(t, "PROVIDERS=apple", "EMAIL_TRUST=apple", "APPLE_AUDIENCES=other,"+bundle, "APPLE_TEAM=TEAM", "APPLE_KEY_ID=KEY", "APPLE_KEY="+appleKey(t))
	return open(t, identities.NewAt(cfg, deps, w.JWKS()))
}

func (w *world) apple(t testing.TB, app *apptest.App, subject, code string) signedIn {
	t.Helper()
	token := w.sign(t, "RS256", w.Claims(subject, map[string]any{"iss": "https://appleid.apple.com", "aud": bundle, "nonce": sha("n")}), nil)
	return data[signedIn](t, app.Do(t, post(exchange, map[string]any{"provider": "apple", "idToken": token, "nonce": "n", "authorizationCode": code})), 200)
}

// awaitRevoked waits until the token has been revoked.
func (w *world) awaitRevoked(t testing.TB, code string) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !slices.Contains(w.Revoked(), idp.RefreshToken(code)); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not revoked: %v", w.Revoked())
		}
	}
}

func TestAppleRevocation(t *testing.T) {
	w := newWorld(t)
	app := w.startApple(t)
	code := w.Code("ada", bundle)
	in := w.apple(t, app, "ada", code)
	again := w.apple(t, app, "ada", "") // without a code the token is kept
	if again.Record.ID != in.Record.ID || count(t, app, "identities_links", "sealed != ''") != 1 {
		t.Fatal("the token was not kept")
	}
	record, err := app.FindRecordById("users", in.Record.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := app.Delete(record); err != nil {
		t.Fatal(err)
	}
	w.awaitRevoked(t, code)

	code = w.Code("bob", bundle)
	bob := w.apple(t, app, "bob", code)
	data[shown](t, app.Do(t, as(post(own, map[string]any{
		"provider": "apple", "nonce": "n",
		"idToken": w.sign(t, "RS256", w.Claims("bob-2", map[string]any{"iss": "https://appleid.apple.com", "aud": bundle, "nonce": sha("n")}), nil),
	}), bob.Session.AccessToken, "")), 201)
	list := data[[]shown](t, app.Do(t, apptest.Request{Path: own, Token: bob.Session.AccessToken}), 200)
	if r := app.Do(t, apptest.Request{Method: "DELETE", Path: own + "/" + list[0].ID, Token: bob.Session.AccessToken}); r.Status != 204 {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	w.awaitRevoked(t, code)
	for deadline := time.Now().Add(30 * time.Second); count(t, app, "identities_revocations", "") != 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("rows are left")
		}
	}
}

// What goes wrong with Apple's code does not stop the sign-in, and nobody's token is kept for somebody else.
func TestAppleCodes(t *testing.T) {
	w := newWorld(t)
	for name, code := range map[string]string{
		"of another person": w.Code("eve", bundle), "of another app": w.Code("ada", "other"), "unknown": "unknown",
	} {
		t.Run(name, func(t *testing.T) {
			app := w.startApple(t)
			w.apple(t, app, "ada", code)
			if n := count(t, app, "identities_links", "sealed != ''"); n != 0 {
				t.Errorf("%d tokens", n)
			}
		})
	}
}

// While Apple is down the revocation waits, longer each time.
func TestAppleIsDown(t *testing.T) {
	w := newWorld(t)
	app := w.startApple(t)
	in := w.apple(t, app, "ada", w.Code("ada", bundle))
	w.Behave(idp.Down)
	record, err := app.FindRecordById("users", in.Record.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := app.Delete(record); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); count(t, app, "identities_revocations", "attempts = 1") != 1; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no attempt was noted")
		}
	}
	if n := count(t, app, "identities_revocations", "nextAt > "+nowMillis()); n != 1 {
		t.Error("it does not wait")
	}
}
