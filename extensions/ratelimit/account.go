package ratelimit

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"
)

// maxSignInBody is how much of a body is read to find the account. Bodies of sign-ins take a few hundred bytes.
const maxSignInBody = 64 << 10

// accountOf names the account that the body asks for, and its key. A body that is too large, malformed or silent about it counts for
// one account that all such bodies of the collection share: no shape of the body is a way around the quota.
func accountOf(e *core.RequestEvent, field string) (account string, key []byte) {
	collection := e.Request.PathValue("collection")
	if c, err := e.App.FindCachedCollectionByNameOrId(collection); err == nil {
		collection = c.Id
	}
	if head, whole := peekBody(e.Request, maxSignInBody); whole {
		account = bodyField(e.Request, head, field)
	}
	return account, []byte("account\x00" + collection + "\x00" + strings.ToLower(strings.TrimSpace(account)))
}

// tokenSession is the session that a refresh token in the body names, "rt1.<session>.<generation>.<mac>".
func tokenSession(e *core.RequestEvent, field string) string {
	head, whole := peekBody(e.Request, maxSignInBody)
	if field == "" || !whole {
		return ""
	}
	if parts := strings.Split(bodyField(e.Request, head, field), "."); len(parts) == 4 {
		return parts[1]
	}
	return ""
}

// peekBody returns up to limit bytes of the body and whether that is all of it. Handlers read the body from its start
// afterwards. [router.RereadableReadCloser.Reread] cannot do that here: after a partial read it drops the rest.
func peekBody(r *http.Request, limit int64) (head []byte, whole bool) {
	outer, ok := r.Body.(*router.RereadableReadCloser)
	if !ok {
		outer = &router.RereadableReadCloser{ReadCloser: r.Body}
		r.Body = outer
	}
	source := outer.ReadCloser
	head, err := io.ReadAll(io.LimitReader(source, limit+1))
	outer.ReadCloser = replay{io.MultiReader(bytes.NewReader(head), source), source}
	return head, err == nil && int64(len(head)) <= limit
}

// replay reads what was peeked, then the rest.
type replay struct {
	io.Reader
	io.Closer
}

// bodyField reads one member as PocketBase's handlers would, so that none of them sees another account. What is
// ambiguous (a name in another case, a JSON payload within a form) is empty.
func bodyField(r *http.Request, body []byte, field string) string {
	copied := &http.Request{
		Method: r.Method, URL: r.URL, Header: r.Header, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)),
	}
	contentType := r.Header.Get("Content-Type")
	if !strings.HasPrefix(contentType, "multipart/form-data") && !strings.HasPrefix(contentType, "application/x-www-form-urlencoded") {
		members := map[string]any{}
		if err := (&router.Event{Request: copied}).BindBody(&members); err != nil {
			return ""
		}
		value, _ := members[field].(string)
		return value
	}
	// What was peeked fits in memory, so no temporary files come of it.
	if err := copied.ParseMultipartForm(maxSignInBody); err != nil && !errors.Is(err, http.ErrNotMultipart) {
		return ""
	}
	if copied.Form.Has(router.JSONPayloadKey) {
		return ""
	}
	return copied.Form.Get(field)
}
