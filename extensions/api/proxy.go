package api

import (
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// forwardedHeaders are what proxies use to speak of the client. They are removed unless a trusted proxy sent them, so
// that nothing behind this handler can be fooled by a client that sets them itself.
func forwardedHeaders(own string) []string {
	return []string{
		own, "Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Port", "X-Real-Ip",
		"Cf-Connecting-Ip", "Fly-Client-Ip", "True-Client-Ip",
	}
}

// resolveClient puts the client's address into r.RemoteAddr, where everything else looks for it. Only a peer in the
// trusted list may name the client; of a chain of addresses the right-most that is not itself a trusted proxy counts,
// because whatever stands left of it was written by somebody outside.
func resolveClient(r *http.Request, cfg Config) {
	peer, ok := remoteAddr(r)
	if !ok || !trusted(cfg.TrustedProxies, peer) {
		for _, h := range forwardedHeaders(cfg.ProxyHeader) {
			r.Header.Del(h)
		}
		return
	}
	client := peer
	chain := strings.Split(strings.Join(r.Header.Values(cfg.ProxyHeader), ","), ",")
	for _, entry := range slices.Backward(chain) {
		addr, ok := parseForwarded(entry)
		if !ok {
			break
		}
		client = addr
		if !trusted(cfg.TrustedProxies, addr) {
			break
		}
	}
	r.RemoteAddr = net.JoinHostPort(client.String(), "0")
}

func remoteAddr(r *http.Request) (netip.Addr, bool) {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}, false
	}
	return ap.Addr().Unmap().WithZone(""), true
}

// parseForwarded reads one address, with or without a port.
func parseForwarded(s string) (netip.Addr, bool) {
	s = strings.TrimSpace(s)
	if addr, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return addr.Unmap().WithZone(""), true
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap().WithZone(""), true
	}
	return netip.Addr{}, false
}

func trusted(list []netip.Prefix, addr netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(addr) })
}
