package attestation

import (
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
)

const tokensTable = "attestation_tokens"

// purgeAtOnce is how many expired ids a use removes; it adds one.
const purgeAtOnce = 20

func migrations() []extensions.Migration {
	return []extensions.Migration{{
		Unix: 1795320010, What: "create",
		Up: func(app core.App) error {
			_, err := app.DB().NewQuery(`
				CREATE TABLE attestation_tokens (
					hash      BLOB PRIMARY KEY NOT NULL,
					expiresAt INTEGER NOT NULL
				) WITHOUT ROWID;
				CREATE INDEX attestation_tokens_expiry ON attestation_tokens (expiresAt);
			`).Execute()
			return err
		},
		Down: func(app core.App) error {
			_, err := app.DB().DropTable(tokensTable).Execute()
			return err
		},
	}}
}

// useUp notes the id of a token, or refuses one that was noted before or has none. Times are Unix milliseconds.
func useUp(app core.App, a Attestation) error {
	if a.ID == "" {
		return fmt.Errorf("%w: it has no id and could be used again", errBad)
	}
	sum := sha256.Sum256([]byte(a.App + "\n" + a.ID))
	return app.RunInTransaction(func(app core.App) error {
		_, err := app.DB().NewQuery("DELETE FROM attestation_tokens WHERE hash IN (SELECT hash FROM attestation_tokens WHERE expiresAt < {:now} LIMIT {:limit})").
			Bind(dbx.Params{"now": time.Now().UnixMilli(), "limit": purgeAtOnce}).Execute()
		if err != nil {
			return fmt.Errorf("purge used tokens: %w", err)
		}
		result, err := app.DB().NewQuery("INSERT INTO attestation_tokens (hash, expiresAt) VALUES ({:hash}, {:expires}) ON CONFLICT DO NOTHING").
			Bind(dbx.Params{"hash": sum[:], "expires": a.ExpiresAt.Add(2 * leeway).UnixMilli()}).Execute()
		if err != nil {
			return fmt.Errorf("note token: %w", err)
		}
		n, err := result.RowsAffected()
		if err != nil {
			return fmt.Errorf("note token: %w", err)
		}
		if n == 0 {
			return fmt.Errorf("%w: it was used before", errBad)
		}
		return nil
	})
}
