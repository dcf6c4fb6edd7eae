// Package loopback is what the stand-ins for providers share: a certificate authority that speaks for loopback alone,
// servers that refuse to listen anywhere else, and the misbehaviour that a test, or a token's first letters, ask for.
package loopback

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// certificateAge is how long the certificates last; a server that runs longer is restarted.
const certificateAge = 30 * 24 * time.Hour

// Authority is a certificate authority with one certificate for loopback. It is safe for concurrent use.
type Authority struct {
	// Root is what clients have to trust.
	Root *x509.Certificate

	leaf tls.Certificate
}

// NewAuthority makes keys and certificates. The private key of the authority is forgotten at once.
func NewAuthority() (*Authority, error) {
	root, leaf, err := certificates()
	if err != nil {
		return nil, fmt.Errorf("make certificates: %w", err)
	}
	return &Authority{Root: root, leaf: leaf}, nil
}

// PEM is the root in the form that settings and curl read.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Root.Raw})
}

func certificates() (*x509.Certificate, tls.Certificate, error) {
	none := tls.Certificate{}
	now := time.Now()
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, none, err
	}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Satchel development " + rand.Text()[:8]},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certificateAge), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		// A leaked development key must not be able to speak for the internet.
		PermittedDNSDomainsCritical: true, PermittedDNSDomains: []string{"localhost"},
		PermittedIPRanges: []*net.IPNet{{IP: net.IPv4(127, 0, 0, 0).To4(), Mask: net.CIDRMask(8, 32)}, {IP: net.IPv6loopback, Mask: net.CIDRMask(128, 128)}},
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey)
	if err != nil {
		return nil, none, err
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, none, err
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, none, err
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certificateAge),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	der, err = x509.CreateCertificate(rand.Reader, leaf, parsed, leafKey.Public(), rootKey)
	if err != nil {
		return nil, none, err
	}
	return parsed, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: leafKey}, nil
}

// Listen opens a TCP listener on address, which must be loopback; "127.0.0.1:0" is any free port.
func Listen(address string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("read address: %w", err)
	}
	if ip, err := netip.ParseAddr(host); err != nil || !ip.IsLoopback() {
		return nil, errors.New("the address must be loopback, such as 127.0.0.1:0")
	}
	listener, err := new(net.ListenConfig).Listen(context.Background(), "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	return listener, nil
}

// Server is an HTTPS server that counts. It is safe for concurrent use.
type Server struct {
	// URL is https, host and port.
	URL string

	server  *http.Server
	latency atomic.Int64
	counts  [4]atomic.Int64 // connections, requests, requests in flight, and the most of these
	ended   chan struct{}

	mu   sync.Mutex
	open map[net.Conn]struct{}
}

// Serve listens on a loopback address. http2Only refuses clients that speak nothing newer than HTTP/1.1.
func Serve(address string, authority *Authority, handler http.Handler, http2Only bool) (*Server, error) {
	listener, err := Listen(address)
	if err != nil {
		return nil, err
	}
	s := &Server{URL: "https://" + listener.Addr().String(), ended: make(chan struct{}), open: map[net.Conn]struct{}{}}
	protocols := &http.Protocols{}
	protocols.SetHTTP2(true)
	protocols.SetHTTP1(!http2Only)
	s.server = &http.Server{
		Handler: s.counted(handler), ReadHeaderTimeout: 10 * time.Second, Protocols: protocols, ConnState: s.track,
		ErrorLog:  slog.NewLogLogger(slog.DiscardHandler, slog.LevelError), // clients that leave in the middle of something
		HTTP2:     &http.HTTP2Config{MaxConcurrentStreams: 1000},           // what APNs offers
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{authority.leaf}, MinVersion: tls.VersionTLS12},
	}
	go func() { _ = s.server.ServeTLS(listener, "", "") }()
	return s, nil
}

func (s *Server) counted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.counts[1].Add(1)
		now := s.counts[2].Add(1)
		defer s.counts[2].Add(-1)
		for most := s.counts[3].Load(); now > most && !s.counts[3].CompareAndSwap(most, now); most = s.counts[3].Load() {
		}
		next.ServeHTTP(w, r)
	})
}

func (s *Server) track(c net.Conn, state http.ConnState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch state {
	case http.StateNew:
		s.counts[0].Add(1)
		s.open[c] = struct{}{}
	case http.StateClosed, http.StateHijacked:
		delete(s.open, c)
	default:
	}
}

// Conns counts the connections that were ever made, Requests the requests; MaxInFlight is the most at one moment.
func (s *Server) Conns() int { return int(s.counts[0].Load()) }

// Requests counts the requests so far.
func (s *Server) Requests() int { return int(s.counts[1].Load()) }

// MaxInFlight is the largest number of requests at one moment so far.
func (s *Server) MaxInFlight() int { return int(s.counts[3].Load()) }

// SetLatency makes every answer wait.
func (s *Server) SetLatency(d time.Duration) { s.latency.Store(int64(d)) }

// Drop closes all connections without a word, as a restarted load balancer does.
func (s *Server) Drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		_ = c.Close()
	}
}

// Close ends the server and the requests that it keeps waiting.
func (s *Server) Close() error {
	close(s.ended)
	return s.server.Close()
}

// Wait is the latency; it ends early with the request or the server.
func (s *Server) Wait(r *http.Request) {
	if d := time.Duration(s.latency.Load()); d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
		case <-s.ended:
		}
	}
}

// Stall keeps the request until the client gives up or the server ends.
func (s *Server) Stall(r *http.Request) {
	select {
	case <-r.Context().Done():
	case <-s.ended:
	}
}
