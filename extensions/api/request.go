package api

import (
	"context"
	"crypto/rand"
	"net/http"
	"regexp"
	"strings"
	"time"
)

// Prefix is the path below which Satchel's interface lives.
const Prefix = "/api/v1"

// RequestIDHeader carries the id of a request in both directions.
const RequestIDHeader = "X-Request-Id"

// Request is what the outer handler knows about a request before any routing.
type Request struct {
	ID    string
	Start time.Time

	// Path is the path as the client sent it. The router sees the canonical path: /api/v1/collections/x is served as
	// /api/collections/x, so that limits and logs know one route.
	Path string

	// Versioned reports that the client called /api/v1; Generated that PocketBase's generated API serves it.
	Versioned bool
	Generated bool
}

type requestKey struct{}

// RequestOf returns what the outer handler noted; a zero Request for a request that did not pass it.
func RequestOf(ctx context.Context) *Request {
	if r, ok := ctx.Value(requestKey{}).(*Request); ok {
		return r
	}
	return &Request{}
}

// requestIDPattern is what is accepted from a client: enough for UUIDs and trace ids, nothing that could break a log line.
var requestIDPattern = regexp.MustCompile(`^[A-Za-z0-9-]{8,64}$`)

func newRequest(r *http.Request) *Request {
	id := r.Header.Get(RequestIDHeader)
	if !requestIDPattern.MatchString(id) {
		id = rand.Text() // 130 bits
	}
	return &Request{
		ID: id, Start: time.Now(), Path: r.URL.Path,
		Versioned: r.URL.Path == Prefix || strings.HasPrefix(r.URL.Path, Prefix+"/"),
	}
}
