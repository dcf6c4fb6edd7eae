package audit

import (
	"errors"
	"sync"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/gcra"
)

// Bounds of what strangers can make the log hold. Together at most 60 entries at once, and then 6 and 17 sums a minute:
// 33,000 a day, 12 MB, under an attack that never stops.
const (
	failureKeys   = 1 << 10
	failureSums   = 16 // networks and actions that are summed up on their own in a minute; all others share one sum
	failuresEach  = 5
	failuresAll   = 60
	failureWindow = 10 * time.Minute
)

// failure is what a count is about.
type failure struct{ action, outcome, network string }

// failures counts what is not stored one by one.
type failures struct {
	mu     sync.Mutex
	table  *gcra.Table
	counts map[failure]int
}

// NoteFailure is [Log.Note] for what anybody can cause at any rate, such as a wrong password. From one network (IPv4 /24,
// IPv6 /48) 5 a minute are stored as they are, from all together 60 in ten minutes. The others are counted, and once a
// minute the counts are stored. They are in memory until then: a crash loses them. Successes are stored always.
func (l *Log) NoteFailure(tx core.App, e *core.RequestEvent, action, outcome string, subject *core.Record, details map[string]any) error {
	if e == nil || outcome == Success || outcome == "ok" {
		return l.Note(tx, e, action, outcome, subject, details)
	}
	key := failure{action, outcome, From(e).Address}
	if l.failures.stored(key) {
		return l.Note(tx, e, action, outcome, subject, details)
	}
	return nil
}

// stored reports whether the failure may have an entry of its own, and counts it if not.
func (f *failures) stored(key failure) bool {
	each := gcra.Policy{Name: "each", Limit: failuresEach, Window: time.Minute}
	all := gcra.Policy{Name: "all", Limit: failuresAll, Window: failureWindow}
	if f.table.Take([]byte(key.action+" "+key.network), each, 1).Allowed && f.table.Take(nil, all, 1).Allowed {
		return true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if _, known := f.counts[key]; !known && len(f.counts) >= failureSums {
		key = failure{action: "audit.failures", outcome: Failure}
	}
	f.counts[key]++
	return false
}

// summarise stores the counts. At the end of the program only what can be stored is.
func (l *Log) summarise(app core.App, last bool) error {
	l.failures.mu.Lock()
	counts := l.failures.counts
	l.failures.counts = map[failure]int{}
	l.failures.mu.Unlock()
	var problems []error
	for key, n := range counts {
		err := l.Append(app, Entry{
			Action: key.action, Outcome: key.outcome, Actor: Party{Kind: Guest}, Address: key.network, Details: map[string]any{"count": n, "summed": true},
		})
		if err == nil {
			continue
		}
		problems = append(problems, err)
		if last {
			break
		}
		l.failures.mu.Lock() // next time
		l.failures.counts[key] += n
		l.failures.mu.Unlock()
	}
	return errors.Join(problems...)
}
