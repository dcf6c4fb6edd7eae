package jobs

import (
	"context"
	"encoding/json"
	"encoding/json/jsontext"
	jsonv2 "encoding/json/v2"
	"errors"
	"fmt"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/cron"

	"github.com/satchelbase/satchel/extensions/jobs/meter"
	"github.com/satchelbase/satchel/extensions/jobs/schedule"
	"github.com/satchelbase/satchel/extensions/jobs/table"
)

// Defaults of a kind.
const (
	defaultQueue    = "default"
	defaultPriority = 5
	defaultAttempts = 10
	defaultTimeout  = time.Minute
	defaultFirst    = 15 * time.Second
	defaultLongest  = time.Hour

	// NoTimeout lets a job take as long as it takes.
	NoTimeout = time.Duration(-1)
)

// Spec declares a kind of job. In is what a job is given: any type that JSON can hold, which must stay readable for jobs
// that were enqueued by the release before. The zero value of every field but Kind and Work is the default in brackets.
type Spec[In any] struct {
	Kind     string        // "reminders.send": the feature and what is done
	Queue    string        // whose workers do it [default]
	Priority int           // 1 is the most urgent, 9 the least [5]
	Attempts int           // how often a job is tried before it is dead [10]
	Timeout  time.Duration // of one attempt [1 minute]; see NoTimeout

	// FirstWait is the wait after the first failure [15 s]; it doubles with each one until it is LongestWait [1 hour]. What
	// is waited is between half and all of it.
	FirstWait, LongestWait time.Duration

	// PerLane is how many jobs with the same [Options.Lane] are done at a time [1].
	PerLane int

	// Cron enqueues a job with the zero value of In at the times of the expression, which is in UTC, unless the one before has
	// not ended. With CatchUp one is enqueued at the start of the server when times have passed while it was down.
	Cron    string
	CatchUp bool

	// Sealed keeps what jobs are given encrypted at rest.
	Sealed bool

	// Resumable says that an attempt may be ended at once when the server stops, because the next one goes on from where it
	// was. Others get time to finish.
	Resumable bool

	// Work does it. It returns soon after ctx has ended. An error is tried again, see also [Permanent], [Snooze] and
	// [RetryAfter]. It may run again after it has succeeded when the process dies in between: what must happen once goes
	// into [Job.Once].
	Work func(ctx context.Context, job *Job, in In) error
}

// Kind is a declared kind. [Define] makes it.
type Kind struct {
	name, queue          string
	priority, attempts   int
	timeout, first, most time.Duration
	perLane              int
	cron                 string
	schedule             *cron.Schedule
	catchUp              bool
	sealed, resumable    bool
	zero                 string // the payload of scheduled jobs
	meter                *meter.Meter
	check                func(payload []byte) error
	work                 func(ctx context.Context, job *Job) error
	err                  error
}

// Define makes a kind. A mistake in it stops the program when it starts.
func Define[In any](s Spec[In]) Kind {
	k := Kind{
		name: s.Kind, queue: s.Queue, priority: s.Priority, attempts: s.Attempts, timeout: s.Timeout, first: s.FirstWait, most: s.LongestWait,
		perLane: s.PerLane, cron: s.Cron, catchUp: s.CatchUp, sealed: s.Sealed, resumable: s.Resumable, meter: meter.New(),
	}
	k.check = func(payload []byte) error {
		_, err := decode[In](payload, true)
		return err
	}
	k.work = func(ctx context.Context, job *Job) error {
		in, err := decode[In](job.payload, false)
		switch {
		case err != nil && job.sealed: // the reason may quote it, and errors are neither sealed nor forgotten with it
			return Permanent(errors.New("this program cannot read what the job is given"))
		case err != nil:
			return Permanent(err)
		}
		return s.Work(ctx, job, in)
	}
	var zero In
	text, err := json.Marshal(zero)
	if err != nil {
		k.err = fmt.Errorf("job kind %s: %w", s.Kind, err)
		return k
	}
	k.zero = string(text)
	k.fill()
	k.err = k.mistake(s.Work == nil)
	return k
}

