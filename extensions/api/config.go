package api

import (
	"errors"
	"net/netip"
	"time"

	"github.com/satchelbase/satchel/extensions/settings"
)

// Config is read from SATCHEL_API_*.
type Config struct {
	CORSOrigins []string `env:"CORS_ORIGINS" default:"*" help:"origins of web apps that may call the API; native apps need none"`

	MaxBody settings.Bytes `env:"MAX_BODY" default:"10MB" help:"largest body of a request; file uploads are bound by their collection's fields"`

	Deadline time.Duration `env:"DEADLINE" default:"30s" help:"longest time for one request; streams, downloads and uploads are exempt"`

	Drain time.Duration `env:"DRAIN" default:"20s" help:"how long requests in flight may finish after SIGTERM"`

	H2C bool `env:"H2C" default:"false" help:"speak HTTP/2 without TLS, for a proxy on the same machine"`

	TrustedProxies []netip.Prefix `env:"TRUSTED_PROXIES" default:"" help:"addresses of the reverse proxies whose forwarded headers count"`

	ProxyHeader string `env:"PROXY_HEADER" default:"X-Forwarded-For" help:"header in which a trusted proxy names the client"`

	MinVersion Versions `env:"MIN_VERSION" default:"" help:"oldest app version that is served, as 1.4.0 or ios=1.4.0,android=1.2.0; older ones get 426"`

	RecommendedVersion Versions `env:"RECOMMENDED_VERSION" default:"" help:"app version below which answers carry X-App-Upgrade: recommended"`

	StoreURL []string `env:"STORE_URL" default:"" help:"where to get a newer app, as URL or ios=URL,android=URL"`
}

// Validate reports values that cannot work.
func (c Config) Validate() error {
	switch {
	case c.MaxBody < 1024:
		return errors.New("MAX_BODY: must be at least 1KB")
	case c.Deadline < time.Second:
		return errors.New("DEADLINE: must be at least 1s")
	case c.Drain < 0:
		return errors.New("DRAIN: must not be negative")
	}
	return nil
}
