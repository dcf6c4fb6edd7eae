// Package outbound makes the HTTP client for addresses that somebody else chose, directly or by DNS: key sets of identity
// providers, webhooks, push services.
//
// The client speaks https only, follows no redirect, asks no proxy, and checks the address that it is about to dial, after
// DNS, so that a name cannot lead to loopback, a private network or the metadata service of a cloud. It limits time and
// headers; the body is the caller's to limit, with [Read]. [Breakers] keep callers from waiting for a host that is down:
// those of [Options], or asked by a caller who knows more of an answer than its status.
package outbound

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Timeout bounds a call from the dial to the last byte of the body.
const Timeout = 10 * time.Second

const (
	maxHeader    = 64 << 10
	maxIdle      = 32
	idleTimeout  = 90 * time.Second
	pingAfter    = 15 * time.Second // of silence on a connection of HTTP/2 that somebody waits for
	pingTimeout  = 5 * time.Second
	maxCAFile    = 1 << 20
	maxHostBytes = 253 // RFC 1035 section 2.3.4
)

// Errors of calls that were refused before or while they were made.
var (
	ErrScheme   = errors.New("only https is allowed")
	ErrHost     = errors.New("the host is not allowed")
	ErrAddress  = errors.New("the address is not public")
	ErrPort     = errors.New("only the ports 443 and 8443 are allowed")
	ErrRedirect = errors.New("redirects are not followed")
	ErrTooLarge = errors.New("the body is too large")
)

// Options loosen or tighten the client. The zero value is what production uses.
type Options struct {
	// AllowLoopback lets the client reach loopback addresses, on any port. For stubs in tests and development.
	AllowLoopback bool

	// AllowPrivate lets the client reach private networks and loopback, on any port: for an address that the operator has
	// set and nobody else can. Link-local addresses, where clouds keep their metadata, stay refused.
	AllowPrivate bool

	// Root is trusted besides those of the system. For stubs in tests and development.
	Root *x509.Certificate

	// DenyHosts are names that are refused whatever their address is, such as the server's own public name.
	DenyHosts []string

	// ConnsPerHost bounds the connections to one host and keeps that many open; calls above it wait for one, or share one
	// of HTTP/2. Zero means as many as there are calls, of which two are kept.
	ConnsPerHost int

	// HTTP2Only is for providers that speak nothing else.
	HTTP2Only bool

	// Breakers, if there are any, are asked for each host, and refuse with an [OpenError].
	Breakers *Breakers
}

// NewClient returns a client that is safe for concurrent use. Its errors wrap those of this package.
func NewClient(o Options) *http.Client {
	return &http.Client{
		Timeout:       Timeout,
		Transport:     guard{next: transport(o), deny: lower(o.DenyHosts), breakers: o.Breakers},
		CheckRedirect: func(*http.Request, []*http.Request) error { return ErrRedirect },
	}
}

func transport(o Options) *http.Transport {
	config := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.Root != nil {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool() // no store of the system, as in an empty container
		}
		pool.AddCert(o.Root)
		config.RootCAs = pool
	}
	dialer := &net.Dialer{
		Timeout: Timeout, KeepAlive: 30 * time.Second,
		ControlContext: func(_ context.Context, network, address string, _ syscall.RawConn) error {
			return checkDial(network, address, o)
		},
	}
	protocols := &http.Protocols{}
	protocols.SetHTTP2(true)
	protocols.SetHTTP1(!o.HTTP2Only)
	return &http.Transport{
		Proxy:                  nil, // a proxy from the environment would dial for us, past the check
		DialContext:            dialer.DialContext,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    Timeout,
		ResponseHeaderTimeout:  Timeout,
		MaxResponseHeaderBytes: maxHeader,
		MaxIdleConns:           max(maxIdle, o.ConnsPerHost),
		MaxIdleConnsPerHost:    max(2, o.ConnsPerHost),
		MaxConnsPerHost:        o.ConnsPerHost,
		IdleConnTimeout:        idleTimeout,
		DisableCompression:     true, // limits count the bytes of the wire
		Protocols:              protocols,
		HTTP2:                  &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
}

// ReadCA reads one PEM certificate from a file, for [Options.Root].
func ReadCA(path string) (*x509.Certificate, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open certificate: %w", err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxCAFile))
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("read certificate: the file has no PEM certificate")
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse certificate: %w", err)
	}
	return ca, nil
}

