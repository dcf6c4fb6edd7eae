package live

import (
	"errors"
	"fmt"

	"github.com/satchelbase/satchel/extensions/live/channel"
	"github.com/satchelbase/satchel/extensions/settings"
)

// Config is read from SATCHEL_LIVE_*.
type Config struct {
	Connections      int `env:"CONNECTIONS" default:"10000" help:"connections at once, WebSocket and server-sent events together; about 50 KB each"`
	UserConnections  int `env:"USER_CONNECTIONS" default:"8" help:"connections of one account at once"`
	GuestConnections int `env:"GUEST_CONNECTIONS" default:"100" help:"connections from one address at once that are not signed in"`

	Subscriptions int            `env:"SUBSCRIPTIONS" default:"100" help:"subscriptions of one WebSocket connection"`
	Frames        int            `env:"FRAMES" default:"20" help:"frames a second that a client may send on one connection; five times as many at once"`
	Queue         settings.Bytes `env:"QUEUE" default:"256KB" help:"events that wait in memory for one connection; a slower client is served from the change log instead"`
	Remember      int            `env:"REMEMBER" default:"200" help:"records for each subscription whose leaving is noticed, those that were sent last"`

	Channels []string `env:"CHANNELS" default:"" help:"broadcast channels, as each pattern=join rule|>publish rule; * lets everybody, nothing nobody, + before the pattern shows who is there; a pattern such as room:{id} gives the rules @request.query.id"`
}

// Validate reports numbers that cannot work, and channels that are not well-formed.
func (c Config) Validate() error {
	var problems []error
	inRange := func(key string, value, low, high int) {
		if value < low || value > high {
			problems = append(problems, fmt.Errorf("%s: must be between %d and %d", key, low, high))
		}
	}
	inRange("CONNECTIONS", c.Connections, 1, 1_000_000)
	inRange("USER_CONNECTIONS", c.UserConnections, 1, 1_000_000)
	inRange("GUEST_CONNECTIONS", c.GuestConnections, 0, 1_000_000)
	inRange("SUBSCRIPTIONS", c.Subscriptions, 1, 1000)
	inRange("FRAMES", c.Frames, 1, 10_000)
	inRange("REMEMBER", c.Remember, 0, 10_000)
	if c.Queue < 4<<10 || c.Queue > 64<<20 {
		problems = append(problems, errors.New("QUEUE: must be between 4KB and 64MB"))
	}
	for _, text := range c.Channels {
		if _, err := channel.Parse(text); err != nil {
			problems = append(problems, fmt.Errorf("CHANNELS: %w", err))
		}
	}
	return errors.Join(problems...)
}
