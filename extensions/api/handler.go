package api

import (
	"context"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/klauspost/compress/gzhttp"
)

const (
	// Level 1 does most of what compression can do for JSON at the least cost; below 1 KB the saving is lost in the packet.
	compressionLevel = 1
	compressionMin   = 1024

	// readGrace lets the context end first: a read that times out would cancel it as if the client had gone.
	readGrace = time.Second

	// writeGrace is what a slow phone gets, after the deadline of the request, to take the answer.
	writeGrace = 30 * time.Second
)

// outer wraps PocketBase's router. It gives every request an id, finds the true address of the client, maps /api/v1
// onto the generated API, bounds the request in size and time, and compresses the answer.
func outer(cfg Config, inFlight *gauge) func(http.Handler) http.Handler {
	return func(next http.Handler) http.Handler {
		// The arguments are constants, so the only error (a bad option) cannot happen at run time.
		wrap, err := gzhttp.NewWrapper(gzhttp.CompressionLevel(compressionLevel), gzhttp.MinSize(compressionMin))
		if err != nil {
			panic(err)
		}
		compressed := wrap(next)
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			inFlight.add(1)
			defer inFlight.add(-1)
			req := newRequest(r)
			w.Header().Set(RequestIDHeader, req.ID)
			secure := isSecure(r, cfg)
			resolveClient(r, cfg)
			r = alias(r, req)
			secureHeaders(w.Header(), r, secure)

			ctx := context.WithValue(r.Context(), requestKey{}, req)
			if !longRunning(r) {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, cfg.Deadline)
				defer cancel()
				limitTime(w, req.Start.Add(cfg.Deadline))
			}
			r = r.WithContext(ctx)
			if buffered(r) {
				r.Body = http.MaxBytesReader(w, r.Body, int64(cfg.MaxBody))
			}
			if uncompressed(r) {
				next.ServeHTTP(w, r)
				return
			}
			compressed.ServeHTTP(w, r)
		})
	}
}

// alias maps the generated API below /api/v1 onto PocketBase's paths, so that rules, limits and logs see one route.
func alias(r *http.Request, req *Request) *http.Request {
	if !req.Versioned {
		return r
	}
	rest := strings.TrimPrefix(r.URL.Path, Prefix+"/")
	segment, _, _ := strings.Cut(rest, "/")
	switch segment {
	case "collections", "files", "batch", "realtime":
	default:
		return r
	}
	req.Generated = true
	url := *r.URL
	url.Path = "/api/" + rest
	url.RawPath = strings.Replace(url.RawPath, Prefix+"/", "/api/", 1)
	clone := *r
	clone.URL = &url
	return &clone
}

// secureHeaders adds to what PocketBase sets on every answer. Answers that hold tokens must not be stored anywhere
// (RFC 6749 section 5.1).
func secureHeaders(h http.Header, r *http.Request, secure bool) {
	h.Set("Referrer-Policy", "no-referrer")
	if secure {
		h.Set("Strict-Transport-Security", "max-age=31536000")
	}
	if isAuth(r.URL.Path) {
		h.Set("Cache-Control", "no-store")
	}
}

func isSecure(r *http.Request, cfg Config) bool {
	if r.TLS != nil {
		return true
	}
	peer, ok := remoteAddr(r)
	return ok && trusted(cfg.TrustedProxies, peer) && strings.EqualFold(r.Header.Get("X-Forwarded-Proto"), "https")
}

// isAuth reports paths whose answers may hold tokens.
func isAuth(path string) bool {
	if strings.HasPrefix(path, Prefix+"/auth/") || path == "/api/auth/sync" || path == "/api/files/token" {
		return true
	}
	if !strings.HasPrefix(path, "/api/collections/") {
		return false
	}
	for _, part := range []string{"/auth-", "/request-otp", "/impersonate/"} {
		if strings.Contains(path, part) {
			return true
		}
	}
	return false
}

// longRunning reports requests that may outlive the deadline: streams, uploads, downloads and the admin's heavy tools.
// The server's own timeouts still bound them, except streams, which renew theirs.
func longRunning(r *http.Request) bool {
	if isMultipart(r) {
		return true
	}
	for _, prefix := range []string{"/api/realtime", "/api/files/", "/api/backups", "/api/sql", Prefix + "/live", Prefix + "/uploads", Prefix + "/account/exports/"} {
		if strings.HasPrefix(r.URL.Path, prefix) {
			return true
		}
	}
	return false
}

// limitTime bounds how long the body may take to arrive and the answer to leave, against clients that trickle bytes.
func limitTime(w http.ResponseWriter, deadline time.Time) {
	c := http.NewResponseController(w)
	// A connection that cannot take deadlines (a test recorder) is bounded by the context alone.
	_ = c.SetReadDeadline(deadline.Add(readGrace))
	_ = c.SetWriteDeadline(deadline.Add(writeGrace))
}

// buffered reports bodies that are read into memory. Multipart bodies and raw uploads go to files and have limits of
// their own.
func buffered(r *http.Request) bool {
	if r.Body == nil || r.Body == http.NoBody {
		return false
	}
	return !isMultipart(r) && mediaType(r) != "application/offset+octet-stream"
}

func isMultipart(r *http.Request) bool { return mediaType(r) == "multipart/form-data" }

func mediaType(r *http.Request) string {
	t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		return ""
	}
	return t
}

// uncompressed reports answers that must not be compressed: streams, which would be held back; files, which are
// compressed already or served in ranges; the dashboard, which does it itself; and answers with secrets beside what a
// client sent, whose length would tell about the secret (BREACH).
func uncompressed(r *http.Request) bool {
	path := r.URL.Path
	return strings.HasPrefix(path, "/api/realtime") || strings.HasPrefix(path, "/api/files/") || strings.HasPrefix(path, "/_/") ||
		strings.HasPrefix(path, "/api/backups") || strings.HasPrefix(path, Prefix+"/live") || strings.HasPrefix(path, Prefix+"/account/exports/") ||
		isAuth(path)
}
