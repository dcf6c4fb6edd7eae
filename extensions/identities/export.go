package identities

import (
	"context"
	"encoding/json"
	"io"
	"time"

	"github.com/pocketbase/pocketbase/core"
)

// Export writes the identities of an account at providers as JSON, for a person who wants to know what is stored.
func Export(_ context.Context, app core.App, account *core.Record, w io.Writer) error {
	links, err := linksOf(app, account)
	if err != nil {
		return err
	}
	out := make([]map[string]any, len(links))
	for i, l := range links {
		out[i] = map[string]any{
			"provider": l.Provider, "issuer": l.Issuer, "subject": l.Subject, "email": l.Email, "emailVerified": l.Verified,
			"createdAt": time.UnixMilli(l.CreatedAt).UTC(), "lastUsedAt": time.UnixMilli(l.LastUsedAt).UTC(),
		}
	}
	return json.NewEncoder(w).Encode(out)
}
