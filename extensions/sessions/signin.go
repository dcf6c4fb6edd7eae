package sessions

import (
	"encoding/json"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/pb"
)

// SignIn signs a user in by a method of our own, through all that PocketBase does for its own methods: the collection's
// rule, the hooks, further factors, notices. It returns the session's tokens (a [Grant]) and the record as JSON, for a
// handler that answers in another form. An error is to be returned as it is: when a second factor is wanted, the answer
// that says so is written already.
func (s *Sessions) SignIn(e *core.RequestEvent, record *core.Record, method string) (session, recordJSON json.RawMessage, err error) {
	answer, err := pb.AuthResponse(e, record, method)
	return answer.Meta["session"], answer.Record, err
}
