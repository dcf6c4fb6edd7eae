package idp

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"fmt"
	"math/big"
	"net"
	"time"
)

// certificateAge is how long the certificates last; a server that runs longer is restarted.
const certificateAge = 30 * 24 * time.Hour

// certificates makes a certificate authority and a certificate for loopback that it signed.
func certificates() (*x509.Certificate, tls.Certificate, error) {
	fail := func(err error) (*x509.Certificate, tls.Certificate, error) {
		return nil, tls.Certificate{}, fmt.Errorf("make certificates: %w", err)
	}
	now := time.Now()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fail(err)
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Satchel development " + rand.Text()[:8]},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certificateAge), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		// A leaked development key must not be able to speak for the internet.
		PermittedDNSDomainsCritical: true, PermittedDNSDomains: []string{"localhost"},
		PermittedIPRanges: []*net.IPNet{{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)}, {IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)}},
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, caKey.Public(), caKey)
	if err != nil {
		return fail(err)
	}
	ca, err := x509.ParseCertificate(der)
	if err != nil {
		return fail(err)
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fail(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certificateAge),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err = x509.CreateCertificate(rand.Reader, leaf, ca, leafKey.Public(), caKey)
	if err != nil {
		return fail(err)
	}
	return ca, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: leafKey}, nil
}

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
