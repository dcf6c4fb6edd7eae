package api

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"strings"

	"github.com/pocketbase/pocketbase/core"
)

// A validator is W/"<hash>" or W/"<label>.<hash>". The hash is that of the answer; it stays the same over restarts. The
// label names the question and the state of the data it was answered from, see [Unchanged].
const (
	hashBytes  = 16
	labelBytes = 12
	labelKey   = "satchelETagLabel"
)

// ETag is a weak validator of the parts (RFC 9110 section 8.8.1): weak, because the envelope around them changes.
func ETag(parts ...[]byte) string {
	h := sha256.New()
	for _, p := range parts {
		_, _ = h.Write(p)
		_, _ = h.Write([]byte{0})
	}
	return `W/"` + base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:hashBytes]) + `"`
}

// NotModified sets the validators of an answer and, when the client's If-None-Match names an answer with the same hash,
// answers 304 and reports true. Answers depend on who asks, so they are private and must be revalidated.
func NotModified(e *core.RequestEvent, etag string) bool {
	if label, ok := e.Get(labelKey).(string); ok {
		etag = `W/"` + label + "." + strings.TrimPrefix(etag, `W/"`)
	}
	want := hashOf(opaque(etag))
	for candidate := range presented(e.Request) {
		if candidate == "*" || hashOf(opaque(candidate)) == want {
			return notModified(e, etag)
		}
	}
	setValidators(e, etag)
	return false
}

// Unchanged answers 304 before any work is done, and reports true, when the client presents an answer that was made from
// the same parts and confirm says that they still hold. They must name everything the answer depends on: who asks, what,
// and the version of the data, taken before. If it reports false, the answer that [Write] or [WritePage] makes
// afterwards is labelled with the parts.
func Unchanged(e *core.RequestEvent, confirm func() bool, parts ...string) bool {
	h := sha256.New()
	for _, p := range parts {
		_, _ = h.Write([]byte(p))
		_, _ = h.Write([]byte{0})
	}
	label := base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:labelBytes])
	for candidate := range presented(e.Request) {
		if strings.HasPrefix(opaque(candidate), label+".") && confirm() {
			return notModified(e, `W/"`+opaque(candidate)+`"`)
		}
	}
	e.Set(labelKey, label)
	return false
}

func notModified(e *core.RequestEvent, etag string) bool {
	setValidators(e, etag)
	e.Response.WriteHeader(http.StatusNotModified)
	return true
}

func setValidators(e *core.RequestEvent, etag string) {
	h := e.Response.Header()
	h.Set("ETag", etag)
	h.Set("Cache-Control", "private, no-cache")
	h.Add("Vary", "Authorization")
}

// presented yields the validators of If-None-Match.
func presented(r *http.Request) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for _, header := range r.Header.Values("If-None-Match") {
			for candidate := range strings.SplitSeq(header, ",") {
				if !yield(strings.TrimSpace(candidate)) {
					return
				}
			}
		}
	}
}

// opaque drops the weakness and the quotes: If-None-Match compares weakly (RFC 9110 section 13.1.2).
func opaque(etag string) string { return strings.Trim(strings.TrimPrefix(etag, "W/"), `"`) }

func hashOf(opaque string) string { return opaque[strings.LastIndexByte(opaque, '.')+1:] }

// cacheable leaves out answers that must not be stored at all: they have no use for a validator.
func cacheable(e *core.RequestEvent, status int) bool {
	reading := e.Request.Method == http.MethodGet || e.Request.Method == http.MethodHead
	return reading && status == http.StatusOK && e.Response.Header().Get("Cache-Control") != "no-store"
}
