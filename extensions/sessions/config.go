package sessions

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/satchelbase/satchel/extensions/sessions/signing"
	"github.com/satchelbase/satchel/extensions/settings"
)

// Config is read from SATCHEL_SESSIONS_*.
type Config struct {
	AccessLifetime Lifetimes `env:"ACCESS_LIFETIME" default:"15m" help:"life of access tokens, also per X-App-Platform: 15m,web=5m"`
	IdleLifetime   Lifetimes `env:"IDLE_LIFETIME" default:"30d" help:"a session that is not used for so long ends; also per platform"`
	MaxLifetime    Lifetimes `env:"MAX_LIFETIME" default:"180d" help:"a session ends after this time however much it is used; also per platform"`
	Limit          int       `env:"LIMIT" default:"20" help:"sessions of one user; the one used longest ago ends when there are more"`

	Algorithm   string        `env:"ALGORITHM" default:"ES256" help:"of new signing keys: ES256 or EdDSA"`
	Audience    string        `env:"AUDIENCE" default:"" help:"audience of access tokens; empty takes the public URL"`
	StockTokens string        `env:"STOCK_TOKENS" default:"sid_only" help:"PocketBase's own tokens: on takes any, sid_only those that this server has bound to a session, off none but superusers'"`
	Recent      time.Duration `env:"RECENT" default:"10m" help:"how long after signing in sensitive operations need no reauthentication"`
}

// Values of SATCHEL_SESSIONS_STOCK_TOKENS.
const (
	StockOn      = "on"
	StockSidOnly = "sid_only"
	StockOff     = "off"
)

// Bounds of the settings.
const (
	minAccess, maxAccess   = 10 * time.Second, 24 * time.Hour
	minSession, maxSession = time.Minute, 3650 * 24 * time.Hour
	maxLimit               = 1000
)

// Validate reports values that cannot work.
func (c Config) Validate() error {
	var problems []error
	problems = append(problems,
		c.AccessLifetime.within("ACCESS_LIFETIME", minAccess, maxAccess),
		c.IdleLifetime.within("IDLE_LIFETIME", minSession, maxSession),
		c.MaxLifetime.within("MAX_LIFETIME", minSession, maxSession))
	if c.Limit < 1 || c.Limit > maxLimit {
		problems = append(problems, errors.New("LIMIT: must be from 1 to 1000"))
	}
	if c.Algorithm != signing.ES256 && c.Algorithm != signing.EdDSA {
		problems = append(problems, errors.New("ALGORITHM: must be ES256 or EdDSA"))
	}
	if !slices.Contains([]string{StockOn, StockSidOnly, StockOff}, c.StockTokens) {
		problems = append(problems, errors.New("STOCK_TOKENS: must be on, sid_only or off"))
	}
	if c.Recent < time.Second || c.Recent > maxAccess {
		problems = append(problems, errors.New("RECENT: must be from 1s to 24h"))
	}
	return errors.Join(problems...)
}

// Lifetimes is a duration for each platform: "15m" for all, or "15m,web=5m".
type Lifetimes map[string]time.Duration

// UnmarshalText parses the form of the setting. There must be a value for platforms that are not named.
func (l *Lifetimes) UnmarshalText(text []byte) error {
	*l = Lifetimes{}
	for part := range strings.SplitSeq(string(text), ",") {
		platform, value, found := strings.Cut(strings.TrimSpace(part), "=")
		if !found {
			platform, value = "", platform
		}
		d, err := settings.ParseDuration(value)
		if err != nil {
			return fmt.Errorf("%q %w", value, err)
		}
		(*l)[strings.ToLower(platform)] = d
	}
	if _, ok := (*l)[""]; !ok {
		return errors.New("a value for all other platforms is missing")
	}
	return nil
}

// String is the form that UnmarshalText reads.
func (l Lifetimes) String() string {
	parts := []string{l[""].String()}
	for _, platform := range slices.Sorted(maps.Keys(l)) {
		if platform != "" {
			parts = append(parts, platform+"="+l[platform].String())
		}
	}
	return strings.Join(parts, ",")
}

// of is the duration for a platform.
func (l Lifetimes) of(platform string) time.Duration {
	if own, ok := l[strings.ToLower(platform)]; ok {
		return own
	}
	return l[""]
}

func (l Lifetimes) longest() time.Duration {
	return slices.Max(slices.Collect(maps.Values(l)))
}

func (l Lifetimes) within(name string, least, most time.Duration) error {
	for _, d := range l {
		if d < least || d > most {
			return fmt.Errorf("%s: must be from %v to %v", name, least, most)
		}
	}
	return nil
}
