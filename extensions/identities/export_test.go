package identities

import (
	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/jwks"
)

// NewAt is New with the keys of every provider at one address, for tests that play the presets.
func NewAt(cfg Config, deps Deps, keys string) extensions.Extension {
	list := cfg.providers()
	for _, p := range list {
		p.keys = jwks.Source{URL: keys}
	}
	return newService(cfg, deps, list).extension()
}
