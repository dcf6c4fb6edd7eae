package pb

import (
	"encoding/json"
	"fmt"
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
	capture := NewBuffer(out.Header(), 0)
	e.Response, e.Request.URL = capture, withoutFields(address)
	err := apis.RecordAuthResponse(e, record, method, nil)
	e.Response, e.Request.URL = out, address
	if err != nil {
		if capture.Written() { // the demand for a second factor
			out.WriteHeader(capture.Status())
			if _, writeErr := out.Write(capture.Body()); writeErr != nil {
				return answer, fmt.Errorf("write answer: %w", writeErr)
			}
		}
		return answer, err
	}
	if err := json.Unmarshal(capture.Body(), &answer); err != nil {
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