// decode reads what a job is given. A job that waits may come from another release, so only who enqueues is strict.
func decode[In any](payload []byte, strict bool) (in In, err error) {
	if err := jsonv2.Unmarshal(payload, &in, jsonv2.RejectUnknownMembers(strict), jsontext.AllowDuplicateNames(false), json.FormatDurationAsNano(true)); err != nil {
		return in, fmt.Errorf("read what the job is given: %w", err)
	}
	return in, nil
}

func (k *Kind) fill() {
	or := func(value *int, fallback int) {
		if *value == 0 {
			*value = fallback
		}
	}
	wait := func(value *time.Duration, fallback time.Duration) {
		if *value == 0 {
			*value = fallback
		}
	}
	if k.queue == "" {
		k.queue = defaultQueue
	}
	or(&k.priority, defaultPriority)
	or(&k.attempts, defaultAttempts)
	or(&k.perLane, 1)
	wait(&k.timeout, defaultTimeout)
	wait(&k.first, defaultFirst)
	wait(&k.most, defaultLongest)
}

func (k *Kind) mistake(idle bool) error {
	switch {
	case !table.IsName(k.name) || !table.IsName(k.queue):
		return fmt.Errorf("job kind %q in queue %q: the names must be letters, digits and . _ : -", k.name, k.queue)
	case idle:
		return fmt.Errorf("job kind %s needs work", k.name)
	case k.priority < 1 || k.priority > 9, k.attempts < 1 || k.attempts > 100, k.perLane < 1:
		return fmt.Errorf("job kind %s: the priority is 1 to 9, attempts are 1 to 100, and a lane holds at least one", k.name)
	case k.timeout < 0 && k.timeout != NoTimeout, k.first < 0, k.most < k.first:
		return fmt.Errorf("job kind %s: a time is negative, or the longest wait shorter than the first", k.name)
	case k.cron == "":
		return nil
	}
	err := k.check([]byte(k.zero))
	if err != nil { // nothing would ever be enqueued, and no queue go on while that is tried
		return fmt.Errorf("job kind %s: the zero value, which scheduled jobs are given: %w", k.name, err)
	}
	if k.schedule, err = cron.NewSchedule(k.cron); err != nil {
		return fmt.Errorf("job kind %s: the schedule %q: %w", k.name, k.cron, err)
	}
	if schedule.Next(k.schedule, time.Now()).IsZero() {
		return fmt.Errorf("job kind %s: the schedule %q has no time", k.name, k.cron)
	}
	return nil
}

// Owner is the account on whose behalf a job works. Collection is an id. The zero value is the program.
type Owner struct{ Collection, ID string }

// OwnerOf is the account as an owner; nil is the program.
func OwnerOf(account *core.Record) Owner {
	if account == nil {
		return Owner{}
	}
	return Owner{Collection: account.Collection().Id, ID: account.Id}
}

// ErrLost says that a job belongs to another process now, or has been removed. What the transaction wanted to do must not
// happen.
var ErrLost = errors.New("the job belongs to another process")

// ErrNotFound says that there is no job with an id.
var ErrNotFound = table.ErrNotFound

// State is where a job stands.
type State = table.State

// States of a job; see the package table.
const (
	Ready     = table.Ready
	Running   = table.Running
	Scheduled = table.Scheduled
	Dead      = table.Dead
	Held      = table.Held
	Succeeded = table.Succeeded
	Cancelled = table.Cancelled
	Expired   = table.Expired
)

// Status is a job as its owner sees it.
type Status = table.Status

// Tables lists those of the feature. No rule, collection or view reads them.
func Tables() []string { return table.Names() }

func ownerOf(r *table.Row) Owner { return Owner{Collection: r.OwnerCollection, ID: r.Owner} }

// errCancelled ends the context of a job that is cancelled while it runs.
var errCancelled = errors.New("the job was cancelled")

type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// Permanent marks an error that another attempt would meet, too: the job is dead.
func Permanent(err error) error { return permanent{err} }

type snooze struct{ wait time.Duration }

func (snooze) Error() string { return "snoozed" }

// Snooze is what Work returns to be called again after a while. The attempt is not counted.
func Snooze(wait time.Duration) error { return snooze{max(wait, 0)} }

type later struct {
	error
	wait time.Duration
}

func (l later) Unwrap() error { return l.error }

// RetryAfter is a failure after which whoever failed has said how long to wait. The attempt is counted.
func RetryAfter(wait time.Duration, err error) error { return later{err, max(wait, 0)} }
