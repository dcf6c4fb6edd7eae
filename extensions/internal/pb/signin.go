package pb

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
)

// SignedIn is the answer to a sign-in.
type SignedIn struct {
	Token  string                     `json:"token"`
	Record json.RawMessage            `json:"record"`
	Meta   map[string]json.RawMessage `json:"meta"` // what hooks have put there
}

// AuthResponse is apis.RecordAuthResponse with the answer returned instead of sent. Headers go to the real answer. When a
// second factor is wanted, the demand for it is sent, and the error is apis.ErrMFA.
func AuthResponse(e *core.RequestEvent, record *core.Record, method string) (SignedIn, error) {
	var answer SignedIn
	out, address := e.Response, e.Request.URL
	capture := &captured{header: out.Header()}
	e.Response, e.Request.URL = capture, withoutFields(address)
	err := apis.RecordAuthResponse(e, record, method, nil)
	e.Response, e.Request.URL = out, address
	if err != nil {
		if capture.status != 0 { // the demand for a second factor
			out.WriteHeader(capture.status)
			if _, writeErr := out.Write(capture.body.Bytes()); writeErr != nil {
				return answer, fmt.Errorf("write answer: %w", writeErr)
			}
		}
		return answer, err
	}
	if err := json.Unmarshal(capture.body.Bytes(), &answer); err != nil {
		return answer, fmt.Errorf("read answer of sign-in: %w", err)
	}
	out.Header().Del("Content-Length")
	return answer, nil
}

// withoutFields takes away the choice of members, by which a client could leave out what is looked for in the answer.
func withoutFields(address *url.URL) *url.URL {
	query := address.Query()
	query.Del("fields")
	out := *address
	out.RawQuery = query.Encode()
	return &out
}

// captured keeps an answer instead of sending it.
type captured struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (c *captured) Header() http.Header { return c.header }

func (c *captured) WriteHeader(status int) {
	if c.status == 0 {
		c.status = status
	}
}

func (c *captured) Write(b []byte) (int, error) {
	c.WriteHeader(http.StatusOK)
	return c.body.Write(b)
}

// Written and Status tell PocketBase what was answered; the status is 0 before.
func (c *captured) Written() bool { return c.status != 0 }

func (c *captured) Status() int { return c.status }
