package jwks

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"testing"
)

func TestKeys(t *testing.T) {
	text := base64.RawURLEncoding.EncodeToString
	rsaKey := func(bits int) map[string]any {
		n := new(big.Int).SetBit(big.NewInt(1), bits-1, 1)
		return map[string]any{"kty": "RSA", "kid": "k", "n": text(n.Bytes()), "e": "AQAB"}
	}
	with := func(m map[string]any, name string, value any) map[string]any {
		m[name] = value
		return m
	}
	point := func(curve elliptic.Curve, name string) map[string]any {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := k.PublicKey.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		half := (len(raw) - 1) / 2
		return map[string]any{"kty": "EC", "crv": name, "kid": "k", "x": text(raw[1 : 1+half]), "y": text(raw[1+half:])}
	}
	public, _, _ := ed25519.GenerateKey(rand.Reader)
	for name, c := range map[string]struct {
		jwk map[string]any
		alg string
	}{
		"RSA":                    {rsaKey(2048), "RS256"},
		"RSA, PSS":               {rsaKey(3072), "PS256"},
		"RSA, sig":               {with(rsaKey(2048), "use", "sig"), "RS512"},
		"P-256":                  {point(elliptic.P256(), "P-256"), "ES256"},
		"P-384":                  {point(elliptic.P384(), "P-384"), "ES384"},
		"Ed25519":                {map[string]any{"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": text(public)}, "EdDSA"},
		"verify":                 {with(rsaKey(2048), "key_ops", []string{"verify"}), "RS256"},
		"RSA 1024":               {rsaKey(1024), ""},
		"RSA 2047":               {rsaKey(2047), ""},
		"RSA 16384":              {rsaKey(16384), ""},
		"even exponent":          {with(rsaKey(2048), "e", "AgAC"), ""},
		"exponent 1":             {with(rsaKey(2048), "e", "AQ"), ""},
		"huge exponent":          {with(rsaKey(2048), "e", "AQAAAAAAAAAB"), ""},
		"encryption":             {with(rsaKey(2048), "use", "enc"), ""},
		"key_ops":                {with(rsaKey(2048), "key_ops", []string{"encrypt"}), ""},
		"no kid":                 {with(rsaKey(2048), "kid", ""), ""},
		"symmetric":              {map[string]any{"kty": "oct", "kid": "k", "k": "AAAA"}, ""},
		"alg of another type":    {with(rsaKey(2048), "alg", "ES256"), ""},
		"HS256 on RSA":           {with(rsaKey(2048), "alg", "HS256"), ""},
		"not on the curve":       {with(point(elliptic.P256(), "P-256"), "x", text(make([]byte, 32))), ""},
		"short coordinate":       {with(point(elliptic.P256(), "P-256"), "y", "AAAA"), ""},
		"P-521":                  {point(elliptic.P521(), "P-521"), ""},
		"P-384 said to be P-256": {with(point(elliptic.P384(), "P-384"), "crv", "P-256"), ""},
		"short Ed25519":          {map[string]any{"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": "AAAA"}, ""},
		"wrong types":            {map[string]any{"kty": 1, "kid": "k"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			good := with(rsaKey(2048), "kid", "good")
			raw, err := json.Marshal(map[string]any{"keys": []any{c.jwk, good}})
			if err != nil {
				t.Fatal(err)
			}
			keys, err := parse(raw)
			if err != nil {
				t.Fatal(err)
			}
			got, ok := keys["k"]
			if ok != (c.alg != "") || (ok && !got.fits(c.alg)) {
				t.Errorf("read %v: %+v", ok, got.algs)
			}
			if k, isRSA := keys["good"].public.(*rsa.PublicKey); !isRSA || k.E != 65537 {
				t.Error("the good key is gone")
			}
		})
	}
}

func TestRepeatedKid(t *testing.T) {
	first, _, _ := ed25519.GenerateKey(rand.Reader)
	second, _, _ := ed25519.GenerateKey(rand.Reader)
	key := func(k ed25519.PublicKey) map[string]any {
		return map[string]any{"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": base64.RawURLEncoding.EncodeToString(k)}
	}
	raw, _ := json.Marshal(map[string]any{"keys": []any{key(first), key(second)}})
	keys, err := parse(raw)
	if err != nil || !keys["k"].public.(ed25519.PublicKey).Equal(first) {
		t.Errorf("not the first: %v", err)
	}
}
