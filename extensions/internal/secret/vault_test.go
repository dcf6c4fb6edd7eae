package secret_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/satchelbase/satchel/extensions/internal/secret"
)

const place = "signing_keys|sealed|k1"

func seal(t testing.TB, v *secret.Vault, aad string, plain []byte) string {
	t.Helper()
	sealed, err := v.Seal(aad, plain)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func TestSealAndOpen(t *testing.T) {
	v := secret.Fixed([]byte("a root key"))
	for _, plain := range [][]byte{nil, {0}, []byte("hunter2"), bytes.Repeat([]byte{7}, 1<<20)} {
		sealed := seal(t, v, place, plain)
		got, err := v.Open(place, sealed)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%d bytes came back as %d: %v", len(plain), len(got), err)
		}
		if parts := strings.Split(sealed, ":"); len(parts) != 3 || parts[0] != "v1" || len(parts[1]) != 16 || strings.ContainsAny(parts[2], "+/=") {
			t.Errorf("the form is %.60s", sealed)
		}
		if again := seal(t, v, place, plain); again == sealed {
			t.Error("sealing twice gave the same text")
		}
	}
	if _, err := v.Seal("", []byte("x")); err == nil {
		t.Error("a value without its place was sealed")
	}
	if _, err := v.Seal(place, make([]byte, 1<<20+1)); err == nil {
		t.Error("a value above the limit was sealed")
	}
}

func TestOpenRefuses(t *testing.T) {
	v, other := secret.Fixed([]byte("a root key")), secret.Fixed([]byte("another root key"))
	sealed := seal(t, v, place, []byte("hunter2"))
	parts := strings.Split(sealed, ":")
	for name, c := range map[string]struct {
		aad, sealed string
		want        error
	}{
		"another row":       {"signing_keys|sealed|k2", sealed, secret.ErrDamaged},
		"no place":          {"", sealed, secret.ErrDamaged},
		"another key":       {place, seal(t, other, place, []byte("hunter2")), secret.ErrOtherKey},
		"another kid":       {place, "v1:" + strings.Repeat("0", 16) + ":" + parts[2], secret.ErrOtherKey},
		"kid in upper case": {place, "v1:" + strings.ToUpper(parts[1]) + "x:" + parts[2], secret.ErrOtherKey},
		"another version":   {place, "v2:" + parts[1] + ":" + parts[2], secret.ErrDamaged},
		"empty":             {place, "", secret.ErrDamaged},
		"no ciphertext":     {place, "v1:" + parts[1] + ":", secret.ErrDamaged},
		"cut":               {place, sealed[:len(sealed)-1], secret.ErrDamaged},
		"longer":            {place, sealed + "A", secret.ErrDamaged},
		"a line break":      {place, sealed + "\n", secret.ErrDamaged},
		"padded":            {place, sealed + "=", secret.ErrDamaged},
		"a fourth part":     {place, sealed + ":A", secret.ErrDamaged},
		"endless":           {place, sealed + strings.Repeat("A", 3<<20), secret.ErrDamaged},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := v.Open(c.aad, c.sealed); !errors.Is(err, c.want) || got != nil {
				t.Errorf("opened %q, %v", got, err)
			}
		})
	}
}

// Every bit of the text counts: a changed kid, nonce, ciphertext or tag is refused.
func TestEveryBitCounts(t *testing.T) {
	v := secret.Fixed([]byte("a root key"))
	sealed := seal(t, v, place, []byte("a secret of some length"))
	for i := range len(sealed) {
		for bit := range 8 {
			changed := []byte(sealed)
			changed[i] ^= 1 << bit
			if got, err := v.Open(place, string(changed)); err == nil {
				t.Fatalf("byte %d, bit %d: opened %q", i, bit, got)
			}
		}
	}
}

