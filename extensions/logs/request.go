package logs

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions/api"
)

// Events that an operator watches.
const (
	eventAuthFailed  = "auth_failed"
	eventWriteFailed = "write_failed"
)

const (
	// statusClientGone is nginx's number for a client that did not wait; nothing was sent.
	statusClientGone = 499

	// skipSuccessKey is set by PocketBase's SkipSuccessActivityLog, which it does not export.
	skipSuccessKey = "__skipSuccessActivityLogger"

	// Longest texts that a client can put into a line; those of PocketBase's own log.
	maxMethod = 50
	maxURL    = 3000
	maxHeader = 2000
)

// entry is what is known about a finished request. It holds nothing that belongs to the request, which is over when
// the entry is written, and no text that keeps a large one in memory. Texts of the client are as they came until
// [entry.prepare].
type entry struct {
	at        time.Time
	duration  time.Duration
	id        string
	method    string
	route     string
	url       string
	referer   string
	userAgent string
	app       string
	status    int
	bytes     int64 // of the body, before compression; 0 when an error is still to be written
	err       error
	meta      any
	quiet     bool // the route asks that only its failures are logged

	auth   string // the collection of the user
	authID string

	// collection is the one that a failed login named in its path.
	collection string
	event      string

	// ip is empty unless the admin lets addresses be logged; remoteIP is that of the connection, with its port at first.
	ip, remoteIP string
}

// middleware replaces PocketBase's activity logger: a middleware with the same id takes its place.
func (p *pipeline) middleware() *hook.Handler[*core.RequestEvent] {
	return &hook.Handler[*core.RequestEvent]{
		Id: apis.DefaultActivityLoggerMiddlewareId, Priority: apis.DefaultActivityLoggerMiddlewarePriority,
		Func: func(e *core.RequestEvent) error {
			start := time.Now()
			body := &counter{ResponseWriter: router.ResponseWriter{ResponseWriter: e.Response}}
			e.Response = body
			err := http.ErrAbortHandler // unless the handler returns, it has cut the connection
			defer func() { p.log(e, start, body.n, err) }()
			err = e.Next()
			return err
		},
	}
}

// log passes the request on, or forgets it.
func (p *pipeline) log(e *core.RequestEvent, start time.Time, written int64, err error) {
	x := p.take()
	x.fill(e, start, written, err)
	if !p.lines.push(x) {
		p.release(x)
	}
}

// counter counts the bytes of the body.
type counter struct {
	router.ResponseWriter
	n int64
}

// Write counts what was written.
func (c *counter) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.n += int64(n)
	return n, err
}

// ReadFrom keeps the fast path for files.
func (c *counter) ReadFrom(r io.Reader) (int64, error) {
	n, err := c.ResponseWriter.ReadFrom(r)
	c.n += n
	return n, err
}

// fill is all that a request waits for, so it copies and does not compute.
func (x *entry) fill(e *core.RequestEvent, start time.Time, written int64, err error) {
	r, req := e.Request, api.RequestOf(e.Request.Context())
	x.at = time.Now()
	x.duration = x.at.Sub(start)
	x.id, x.route = req.ID, r.Pattern
	x.method, x.url = requestLine(r)
	x.referer, x.userAgent = cut(r.Referer(), maxHeader), cut(r.UserAgent(), maxHeader)
	x.app = cut(r.Header.Get("X-App-Version"), maxMethod)
	x.status, x.bytes, x.err = statusOf(e, err), written, err
	x.meta, x.quiet = e.Get(apis.RequestEventKeyLogMeta), e.Get(skipSuccessKey) != nil
	if e.Auth != nil {
		x.auth, x.authID = e.Auth.Collection().Name, e.Auth.Id
	}
	if s := e.App.Settings(); s.Logs.LogIP {
		x.remoteIP = r.RemoteAddr
		if len(s.TrustedProxy.Headers) > 0 {
			x.ip = e.RealIP()
		}
	}
	if x.event = eventOf(x); x.event == eventAuthFailed {
		x.collection = cut(r.PathValue("collection"), maxMethod)
	}
}

// requestLine returns the method and the target as the client sent them. Both are parts of one string, which may have a
// megabyte, so what is kept of a long one is copied.
func requestLine(r *http.Request) (method, target string) {
	target = cut(r.RequestURI, maxURL)
	switch r.Method {
	case http.MethodGet:
		return http.MethodGet, target
	case http.MethodPost:
		return http.MethodPost, target
	case http.MethodPatch:
		return http.MethodPatch, target
	case http.MethodDelete:
		return http.MethodDelete, target
	}
	return strings.Clone(cut(strings.ToUpper(r.Method), maxMethod)), strings.Clone(target)
}

// prepare brings the texts of the client into the form in which they are shown, and hides the secrets.
func (x *entry) prepare() {
	x.url, x.referer, x.userAgent = redactURL(pathAndQuery(x.url)), redactURL(x.referer), redactText(x.userAgent)
	if x.remoteIP != "" {
		addr, _ := netip.ParseAddrPort(x.remoteIP)
		x.remoteIP = addr.Addr().StringExpanded()
		x.ip = cmp.Or(x.ip, x.remoteIP)
	}
}

