package attestation

import (
	"net/http"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/jwks"
)

// NewAt is New with Google's keys at another address.
func NewAt(cfg Config, client *http.Client, keys string) extensions.Extension {
	return newGate(cfg, jwks.New(client, jwks.Source{URL: keys}, nil)).Extension()
}