// Read returns the whole body, or ErrTooLarge when it has more than limit bytes.
func Read(body io.Reader, limit int64) ([]byte, error) {
	raw, err := io.ReadAll(io.LimitReader(body, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read body: %w", err)
	}
	if int64(len(raw)) > limit {
		return nil, ErrTooLarge
	}
	return raw, nil
}

// CheckURL tells what is wrong with an address before anybody calls it, such as when it is entered. The dial is checked
// all the same.
func CheckURL(u *url.URL) error {
	switch host := u.Hostname(); {
	case u.Scheme != "https":
		return ErrScheme
	case host == "" || len(host) > maxHostBytes || u.User != nil || u.Opaque != "":
		return ErrHost
	}
	return nil
}

// guard refuses a request by what its URL says.
type guard struct {
	next     http.RoundTripper
	deny     []string
	breakers *Breakers
}

// CloseIdleConnections lets http.Client's method of that name reach the transport.
func (g guard) CloseIdleConnections() {
	if c, ok := g.next.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
}

// RoundTrip implements http.RoundTripper.
func (g guard) RoundTrip(r *http.Request) (*http.Response, error) {
	err := CheckURL(r.URL)
	if err == nil && slices.Contains(g.deny, strings.TrimSuffix(strings.ToLower(r.URL.Hostname()), ".")) {
		err = ErrHost
	}
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close() // the contract of a RoundTripper
		}
		return nil, err
	}
	if g.breakers != nil {
		return g.breakers.roundTrip(g.next, r)
	}
	return g.next.RoundTrip(r)
}

func lower(hosts []string) []string {
	out := make([]string, len(hosts))
	for i, h := range hosts {
		out[i] = strings.TrimSuffix(strings.ToLower(h), ".")
	}
	return out
}

// checkDial sees the address that the name was resolved to, right before the connection is made.
func checkDial(network, address string, o Options) error {
	target, err := netip.ParseAddrPort(address)
	if err != nil || !strings.HasPrefix(network, "tcp") {
		return fmt.Errorf("%w: %s", ErrAddress, address)
	}
	addr := target.Addr().Unmap().WithZone("")
	if addr.IsLoopback() && (o.AllowLoopback || o.AllowPrivate) || addr.IsPrivate() && o.AllowPrivate {
		return nil
	}
	if !Public(addr) {
		return fmt.Errorf("%w: %s", ErrAddress, addr)
	}
	if target.Port() != 443 && target.Port() != 8443 {
		return fmt.Errorf("%w: %d", ErrPort, target.Port())
	}
	return nil
}

// Public reports whether an address belongs to the public internet, as far as its number says.
func Public(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	if !addr.IsValid() || addr.IsLoopback() || addr.IsPrivate() || addr.IsLinkLocalUnicast() || addr.IsMulticast() || addr.IsUnspecified() {
		return false
	}
	return !slices.ContainsFunc(special(), func(p netip.Prefix) bool { return p.Contains(addr) })
}

// special are the networks that netip has no question for. An IPv6 address that carries an IPv4 one inside is refused
// whole, because a gateway would send it to where the check did not look.
func special() []netip.Prefix {
	return []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/8"),       // this network, RFC 791: Linux takes it for itself
		netip.MustParsePrefix("100.64.0.0/10"),   // carriers' address translation, RFC 6598; metadata of some clouds
		netip.MustParsePrefix("192.0.0.0/24"),    // protocol assignments, RFC 6890
		netip.MustParsePrefix("198.18.0.0/15"),   // benchmarks, RFC 2544
		netip.MustParsePrefix("240.0.0.0/4"),     // reserved and broadcast, RFC 1112
		netip.MustParsePrefix("::/96"),           // IPv4-compatible, RFC 4291
		netip.MustParsePrefix("::ffff:0:0:0/96"), // IPv4-translated, RFC 2765
		netip.MustParsePrefix("64:ff9b::/96"),    // IPv4 inside, RFC 6052
		netip.MustParsePrefix("64:ff9b:1::/48"),  // IPv4 inside, RFC 8215
		netip.MustParsePrefix("2001::/32"),       // Teredo, RFC 4380
		netip.MustParsePrefix("2002::/16"),       // 6to4, RFC 3056
		netip.MustParsePrefix("fec0::/10"),       // site-local, RFC 3879
	}
}

// maxRetryAfter bounds what a host can ask for: nobody waits longer than a day for its word.
const maxRetryAfter = 24 * time.Hour

// RetryAfter reads the header of that name (RFC 9110 section 10.2.3), in seconds or as a date; zero when there is none.
func RetryAfter(h http.Header) time.Duration {
	value := h.Get("Retry-After")
	wait := time.Duration(0)
	if seconds, err := strconv.Atoi(value); err == nil {
		wait = time.Duration(min(seconds, int(maxRetryAfter.Seconds()))) * time.Second
	} else if at, err := http.ParseTime(value); err == nil {
		wait = time.Until(at)
	}
	return min(max(wait, 0), maxRetryAfter)
}