// pathAndQuery is the target of a request without what only proxies may send before the path, and well escaped.
func pathAndQuery(target string) string {
	if strings.HasPrefix(target, "/") && strings.IndexFunc(target, isUncommon) < 0 {
		return target
	}
	u, err := url.ParseRequestURI(target)
	if err != nil { // it was cut inside an escape
		return target
	}
	return u.RequestURI()
}

// isUncommon reports characters that must be escaped in an address, or need not be but are rare.
func isUncommon(r rune) bool {
	switch {
	case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
		return false
	}
	return !strings.ContainsRune("-._~/?%&=+,;:@!$'()*[]", r)
}

// statusOf is the status that was sent or, when the error is still on its way to the middleware that writes it, the one
// that will be.
func statusOf(e *core.RequestEvent, err error) int {
	if sent := e.Status(); sent != 0 {
		return sent
	}
	ctx := e.Request.Context()
	switch {
	case err == nil:
		return http.StatusOK
	case errors.Is(err, http.ErrAbortHandler), errors.Is(ctx.Err(), context.Canceled):
		return statusClientGone
	}
	return api.StatusOf(ctx, err)
}

// isLogin reports the routes on which credentials are presented in the body.
func isLogin(route string) bool {
	_, path, _ := strings.Cut(route, " ")
	last := path[strings.LastIndexByte(path, '/')+1:]
	return strings.HasPrefix(last, "auth-with-") || last == "auth-refresh" || strings.HasPrefix(path, api.Prefix+"/auth/")
}

// eventOf names the failure, if the request is one that an operator should see.
func eventOf(x *entry) string {
	if x.status < http.StatusBadRequest || x.status == statusClientGone {
		return ""
	}
	login := isLogin(x.route)
	switch {
	case login && x.status == http.StatusUnauthorized && (x.err == nil || errors.Is(x.err, apis.ErrMFA)):
		return "" // the first factor was right and the second is asked for
	case x.status == http.StatusUnauthorized, x.status == http.StatusForbidden,
		login && x.status < http.StatusInternalServerError:
		return eventAuthFailed
	case x.method == http.MethodPost, x.method == http.MethodPut, x.method == http.MethodPatch, x.method == http.MethodDelete:
		return eventWriteFailed
	}
	return ""
}

// failed reports a request that is always stored. A refusal by a rate limit is none: it comes in floods, one in ten
// thousand says as much as all of them, and the limiter counts them.
func (x *entry) failed() bool {
	return x.status != http.StatusTooManyRequests && (x.err != nil || x.status >= http.StatusBadRequest)
}

// level is that of the line on standard error.
func (x *entry) level() slog.Level {
	switch {
	case x.status >= http.StatusInternalServerError:
		return slog.LevelError
	case x.event != "":
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// wanted reports whether the settings and the route let the line through.
func (x *entry) wanted(cfg Config) bool {
	switch {
	case x.level() > slog.LevelInfo:
		return true
	case cfg.Requests == RequestsNone:
		return false
	case x.status >= http.StatusBadRequest:
		return true
	}
	return cfg.Requests == RequestsAll && !x.quiet
}

// record is the line on standard error.
func (x *entry) record() slog.Record {
	r := slog.NewRecord(x.at, x.level(), "request", 0)
	r.AddAttrs(
		slog.Any("requestId", clean(x.id)), slog.Any("method", clean(x.method)), slog.Any("route", clean(x.route)),
		slog.Any("path", clean(x.url)), slog.Int("status", x.status), slog.Float64("durationMs", x.milliseconds()),
	)
	if x.bytes > 0 {
		r.AddAttrs(slog.Int64("bytes", x.bytes))
	}
	optional := func(name, value string) {
		if value != "" {
			r.AddAttrs(slog.Any(name, clean(value)))
		}
	}
	optional("event", x.event)
	optional("userId", x.authID)
	optional("collection", cmp.Or(redactText(x.collection), x.auth))
	optional("ip", x.ip)
	optional("appVersion", redactText(x.app))
	if p, ok := errors.AsType[*api.Problem](x.err); ok {
		optional("code", p.Code.Name)
	}
	// Why a login failed is in its status and code; its cause may name who tried.
	if x.err != nil && x.event != eventAuthFailed && r.Level > slog.LevelInfo {
		optional("error", cut(redactText(causeOf(x.err)), maxURL))
	}
	return r
}

// causeOf is the text of an error with the internal reason that clients do not see.
func causeOf(err error) string {
	var p *api.Problem
	var stock *router.ApiError
	if errors.As(err, &p) || !errors.As(err, &stock) {
		return err.Error()
	}
	if cause, ok := stock.RawData().(error); ok && cause != nil {
		return err.Error() + ": " + cause.Error()
	}
	return err.Error()
}

func (x *entry) milliseconds() float64 { return float64(x.duration.Microseconds()) / 1000 }

func cut(s string, n int) string {
	if len(s) > n {
		return strings.ToValidUTF8(s[:n], "") + "..."
	}
	return s
}
