// Package meter counts what this process does with the jobs of a kind.
package meter

import (
	"sync/atomic"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/tally"
)

// Outcome is how an attempt has ended.
type Outcome int

// The outcomes. Failed attempts are followed by another one; Returned jobs were given back because the server stops, and Lost
// ones belong to another process.
const (
	Succeeded Outcome = iota
	Failed
	Dead
	Snoozed
	Cancelled
	Expired
	Returned
	Lost
	outcomes
)

// String is the label.
func (o Outcome) String() string {
	return [...]string{"succeeded", "failed", "dead", "snoozed", "cancelled", "expired", "returned", "lost"}[o]
}

// Meter is that of one kind. It is safe for concurrent use.
type Meter struct {
	Wait *tally.Histogram // from when a job is due until a worker begins it
	Run  *tally.Histogram // of attempts

	ended [outcomes]atomic.Uint64
}

// New returns a meter with nothing counted.
func New() *Meter {
	const ms = time.Millisecond
	return &Meter{
		Wait: tally.NewHistogram(5*ms, 25*ms, 100*ms, 500*ms, time.Second, 5*time.Second, 15*time.Second, time.Minute, 5*time.Minute, 30*time.Minute, 2*time.Hour, 12*time.Hour),
		Run:  tally.NewHistogram(ms, 5*ms, 25*ms, 100*ms, 250*ms, 500*ms, time.Second, 2500*ms, 10*time.Second, 30*time.Second, time.Minute, 5*time.Minute),
	}
}

// Ended counts an attempt.
func (m *Meter) Ended(o Outcome) { m.ended[o].Add(1) }

// Each calls fn for every outcome.
func (m *Meter) Each(fn func(o Outcome, n uint64)) {
	for o := range outcomes {
		fn(o, m.ended[o].Load())
	}
}
