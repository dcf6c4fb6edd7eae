package metrics

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions/api"
)

// path is where Prometheus looks by default.
const path = "/metrics"

type localKey struct{}

// markLocal notes, before anything else touches a request for the page, whether it comes straight from a program on
// this machine. Behind package api it could no longer be told: that has replaced the address of the peer and removed
// the headers of a proxy that is not trusted.
func markLocal(app core.App) {
	app.OnServe().Bind(&hook.Handler[*core.ServeEvent]{
		Id: "satchelMetricsLocal", Priority: outermostPriority,
		Func: func(e *core.ServeEvent) error {
			if err := e.Next(); err != nil {
				return err
			}
			next := e.Server.Handler
			e.Server.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == path && isLocal(r) {
					r = r.WithContext(context.WithValue(r.Context(), localKey{}, true))
				}
				next.ServeHTTP(w, r)
			})
			return nil
		},
	})
}

// isLocal reports a request of a program on this machine: a loopback peer, a loopback name as the host, which a page in
// somebody's browser cannot send, and no trace of a proxy.
func isLocal(r *http.Request) bool {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !peer.Addr().Unmap().IsLoopback() || !isLoopbackHost(r.Host) {
		return false
	}
	for name := range r.Header {
		if isProxyHeader(name) {
			return false
		}
	}
	return true
}

func isLoopbackHost(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && addr.Unmap().IsLoopback()
}

// isProxyHeader knows what proxies add, in canonical form.
func isProxyHeader(name string) bool {
	return strings.HasPrefix(name, "X-Forwarded") || strings.HasPrefix(name, "Cf-") ||
		slices.Contains([]string{"Forwarded", "Via", "X-Real-Ip", "X-Client-Ip", "X-Cluster-Client-Ip", "True-Client-Ip", "Fly-Client-Ip", "X-Original-Host"}, name)
}

// access decides who may read the page.
type access struct {
	token   string
	proxied bool
}

func (a access) check(r *http.Request) error {
	if a.token != "" {
		scheme, given, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if strings.EqualFold(scheme, "Bearer") && same(given, a.token) {
			return nil
		}
		p := api.Fail(ErrTokenRequired, "send SATCHEL_METRICS_TOKEN as a bearer token")
		p.Header = http.Header{"Www-Authenticate": {"Bearer"}}
		return p
	}
	if local, _ := r.Context().Value(localKey{}).(bool); local && !a.proxied {
		return nil
	}
	return api.Fail(ErrLocalOnly, "set SATCHEL_METRICS_TOKEN to read metrics from elsewhere or through a proxy")
}

// same compares digests, so that the time tells neither content nor length.
func same(a, b string) bool {
	x, y := sha256.Sum256([]byte(a)), sha256.Sum256([]byte(b))
	return subtle.ConstantTimeCompare(x[:], y[:]) == 1
}
