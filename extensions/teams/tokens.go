package teams

import (
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

const tokensTable = "teams_tokens"

// tokenSize is 256 bits, so that a fast hash is enough to keep and a search for it tells nothing by its time.
const tokenSize = 32

// tokenLength is that of the text.
const tokenLength = (tokenSize*8 + 5) / 6

func hashToken(token string) []byte {
	sum := sha256.Sum256([]byte("satchel teams\x00" + token))
	return sum[:]
}

// issueToken gives the invitation a new token; an older one is worthless from then on.
func issueToken(tx core.App, invitation string) (string, error) {
	raw := make([]byte, tokenSize)
	_, _ = rand.Read(raw) // never fails
	token := base64.RawURLEncoding.EncodeToString(raw)
	_, err := tx.NonconcurrentDB().NewQuery(`INSERT INTO teams_tokens (hash, invitation) VALUES ({:hash}, {:invitation})
		ON CONFLICT (invitation) DO UPDATE SET hash = excluded.hash`).
		Bind(dbx.Params{"hash": hashToken(token), "invitation": invitation}).Execute()
	if err != nil {
		return "", fmt.Errorf("store token of invitation: %w", err)
	}
	return token, nil
}

// byToken is the invitation that the token proves, nil when there is none.
func byToken(app core.App, token string) (*core.Record, error) {
	var id string
	err := app.ConcurrentDB().Select("invitation").From(tokensTable).Where(dbx.HashExp{"hash": hashToken(token)}).Row(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil //nolint:nilnil // an unknown token
	}
	if err != nil {
		return nil, fmt.Errorf("find token: %w", err)
	}
	return first(app, invitationsCollection, dbx.HashExp{"id": id})
}

func forgetToken(tx core.App, invitation string) error {
	if _, err := tx.NonconcurrentDB().Delete(tokensTable, dbx.HashExp{"invitation": invitation}).Execute(); err != nil {
		return fmt.Errorf("delete token of invitation: %w", err)
	}
	return nil
}
