package ratelimit

import (
	"errors"
	"fmt"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/gcra"
)

// Bounds of the settings. A thousand million a minute is beyond any server, so it serves benchmarks as "no limit"; a
// table of 2^22 slots takes 68 MiB.
const (
	maxLimit  = 1_000_000_000
	maxFactor = 1000
	maxWindow = 24 * time.Hour
	minSlots  = 1 << 10
	maxSlots  = 1 << 22
)

// The strict preset, for servers that are being attacked or that serve few clients.
const (
	strictIP       = 100
	strictIPWindow = 15 * time.Minute
)

// networkFactor is how many times the quota of one address an IPv6 /48 has. A /48 is one site and holds 65,536 /64.
const networkFactor = 8

// Preset is a named set of numbers.
type Preset string

// The presets.
const (
	Default Preset = "default"
	Strict  Preset = "strict"
)

// UnmarshalText refuses unknown names.
func (p *Preset) UnmarshalText(text []byte) error {
	switch Preset(text) {
	case Default, Strict:
		*p = Preset(text)
		return nil
	}
	return errors.New("must be default or strict")
}

// Config is read from SATCHEL_RATELIMIT_*. Limits count units of cost: 1 for a read, 1 more for every 100 records of a
// list, 5 for a write. There is no switch to turn the limiter off: tests and benchmarks raise the numbers.
type Config struct {
	Preset Preset `env:"PRESET" default:"default" help:"default, or strict: 100 requests per 15 min for one address, in place of IP"`

	IP int `env:"IP" default:"600" help:"requests a minute from one address, an IPv4 /32 or IPv6 /64; an IPv6 /48 gets eight times as many"`

	User      int `env:"USER" default:"300" help:"units a minute for one signed-in account"`
	UserBurst int `env:"USER_BURST" default:"60" help:"units of USER and SESSION that may come at once; more than the limit itself has no effect"`
	Session   int `env:"SESSION" default:"300" help:"units a minute for one session; less than USER keeps one device from using all of it"`

	Auth       int           `env:"AUTH" default:"10" help:"attempts to sign in, or to get or use a code by mail, in AUTH_WINDOW, for one address and for one account"`
	AuthWindow time.Duration `env:"AUTH_WINDOW" default:"15m" help:"window of AUTH"`

	Refresh int `env:"REFRESH" default:"30" help:"token refreshes a minute for one session"`

	SuperuserFactor int `env:"SUPERUSER_FACTOR" default:"10" help:"how many times the quotas of users a superuser has"`

	TableSize int `env:"TABLE_SIZE" default:"262144" help:"keys that are remembered, 17 bytes each; when full, those that used least are forgotten"`
}

// Validate reports numbers that cannot work, all of them.
func (c Config) Validate() error {
	var problems []error
	inRange := func(key string, value, low, high int) {
		if value < low || value > high {
			problems = append(problems, fmt.Errorf("%s: must be between %d and %d", key, low, high))
		}
	}
	inRange("IP", c.IP, 1, maxLimit)
	inRange("USER", c.User, 1, maxLimit)
	inRange("USER_BURST", c.UserBurst, 1, maxLimit)
	inRange("SESSION", c.Session, 1, maxLimit)
	inRange("AUTH", c.Auth, 1, maxLimit)
	inRange("REFRESH", c.Refresh, 1, maxLimit)
	inRange("SUPERUSER_FACTOR", c.SuperuserFactor, 1, maxFactor)
	inRange("TABLE_SIZE", c.TableSize, minSlots, maxSlots)
	if c.AuthWindow < time.Second || c.AuthWindow > maxWindow || c.AuthWindow%time.Second != 0 {
		problems = append(problems, errors.New("AUTH_WINDOW: must be whole seconds, between 1s and 24h"))
	}
	return errors.Join(problems...)
}

// policies are the quotas that a configuration makes. Their names appear in the answers' headers.
type policies struct {
	ip, user, session, auth, account, refresh gcra.Policy
}

func (c Config) policies() policies {
	p := policies{
		ip:      gcra.Policy{Name: "ip", Limit: c.IP, Window: time.Minute},
		user:    gcra.Policy{Name: "user", Limit: c.User, Window: time.Minute, Burst: c.UserBurst},
		session: gcra.Policy{Name: "session", Limit: c.Session, Window: time.Minute, Burst: c.UserBurst},
		auth:    gcra.Policy{Name: "auth", Limit: c.Auth, Window: c.AuthWindow},
		account: gcra.Policy{Name: "account", Limit: c.Auth, Window: c.AuthWindow},
		refresh: gcra.Policy{Name: "refresh", Limit: c.Refresh, Window: time.Minute},
	}
	if c.Preset == Strict {
		p.ip.Limit, p.ip.Window = strictIP, strictIPWindow
	}
	return p
}
