package webpush

import (
	"crypto/ecdh"
	"testing"
	"testing/synctest"
	"time"
)

// Seal encrypts with a given key and salt.
func Seal(sub Subscription, plain, private, salt []byte) ([]byte, error) {
	to, err := sub.receiver()
	if err != nil {
		return nil, err
	}
	key, err := ecdh.P256().NewPrivateKey(private)
	if err != nil {
		return nil, err
	}
	return to.seal(plain, key, salt)
}

// Ages asks for a token at these times. The last one must be new, the others equal; another service has its own.
func Ages(t *testing.T, c Credentials, ages []time.Duration) {
	synctest.Test(t, func(t *testing.T) {
		v, err := newVAPID(c)
		if err != nil {
			t.Fatal(err)
		}
		start, first := time.Now(), ""
		for i, age := range ages {
			time.Sleep(time.Until(start.Add(age)))
			header, err := v.header("https://push.example.com")
			if i == 0 {
				first = header
			}
			if err != nil || (header == first) == (i == len(ages)-1) {
				t.Errorf("after %v: %q, %v", age, header, err)
			}
		}
		if other, err := v.header("https://other.example.com"); err != nil || other == first {
			t.Errorf("another service: %q, %v", other, err)
		}
		for range 3 * maxOrigins {
			time.Sleep(time.Nanosecond)
			if _, err := v.header(time.Now().String()); err != nil {
				t.Fatal(err)
			}
		}
		if len(v.headers) > maxOrigins {
			t.Errorf("%d tokens are kept", len(v.headers))
		}
	})
}
