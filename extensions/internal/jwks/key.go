package jwks

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"slices"
)

// Bounds of keys. RSA below 2048 bits is forbidden by RFC 7518 section 3.3; above 8192 a check costs too much.
const (
	maxKeys    = 100
	minRSABits = 2048
	maxRSABits = 8192
)

// key is a public key and the algorithms that it may check.
type key struct {
	public crypto.PublicKey
	algs   []string
}

func (k key) fits(alg string) bool { return slices.Contains(k.algs, alg) }

// jwk is the wire form of a key (RFC 7517 section 4, RFC 7518 section 6, RFC 8037).
type jwk struct {
	Kty    string   `json:"kty"`
	Use    string   `json:"use"`
	KeyOps []string `json:"key_ops"`
	Kid    string   `json:"kid"`
	Alg    string   `json:"alg"`
	Crv    string   `json:"crv"`
	N      string   `json:"n"`
	E      string   `json:"e"`
	X      string   `json:"x"`
	Y      string   `json:"y"`
}

// parse reads a key set. Keys that are no use here are left out, as RFC 7517 section 5 asks; a set without any that is
// of use is an error, so that a wrong answer does not replace good keys.
func parse(raw []byte) (map[string]key, error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(raw, &set); err != nil {
		return nil, fmt.Errorf("parse keys: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("parse keys: %d keys, at most %d are read", len(set.Keys), maxKeys)
	}
	keys := map[string]key{}
	for _, item := range set.Keys {
		var j jwk
		if json.Unmarshal(item, &j) != nil || j.Kid == "" || len(j.Kid) > maxKid || !j.signs() {
			continue
		}
		k, err := j.key()
		if err != nil {
			continue
		}
		if j.Alg != "" {
			if !k.fits(j.Alg) {
				continue
			}
			k.algs = []string{j.Alg}
		}
		if _, twice := keys[j.Kid]; !twice {
			keys[j.Kid] = k
		}
	}
	if len(keys) == 0 {
		return nil, errors.New("parse keys: no key is usable")
	}
	return keys, nil
}

func (j jwk) signs() bool {
	return (j.Use == "" || j.Use == "sig") && (len(j.KeyOps) == 0 || slices.Contains(j.KeyOps, "verify"))
}

func (j jwk) key() (key, error) {
	switch {
	case j.Kty == "RSA":
		public, err := j.rsa()
		return key{public: public, algs: []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}}, err
	case j.Kty == "EC" && j.Crv == "P-256":
		public, err := j.ec(elliptic.P256(), 32)
		return key{public: public, algs: []string{"ES256"}}, err
	case j.Kty == "EC" && j.Crv == "P-384":
		public, err := j.ec(elliptic.P384(), 48)
		return key{public: public, algs: []string{"ES384"}}, err
	case j.Kty == "OKP" && j.Crv == "Ed25519":
		x, err := decode(j.X)
		if err != nil || len(x) != ed25519.PublicKeySize {
			return key{}, errors.New("bad Ed25519 key")
		}
		return key{public: ed25519.PublicKey(x), algs: []string{"EdDSA"}}, nil
	}
	return key{}, fmt.Errorf("key type %q is not supported", j.Kty)
}

func (j jwk) rsa() (*rsa.PublicKey, error) {
	n, err := decode(j.N)
	if err != nil {
		return nil, err
	}
	e, err := decode(j.E)
	if err != nil {
		return nil, err
	}
	modulus, exponent := new(big.Int).SetBytes(n), new(big.Int).SetBytes(e)
	if bits := modulus.BitLen(); bits < minRSABits || bits > maxRSABits {
		return nil, fmt.Errorf("%d bits", bits)
	}
	if !exponent.IsInt64() || exponent.Int64() < 3 || exponent.Int64() > math.MaxInt32 || exponent.Bit(0) == 0 {
		return nil, errors.New("bad exponent")
	}
	return &rsa.PublicKey{N: modulus, E: int(exponent.Int64())}, nil
}

func (j jwk) ec(curve elliptic.Curve, size int) (*ecdsa.PublicKey, error) {
	x, errX := decode(j.X)
	y, errY := decode(j.Y)
	if err := errors.Join(errX, errY); err != nil {
		return nil, err
	}
	if len(x) != size || len(y) != size {
		return nil, errors.New("bad coordinates")
	}
	// It refuses points that are not on the curve.
	return ecdsa.ParseUncompressedPublicKey(curve, slices.Concat([]byte{4}, x, y))
}

func decode(s string) ([]byte, error) { return base64.RawURLEncoding.DecodeString(s) }
