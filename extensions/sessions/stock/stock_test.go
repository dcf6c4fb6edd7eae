package stock_test

import (
	"maps"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/security"

	"github.com/satchelbase/satchel/extensions/sessions/stock"
)

const secret = "secret of the collection"

func record() *core.Record {
	c := core.NewAuthCollection("users")
	c.Id = "users0000000000"
	c.AuthToken.Secret, c.AuthToken.Duration = secret, 3600
	r := core.NewRecord(c)
	r.Id = "ada000000000000"
	r.SetTokenKey("token key")
	return r
}

func token(t testing.TB, r *core.Record) string {
	t.Helper()
	out, err := r.NewAuthToken()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A bound token is one that PocketBase verifies, with the claims that it had, the session and the seal.
func TestBind(t *testing.T) {
	sealer, r := stock.Sealer(func() []byte { return []byte("key of the seals") }), record()
	bound, err := sealer.Bind(r, token(t, r), "a<session>&")
	if err != nil {
		t.Fatal(err)
	}
	claims, err := security.ParseJWT(bound, r.TokenKey()+secret)
	if err != nil {
		t.Fatal(err)
	}
	if claims["sid"] != "a<session>&" || claims["id"] != r.Id || claims["type"] != core.TokenTypeAuth || claims["refreshable"] != true {
		t.Errorf("claims %v", claims)
	}
	if exp, err := claims.GetExpirationTime(); err != nil || time.Until(exp.Time) < 50*time.Minute {
		t.Errorf("exp %v, %v", exp, err)
	}
	if !sealer.Sealed(r, claims) {
		t.Error("the seal is not taken")
	}

	// Bound again, the session is another one and the seal as well.
	again, err := sealer.Bind(r, bound, "")
	if err != nil {
		t.Fatal(err)
	}
	second, err := security.ParseJWT(again, r.TokenKey()+secret)
	if err != nil || second["sid"] != nil || second["smac"] == claims["smac"] || !sealer.Sealed(r, second) {
		t.Errorf("%v, %v", second, err)
	}

	for name, change := range map[string]func(c jwt.MapClaims, r *core.Record){
		"no seal":           func(c jwt.MapClaims, _ *core.Record) { delete(c, "smac") },
		"another session":   func(c jwt.MapClaims, _ *core.Record) { c["sid"] = "other" },
		"no session":        func(c jwt.MapClaims, _ *core.Record) { delete(c, "sid") },
		"a later end":       func(c jwt.MapClaims, _ *core.Record) { c["exp"] = c["exp"].(float64) + 1 },
		"another kind":      func(c jwt.MapClaims, _ *core.Record) { c["type"] = core.TokenTypeFile },
		"one more claim":    func(c jwt.MapClaims, _ *core.Record) { c["x"] = 1 },
		"another token key": func(_ jwt.MapClaims, r *core.Record) { r.SetTokenKey("changed") },
	} {
		forged, other := maps.Clone(claims), record()
		change(forged, other)
		if sealer.Sealed(other, forged) {
			t.Errorf("%s: the seal is taken", name)
		}
	}
	if stock.Sealer(func() []byte { return []byte("another key") }).Sealed(r, claims) {
		t.Error("the seal of another key is taken")
	}
	for _, bad := range []string{"", "x", "a.b.c", "e30.e30.e30"} {
		if _, err := sealer.Bind(r, bad, ""); err == nil {
			t.Errorf("%q is bound", bad)
		}
	}
}

func BenchmarkBind(b *testing.B) {
	sealer, r := stock.Sealer(func() []byte { return []byte("key of the seals") }), record()
	stockToken := token(b, r)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := sealer.Bind(r, stockToken, "session00000000"); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStock is what PocketBase itself does for each token.
func BenchmarkStock(b *testing.B) {
	r := record()
	b.ReportAllocs()
	for b.Loop() {
		token(b, r)
	}
}
