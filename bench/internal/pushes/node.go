package pushes

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/satchelbase/satchel/bench/internal/machine"
)

// contend runs the program for Node, with the same devices, and returns what it says and the processor time of all of it.
func contend(ctx context.Context, dir, database string, p *provider, n int) (out outcome, spent time.Duration, err error) {
	address, err := url.Parse(p.url)
	if err != nil {
		return out, 0, fmt.Errorf("read address: %w", err)
	}
	c := machine.Command(ctx, dir, "node", "push.js")
	c.Env = append(os.Environ(), "NODE_ENV=production", "SQLITE="+database, "DEVICES="+strconv.Itoa(n), "DEAD_EVERY="+strconv.Itoa(deadEvery),
		"WRITE_EVERY="+strconv.FormatInt(writeEvery.Milliseconds(), 10), "HOST="+address.Hostname(), "PORT="+address.Port(), "CA="+p.ca, "KEY="+p.key,
		"KEY_ID="+p.keyID, "TEAM_ID="+p.teamID, "TOPIC="+p.topic)
	var stderr bytes.Buffer
	c.Stderr = &stderr
	text, err := c.Output()
	if c.ProcessState != nil {
		spent = c.ProcessState.UserTime() + c.ProcessState.SystemTime()
	}
	if err != nil {
		return out, spent, fmt.Errorf("run push.js: %w\n%s", err, &stderr)
	}
	if err := json.Unmarshal(text, &out); err != nil {
		return out, spent, fmt.Errorf("read what push.js says: %w", err)
	}
	return out, spent, nil
}
