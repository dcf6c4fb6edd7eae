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

// AuthResponse is apis.RecordAuthResponse with the answer returned instead of sent: the record, and what hooks have put
// into meta. Headers go to the real answer. When a second factor is wanted, the demand for it is sent, and the error is
// apis.ErrMFA.
func AuthResponse(e *core.RequestEvent, record *core.Record, method string) (recordJSON json.RawMessage, meta map[string]json.RawMessage, err error) {
	out, address := e.Response, e.Request.URL
	capture := &captured{header: out.Header()}
	e.Response, e.Request.URL = capture, withoutFields(address)
	err = apis.RecordAuthResponse(e, record, method, nil)
	e.Response, e.Request.URL = out, address
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
		Record json.RawMessage            `json:"record"`
		Meta   map[string]json.RawMessage `json:"meta"`
	}
	if err := json.Unmarshal(capture.body.Bytes(), &answer); err != nil {
		return nil, nil, fmt.Errorf("read answer of sign-in: %w", err)
	}
	out.Header().Del("Content-Length")
	return answer.Record, answer.Meta, nil
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