func FuzzOpen(f *testing.F) {
	v := secret.Fixed([]byte("a root key"))
	f.Add(place, goldenSealed)
	f.Add(place, "v1::")
	f.Add("x", strings.Replace(goldenSealed, "v1", "v2", 1))
	f.Fuzz(func(t *testing.T, aad, text string) {
		got, err := v.Open(aad, text)
		switch {
		case err == nil && (aad != place || text != goldenSealed):
			t.Errorf("%q at %q was never sealed and opens as %q", text, aad, got)
		case err != nil && !errors.Is(err, secret.ErrDamaged) && !errors.Is(err, secret.ErrOtherKey):
			t.Errorf("an error of another kind: %v", err)
		}
	})
}

func FuzzSeal(f *testing.F) {
	v := secret.Fixed([]byte("a root key"))
	f.Add(place, []byte("hunter2"))
	f.Fuzz(func(t *testing.T, aad string, plain []byte) {
		sealed, err := v.Seal(aad, plain)
		if err != nil {
			if aad != "" && len(plain) <= 1<<20 {
				t.Error(err)
			}
			return
		}
		if got, err := v.Open(aad, sealed); err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%q came back as %q: %v", plain, got, err)
		}
		if _, err := v.Open(aad+"x", sealed); !errors.Is(err, secret.ErrDamaged) {
			t.Errorf("opened at another place: %v", err)
		}
	})
}

func TestKey(t *testing.T) {
	v := secret.Fixed([]byte("a root key"))
	if k := v.Key("cursors"); len(k) != 32 || !bytes.Equal(k, v.Key("cursors")) || bytes.Equal(k, v.Key("tokens")) {
		t.Error("keys differ for one purpose or agree for two")
	}
	if bytes.Equal(v.Key("cursors"), secret.Fixed([]byte("another root key")).Key("cursors")) {
		t.Error("two root keys derive the same key")
	}
	// Values and keys that were made by a release must mean the same in every later one.
	if got := hex.EncodeToString(v.Key("cursors")); got != goldenKey {
		t.Errorf("the key is %s", got)
	}
	if got, err := v.Open(place, goldenSealed); err != nil || string(got) != "hunter2" {
		t.Errorf("the stored value opens as %q, %v; a new one is %s", got, err, seal(t, v, place, []byte("hunter2")))
	}
	defer func() {
		if recover() == nil {
			t.Error("a locked vault derived a key")
		}
	}()
	secret.New().Key("cursors")
}

const (
	goldenKey    = "b1f2137aa04fadc7afa5acbdd7a0fb5e136b4f8afdc9a5cb97cf1acb39aa780e"
	goldenSealed = "v1:9b3f859c24b2b340:jvIBRGinJJFf_5Sw848x8-cF4snuTzDhO4xnQRZ_Wav2FUw"
)

// A vault unlocks itself once, asks again after a failure, and gives all callers the same keys.
func TestUnlock(t *testing.T) {
	v := secret.New()
	if _, err := v.Seal(place, nil); !errors.Is(err, secret.ErrNotConnected) {
		t.Errorf("a vault without a source: %v", err)
	}
	var asked atomic.Int32
	broken := errors.New("no key yet")
	v.Connect(func() ([]byte, error) {
		if asked.Add(1) == 1 {
			return nil, broken
		}
		return []byte("a root key"), nil
	})
	if err := v.Unlock(); !errors.Is(err, broken) {
		t.Errorf("the first try: %v", err)
	}
	want := secret.Fixed([]byte("a root key")).Key("x")
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			sealed, err := v.Seal(place, []byte("p"))
			if err != nil {
				t.Error(err)
				return
			}
			if got, err := v.Open(place, sealed); err != nil || string(got) != "p" || !bytes.Equal(v.Key("x"), want) {
				t.Errorf("opened %q, %v", got, err)
			}
		})
	}
	group.Wait()
	if n := asked.Load(); n != 2 {
		t.Errorf("the source was asked %d times", n)
	}
	v.Connect(func() ([]byte, error) { return []byte("another root key"), nil })
	if err := v.Unlock(); err != nil || !bytes.Equal(v.Key("x"), want) {
		t.Errorf("connecting an open vault changed its keys: %v", err)
	}
}
