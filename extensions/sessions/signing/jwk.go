package signing

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/golang-jwt/jwt/v5"
)

// Algorithms of access tokens, by the names of RFC 7518 and RFC 8037.
const (
	ES256 = "ES256"
	EdDSA = "EdDSA"
)

// JWK is a public key in the form of RFC 7517 (EC keys) and RFC 8037 (Ed25519).
type JWK struct {
	KeyType   string `json:"kty"`
	Curve     string `json:"crv"`
	X         string `json:"x"`
	Y         string `json:"y,omitempty"`
	ID        string `json:"kid"`
	Use       string `json:"use"`
	Algorithm string `json:"alg"`
}

func base64url(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// newJWK describes a public key. The id is the thumbprint of RFC 7638, so that it never names two keys.
func newJWK(public crypto.PublicKey) (JWK, error) {
	var k JWK
	switch p := public.(type) {
	case *ecdsa.PublicKey:
		point, err := p.Bytes() // 0x04, X, Y
		if err != nil {
			return JWK{}, fmt.Errorf("encode public key: %w", err)
		}
		size := (len(point) - 1) / 2
		k = JWK{KeyType: "EC", Curve: "P-256", X: base64url(point[1 : 1+size]), Y: base64url(point[1+size:]), Algorithm: ES256}
	case ed25519.PublicKey:
		k = JWK{KeyType: "OKP", Curve: "Ed25519", X: base64url(p), Algorithm: EdDSA}
	default:
		return JWK{}, fmt.Errorf("encode public key: %T is not supported", public)
	}
	k.Use = "sig"
	id, err := k.thumbprint()
	k.ID = id
	return k, err
}

// thumbprint hashes the required members in the order of their names (RFC 7638 section 3.2).
func (k JWK) thumbprint() (string, error) {
	members := map[string]string{"crv": k.Curve, "kty": k.KeyType, "x": k.X}
	if k.Y != "" {
		members["y"] = k.Y
	}
	text, err := json.Marshal(members) // sorts the names
	if err != nil {
		return "", fmt.Errorf("make thumbprint: %w", err)
	}
	sum := sha256.Sum256(text)
	return base64url(sum[:]), nil
}

// generate makes a key pair.
func generate(algorithm string) (crypto.Signer, error) {
	switch algorithm {
	case ES256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case EdDSA:
		_, private, err := ed25519.GenerateKey(rand.Reader)
		return private, err
	}
	return nil, fmt.Errorf("%q is not an algorithm of access tokens", algorithm)
}

// parsePrivate reads a private key in PKCS #8.
func parsePrivate(der []byte) (crypto.Signer, error) {
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("read signing key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("read signing key: %T cannot sign", key)
	}
	return signer, nil
}

// method is the signing method of a key.
func method(public crypto.PublicKey) jwt.SigningMethod {
	if _, ok := public.(ed25519.PublicKey); ok {
		return jwt.SigningMethodEdDSA
	}
	return jwt.SigningMethodES256
}
