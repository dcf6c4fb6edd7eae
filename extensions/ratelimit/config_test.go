package ratelimit

import (
	"strings"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/gcra"
	"github.com/satchelbase/satchel/extensions/settings"
)

func TestDefaults(t *testing.T) {
	cfg := settings.Defaults[Config]()
	want := Config{
		Preset: Default, IP: 600, User: 300, UserBurst: 60, Session: 300, Auth: 10, AuthWindow: 15 * time.Minute,
		Refresh: 30, SuperuserFactor: 10, TableSize: 1 << 18,
	}
	if cfg != want {
		t.Errorf("got %+v, want %+v", cfg, want)
	}
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
}

func TestSettings(t *testing.T) {
	for _, c := range []struct{ pair, problem string }{
		{"SATCHEL_RATELIMIT_PRESET=strict", ""},
		{"SATCHEL_RATELIMIT_IP=1000000000", ""},
		{"SATCHEL_RATELIMIT_USER=1", ""},
		{"SATCHEL_RATELIMIT_AUTH_WINDOW=24h", ""},
		{"SATCHEL_RATELIMIT_PRESET=off", "default or strict"},
		{"SATCHEL_RATELIMIT_IP=0", "SATCHEL_RATELIMIT_IP"},
		{"SATCHEL_RATELIMIT_IP=-1", "SATCHEL_RATELIMIT_IP"},
		{"SATCHEL_RATELIMIT_IP=1000000001", "SATCHEL_RATELIMIT_IP"},
		{"SATCHEL_RATELIMIT_USER=0", "SATCHEL_RATELIMIT_USER"},
		{"SATCHEL_RATELIMIT_USER_BURST=0", "SATCHEL_RATELIMIT_USER_BURST"},
		{"SATCHEL_RATELIMIT_SESSION=0", "SATCHEL_RATELIMIT_SESSION"},
		{"SATCHEL_RATELIMIT_AUTH=0", "SATCHEL_RATELIMIT_AUTH"},
		{"SATCHEL_RATELIMIT_AUTH_WINDOW=0s", "SATCHEL_RATELIMIT_AUTH_WINDOW"},
		{"SATCHEL_RATELIMIT_AUTH_WINDOW=1500ms", "SATCHEL_RATELIMIT_AUTH_WINDOW"},
		{"SATCHEL_RATELIMIT_AUTH_WINDOW=25h", "SATCHEL_RATELIMIT_AUTH_WINDOW"},
		{"SATCHEL_RATELIMIT_REFRESH=0", "SATCHEL_RATELIMIT_REFRESH"},
		{"SATCHEL_RATELIMIT_SUPERUSER_FACTOR=0", "SATCHEL_RATELIMIT_SUPERUSER_FACTOR"},
		{"SATCHEL_RATELIMIT_TABLE_SIZE=1023", "SATCHEL_RATELIMIT_TABLE_SIZE"},
		{"SATCHEL_RATELIMIT_TABLE_SIZE=5000000", "SATCHEL_RATELIMIT_TABLE_SIZE"},
		{"SATCHEL_RATELIMIT_ENABLED=false", "SATCHEL_RATELIMIT_ENABLED"},
	} {
		t.Run(c.pair, func(t *testing.T) {
			s := settings.Load([]string{c.pair})
			settings.Section[Config](s, "ratelimit")
			err := s.Err()
			if c.problem == "" && err != nil || c.problem != "" && (err == nil || !strings.Contains(err.Error(), c.problem)) {
				t.Errorf("got %v, want a problem with %q", err, c.problem)
			}
		})
	}
}

// The largest numbers must not overflow.
func TestExtremesHold(t *testing.T) {
	cfg := settings.Defaults[Config]()
	cfg.IP, cfg.User, cfg.UserBurst = maxLimit, maxLimit, maxLimit
	table := gcra.NewTableWithClock(64, func() time.Duration { return time.Hour })
	for _, p := range []gcra.Policy{
		cfg.policies().ip.Times(networkFactor), cfg.policies().user.Times(maxFactor),
		{Name: "slow", Limit: 1, Window: maxWindow},
		{Name: "slow", Limit: maxLimit, Window: maxWindow, Burst: 1},
	} {
		d := table.Take([]byte("k"), p, 1)
		if !d.Allowed || d.Remaining != p.AtOnce()-1 || d.Reset <= 0 {
			t.Errorf("%+v: %+v", p, d)
		}
		if d := table.Take([]byte("k"), p, int(^uint(0)>>1)); d.Allowed || d.RetryAfter <= 0 {
			t.Errorf("%+v: huge cost: %+v", p, d)
		}
	}
}
