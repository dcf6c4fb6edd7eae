package identities

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
)

// StockSignIn is Deps.SignIn by PocketBase alone: the session is what a hook left in meta.session of the auth response,
// else PocketBase's own token without a refresh token.
func StockSignIn(e *core.RequestEvent, record *core.Record, method string) (session, user json.RawMessage, err error) {
	response, request := e.Response, e.Request
	rec := &recorder{header: http.Header{}}
	e.Response, e.Request = rec, withoutFields(request)
	err = apis.RecordAuthResponse(e, record, method, nil)
	e.Response, e.Request = response, request
	if err != nil {
		rec.replay(response)
		return nil, nil, err
	}
	var answer struct {
		Token  string          `json:"token"`
		Record json.RawMessage `json:"record"`
		Meta   struct {
			Session json.RawMessage `json:"session"`
		} `json:"meta"`
	}
	if err := json.Unmarshal(rec.body.Bytes(), &answer); err != nil {
		return nil, nil, fmt.Errorf("read auth response: %w", err)
	}
	if answer.Meta.Session != nil {
		return answer.Meta.Session, answer.Record, nil
	}
	session, err = json.Marshal(map[string]any{
		"accessToken": answer.Token, "refreshToken": "", "tokenType": "Bearer", "expiresIn": record.Collection().AuthToken.Duration, "sessionId": "",
	})
	return session, answer.Record, err
}

// withoutFields drops the query parameter with which a client could cut the token out of the answer.
func withoutFields(r *http.Request) *http.Request {
	if !r.URL.Query().Has("fields") {
		return r
	}
	clone := r.WithContext(r.Context())
	u := *r.URL
	query := u.Query()
	query.Del("fields")
	u.RawQuery = query.Encode()
	clone.URL = &u
	return clone
}

// recorder keeps an answer.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

// Header is the header that the handler sets.
func (r *recorder) Header() http.Header { return r.header }

// WriteHeader keeps the first status.
func (r *recorder) WriteHeader(status int) {
	if r.status == 0 {
		r.status = status
	}
}

// Write keeps the body.
func (r *recorder) Write(p []byte) (int, error) {
	r.WriteHeader(http.StatusOK)
	return r.body.Write(p)
}

// Written and Status tell PocketBase what was answered.
func (r *recorder) Written() bool { return r.status != 0 }

// Status is 0 before anything was answered.
func (r *recorder) Status() int { return r.status }

// replay sends what was answered before an error, such as the 401 that asks for a second factor.
func (r *recorder) replay(w http.ResponseWriter) {
	if r.status == 0 {
		return
	}
	maps.Copy(w.Header(), r.header)
	w.WriteHeader(r.status)
	_, _ = w.Write(r.body.Bytes())
}
