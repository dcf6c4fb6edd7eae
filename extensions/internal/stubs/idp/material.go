package idp

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/base64"
	"math/big"
)

// public is the wire form of a key (RFC 7518 section 6, RFC 8037).
func public(k signingKey) map[string]string {
	text := base64.RawURLEncoding.EncodeToString
	out := map[string]string{"kid": k.kid, "alg": k.alg, "use": "sig"}
	switch p := k.private.Public().(type) {
	case *ecdsa.PublicKey:
		point, err := p.Bytes()
		if err != nil {
			return out
		}
		half := (len(point) - 1) / 2
		out["kty"], out["crv"], out["x"], out["y"] = "EC", "P-256", text(point[1:1+half]), text(point[1+half:])
	case *rsa.PublicKey:
		out["kty"], out["n"], out["e"] = "RSA", text(p.N.Bytes()), text(big.NewInt(int64(p.E)).Bytes())
	case ed25519.PublicKey:
		out["kty"], out["crv"], out["x"] = "OKP", "Ed25519", text(p)
	}
	return out
}
