package identities

import (
	"strings"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/jwks"
)

// NewAt is New with the keys of every provider, and Apple, at one address, for tests that play the presets.
func NewAt(cfg Config, deps Deps, keys string) extensions.Extension {
	list := cfg.providers()
	for _, p := range list {
		p.keys = jwks.Source{URL: keys}
	}
	s := newService(cfg, deps, list)
	s.appleURL = strings.TrimSuffix(keys, "/jwks.json")
	return s.extension()
}
