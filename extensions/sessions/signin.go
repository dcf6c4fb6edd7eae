package sessions

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
)

// SignIn signs a user in by a method of our own, through all that PocketBase does for its own methods: the collection's
// rule, the hooks, further factors, notices. It returns the session's tokens (a [Grant]) and the record as JSON, for a
// handler that answers in another form. An error is to be returned as it is: when a second factor is wanted, the answer
// that says so is written already.
func (s *Sessions) SignIn(e *core.RequestEvent, record *core.Record, method string) (session, recordJSON json.RawMessage, err error) {
	out := e.Response
	capture := &captured{header: out.Header()}
	e.Response = capture
	err = apis.RecordAuthResponse(e, record, method, nil)
	e.Response = out
	if err != nil {
		if capture.status != 0 { // the demand for a second factor
			out.WriteHeader(capture.status)
			if _, writeErr := out.Write(capture.body.Bytes()); writeErr != nil {
				return nil, nil, fmt.Errorf("write answer: %w", writeErr)
			}
		}
		return nil, nil, err
	}
	var answer struct {
		Record json.RawMessage `json:"record"`
		Meta   struct {
			Session json.RawMessage `json:"session"`
		} `json:"meta"`
	}
	if err := json.Unmarshal(capture.body.Bytes(), &answer); err != nil {
		return nil, nil, fmt.Errorf("read answer of sign-in: %w", err)
	}
	out.Header().Del("Content-Length")
	return answer.Meta.Session, answer.Record, nil
}

// captured keeps an answer instead of sending it. Headers go to the real answer.
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
