package guard

import (
	"errors"
	"fmt"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/gcra"
)

// Bounds of the settings. A table of 2^20 slots takes 17 MiB.
const (
	maxLimit  = 1_000_000
	maxWindow = 24 * time.Hour
	minSlots  = 1 << 10
	maxSlots  = 1 << 20
)

// networkFactor is how many times the quota of one address an IPv6 /48 has, as in the rate limiter.
const networkFactor = 8

// EmailTaken decides what a sign-up with the address of another account is told.
type EmailTaken string

// The answers to a taken address.
const (
	Equal EmailTaken = "equal"
	Tell  EmailTaken = "tell"
)

// UnmarshalText refuses unknown names.
func (m *EmailTaken) UnmarshalText(text []byte) error {
	switch EmailTaken(text) {
	case Equal, Tell:
		*m = EmailTaken(text)
		return nil
	}
	return errors.New("must be equal or tell")
}

// Config is read from SATCHEL_GUARD_*.
type Config struct {
	Account int           `env:"ACCOUNT" default:"20" help:"failed sign-ins in WINDOW for one account; then only devices that have signed in to it before may go on"`
	Pair    int           `env:"PAIR" default:"10" help:"failed sign-ins in WINDOW for one account from one address"`
	Address int           `env:"ADDRESS" default:"100" help:"failed sign-ins in WINDOW from one address, an IPv4 /32 or IPv6 /64; an IPv6 /48 gets eight times as many"`
	Window  time.Duration `env:"WINDOW" default:"1h" help:"window of ACCOUNT, PAIR and ADDRESS"`

	EmailTaken EmailTaken `env:"EMAIL_TAKEN" default:"equal" help:"answer to a sign-up or change to an address that is taken: equal, as if it were free, with a mail to its owner; or tell"`

	TableSize int `env:"TABLE_SIZE" default:"65536" help:"accounts and addresses that are remembered, 17 bytes each; when full, those with the fewest failures are forgotten"`
}

// Validate reports numbers that cannot work, all of them.
func (c Config) Validate() error {
	var problems []error
	inRange := func(key string, value, low, high int) {
		if value < low || value > high {
			problems = append(problems, fmt.Errorf("%s: must be between %d and %d", key, low, high))
		}
	}
	inRange("ACCOUNT", c.Account, 1, maxLimit)
	inRange("PAIR", c.Pair, 1, maxLimit)
	inRange("ADDRESS", c.Address, 1, maxLimit)
	inRange("TABLE_SIZE", c.TableSize, minSlots, maxSlots)
	if c.Window < time.Minute || c.Window > maxWindow || c.Window%time.Second != 0 {
		problems = append(problems, errors.New("WINDOW: must be whole seconds, between 1m and 24h"))
	}
	return errors.Join(problems...)
}

// eventsPerWindow bounds the audit entries about failures, so that a flood does not fill the disk. It counts for known
// and unknown accounts together: the entry must not tell them apart by the time it takes.
const eventsPerWindow = 1000

// policies are the quotas that a configuration makes. device is that of a known device, apart from the account's.
type policies struct {
	account, pair, address, network, device gcra.Policy

	// locked allows one entry about the same lockout, events those about all failures.
	locked, events gcra.Policy
}

func (c Config) policies() policies {
	p := policies{
		account: gcra.Policy{Name: "account", Limit: c.Account, Window: c.Window},
		pair:    gcra.Policy{Name: "pair", Limit: c.Pair, Window: c.Window},
		address: gcra.Policy{Name: "address", Limit: c.Address, Window: c.Window},
		device:  gcra.Policy{Name: "device", Limit: c.Account, Window: c.Window},
		locked:  gcra.Policy{Name: "locked", Limit: 1, Window: c.Window},
		events:  gcra.Policy{Name: "events", Limit: eventsPerWindow, Window: c.Window},
	}
	p.network = p.address.Times(networkFactor)
	p.network.Name = "network"
	return p
}
