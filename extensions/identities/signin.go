package identities

import (
	"encoding/json"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/pb"
)

// StockSignIn is Deps.SignIn by PocketBase alone: the session is what a hook left in meta.session of the auth response,
// else PocketBase's own token without a refresh token.
func StockSignIn(e *core.RequestEvent, record *core.Record, method string) (session, user json.RawMessage, err error) {
	answer, err := pb.AuthResponse(e, record, method)
	if err != nil {
		return nil, nil, err
	}
	if session := answer.Meta["session"]; session != nil {
		return session, answer.Record, nil
	}
	session, err = json.Marshal(map[string]any{
		"accessToken": answer.Token, "refreshToken": "", "tokenType": "Bearer", "expiresIn": record.Collection().AuthToken.Duration, "sessionId": "",
	})
	return session, answer.Record, err
}
