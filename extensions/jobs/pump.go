package jobs

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/jobs/table"
)

const (
	// maxAhead is how many jobs are claimed beyond the workers that are free, and aheadFor how much work that is at most:
	// jobs of microseconds need batches, jobs of seconds are not kept from others.
	maxAhead = 200
	aheadFor = 20 * time.Millisecond

	// maxSettle bounds one transaction of the queue, so that other writers do not wait long.
	maxSettle = 250

	// maxAside bounds how many jobs that must wait it sets aside.
	maxAside = 250

	// lease is how long a process on another machine may be silent before its jobs are taken from it, and beatEvery how
	// often this one says that it works, while it does.
	lease     = 30 * time.Second
	beatEvery = 3 * time.Second

	// listenEvery is how late this process hears of another one's commands, for the price of one look at a file.
	listenEvery = time.Second

	// lookEvery is how often the database is asked without a reason, in case something wrote to the tables past this package.
	lookEvery = time.Minute

	// sweepPause lets others write between two transactions that remove old rows.
	sweepPause = 50 * time.Millisecond

	// retryTurn is the wait after a transaction of the queue has failed.
	retryTurn = 200 * time.Millisecond
)

// errStopping ends the contexts of jobs when the server stops.
var errStopping = errors.New("the server stops")

// queue is the jobs that share workers.
type queue struct {
	name    string
	workers int
	jobs    chan *Job
	taken   int          // claimed and not settled; the pump's alone, as the next one
	freed   int          // of them, those that are being settled
	behind  bool         // more jobs are ready than were claimed the last time
	urgent  int          // claimed by their priority since one was claimed by its age, while behind
	maybe   atomic.Bool  // there may be ready jobs
	mean    atomic.Int64 // of run times, in nanoseconds; 0 is not known yet
}

// observe keeps a moving average.
func (q *queue) observe(took time.Duration) {
	old := q.mean.Load()
	if old == 0 {
		q.mean.Store(max(int64(took), 1))
		return
	}
	q.mean.Store(max(old+(int64(took)-old)/16, 1))
}

// room is how many jobs to claim once those that have ended are settled.
func (q *queue) room() int {
	ahead := 0
	if mean := q.mean.Load(); mean > 0 {
		ahead = int(min(int64(aheadFor)/mean*int64(q.workers), maxAhead))
	}
	return max(q.workers+ahead-q.taken+q.freed, 0)
}

func (j *Jobs) start(_ context.Context, _ *extensions.Host) error {
	if err := j.present.Enter(j.folder(), j.epoch); err != nil {
		return err
	}
	j.stopping, j.idle, j.done = make(chan struct{}), make(chan struct{}), make(chan struct{})
	var pumping context.Context
	j.work, j.endWork = context.WithCancelCause(context.Background())
	pumping, j.endPump = context.WithCancel(context.Background())
	j.finished, j.inflight, j.pending = make(chan result, 2*maxSettle), map[int64]*Job{}, nil
	j.looked, j.nextCron = time.Time{}, time.Time{}
	for _, q := range j.queues {
		q.jobs, q.taken = make(chan *Job, q.workers+maxAhead), 0
		q.maybe.Store(true)
		for range q.workers {
			j.workers.Go(func() { j.labour(q) })
		}
	}
	j.nextDue.Store(0)
	j.awake.Store(true)
	stopping, idle := j.stopping, j.idle
	go func() { <-stopping; j.workers.Wait(); close(idle) }()
	done := j.done
	go func() { defer close(done); j.pump(pumping) }()
	return nil
}

// labour does jobs until the server stops.
func (j *Jobs) labour(q *queue) {
	for {
		select {
		case <-j.stopping:
			return
		default:
		}
		select {
		case <-j.stopping:
			return
		case job := <-q.jobs:
			j.execute(q, job)
		}
	}
}

// stop lets jobs finish for a while, then ends their contexts. What does not return in time is taken up like that of a
// crashed process.
func (j *Jobs) stop(ctx context.Context) error {
	if j.endPump == nil || !j.awake.Swap(false) {
		return nil // another extension could not start
	}
	defer j.present.Leave()
	close(j.stopping)
	drained := time.NewTimer(j.cfg.Drain)
	defer drained.Stop()
	for {
		select {
		case <-j.done:
			return nil
		case <-drained.C:
			j.endWork(errStopping)
		case <-ctx.Done():
			j.endWork(errStopping)
			j.endPump()
			<-j.done
			return errors.New("jobs did not stop in time; they will be taken up again")
		}
	}
}

// pump is the one goroutine that claims jobs and writes how they ended, both in one transaction each time, until the
// workers have stopped or ctx ends.
func (j *Jobs) pump(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	stopping, idle := j.stopping, j.idle
	for {
		last := false
		select {
		case <-ctx.Done():
			last = true
		case <-idle:
			last = true
		case <-stopping:
			stopping = nil
			j.interrupt()
			continue
		case <-j.wake:
		case r := <-j.finished:
			j.pending = append(j.pending, r)
		case <-timer.C:
		}
		if last {
			j.finish()
			return
		}
		j.gather()
		if err := j.turn(); err != nil { // the results are safe in memory, and new ones wait in the channel
			j.complain(ctx, err)
			timer.Reset(retryTurn)
			select {
			case <-ctx.Done():
			case <-idle:
			case <-timer.C:
			}
			timer.Reset(0)
			continue
		}
		timer.Reset(j.pause())
	}
}

// gather takes what has ended meanwhile, up to the size of a transaction.
func (j *Jobs) gather() {
	for len(j.pending) < maxSettle {
		select {
		case r := <-j.finished:
			j.pending = append(j.pending, r)
		default:
			return
		}
	}
}

// interrupt ends what goes on from where it was.
func (j *Jobs) interrupt() {
	for _, job := range j.inflight {
		if job.kind.resumable {
			job.cancel(errStopping)
		}
	}
}

// finish writes what is left when the server stops: the ends of attempts, and that the others were not begun.
func (j *Jobs) finish() {
	for _, q := range j.queues {
		for more := true; more; {
			select {
			case job := <-q.jobs:
				j.pending = append(j.pending, result{job: job, outcome: Ready, free: true, ended: j.now()})
			default:
				more = false
			}
		}
	}
	for more := true; more; {
		select {
		case r := <-j.finished:
			j.pending = append(j.pending, r)
		default:
			more = false
		}
	}
	err := j.app.RunInTransaction(func(tx core.App) error { return j.settle(tx, j.pending) })
	if err != nil {
		j.logger.Warn("the ends of jobs could not be written; they will be taken up again", "error", err)
	}
}

// turn is one transaction of the queue, or none if there is nothing to do.
func (j *Jobs) turn() error {
	now := j.now()
	if hasty := j.hasty.Swap(false); hasty || now.Sub(j.looked) >= lookEvery || j.present.Rung() {
		if err := j.look(now); err != nil {
			return err
		}
	}
	if err := j.sweepIfDue(now); err != nil {
		return err
	}
	closing := !j.awake.Load()
	j.countFreed()
	var asking []*queue
	for _, q := range j.queues {
		if !closing && q.room() > 0 && q.maybe.Swap(false) {
			asking = append(asking, q)
		}
	}
	promoting := !closing && j.nextDue.Load() <= now.UnixMilli()
	beating := j.looked.Equal(now) || len(j.inflight) > 0 && now.Sub(j.beaten) >= beatEvery
	firing := !closing && j.fires() && !j.nextCron.After(now)
	if len(j.pending) == 0 && len(asking) == 0 && !promoting && !beating && !firing {
		return nil
	}
	if promoting {
		j.nextDue.Store(math.MaxInt64) // before it is read, so that whoever enqueues meanwhile lowers it
	}
	claimed := map[*queue][]table.Row{}
	next, nextCron := int64(math.MaxInt64), j.nextCron
	err := j.app.RunInTransaction(func(tx core.App) (err error) {
		clear(claimed)
		if err = j.settle(tx, j.pending); err != nil {
			return err
		}
		if beating {
			if err = j.beat(tx); err != nil {
				return err
			}
		}
		if firing {
			if nextCron, err = j.fire(tx, now); err != nil {
				return err
			}
		}
		if promoting {
			if next, err = j.promote(tx); err != nil {
				return err
			}
		}
		return j.claimAll(tx, asking, claimed)
	})
	if err != nil {
		for _, q := range asking {
			q.maybe.Store(true)
		}
		if promoting {
			j.lower(0)
		}
		return fmt.Errorf("turn of the queue: %w", err)
	}
	if beating {
		j.beaten = now
	}
	j.nextCron = nextCron
	j.lower(next)
	j.settled()
	j.dispatch(claimed)
	return nil
}

// look is what is done now and then without a reason.
func (j *Jobs) look(now time.Time) error {
	if j.looked.IsZero() { // a kind may be known that was not
		if err := errors.Join(table.FreeHeld(j.app), table.Move(j.app, j.queueOf)); err != nil {
			return err
		}
	}
	if err := j.recover(); err != nil {
		return err
	}
	j.looked, j.nextCron = now, time.Time{} // the clock may have been put back
	j.lookAgain()
	j.present.Tidy(now.Add(-time.Hour))
	return nil
}

func (j *Jobs) queueOf(kind string) string {
	if k := j.kinds[kind]; k != nil {
		return k.queue
	}
	return ""
}

// countFreed counts what is being settled for each queue.
func (j *Jobs) countFreed() {
	for _, q := range j.queues {
		q.freed = 0
	}
	for _, r := range j.pending {
		r.job.from.freed++
	}
}

func (j *Jobs) claimAll(tx core.App, asking []*queue, claimed map[*queue][]table.Row) error {
	for _, q := range asking {
		list, more, err := j.claim(tx, q, q.room())
		if err != nil {
			return err
		}
		claimed[q] = list
		if more {
			q.maybe.Store(true)
		}
	}
	return nil
}

// settled forgets the attempts whose ends are written.
func (j *Jobs) settled() {
	for _, r := range j.pending {
		q := r.job.from
		q.taken--
		q.freed = 0
		if r.job.lane != "" || r.outcome == Ready {
			q.maybe.Store(true)
		}
		if j.inflight[r.job.id] == r.job {
			delete(j.inflight, r.job.id)
		}
		if r.outcome == Scheduled && !r.job.lost.Load() {
			j.lower(r.at.UnixMilli())
		}
		j.count.ended.Add(1)
		r.job.kind.meter.Ended(r.counted())
		j.sinceSweep++
	}
	clear(j.pending)
	j.pending = j.pending[:0]
}

// dispatch gives claimed jobs to the workers.
func (j *Jobs) dispatch(claimed map[*queue][]table.Row) {
	for q, list := range claimed {
		for _, r := range list {
			job := j.job(r, q)
			if before := j.inflight[r.ID]; before != nil {
				before.lose() // its lease was over, and it came back to us
			}
			j.inflight[r.ID] = job
			q.taken++
			q.jobs <- job // there is room for all that are taken
		}
	}
}

// pause is how long nothing is to be done unless somebody wakes the pump.
func (j *Jobs) pause() time.Duration {
	now := j.now()
	wait := listenEvery
	for _, q := range j.queues {
		if q.room() > 0 && q.maybe.Load() && j.awake.Load() {
			return 0
		}
	}
	if j.sinceSweep >= sweepAfter {
		wait = sweepPause
	}
	if due := j.nextDue.Load(); due < math.MaxInt64 {
		wait = min(wait, time.UnixMilli(due).Sub(now))
	}
	if j.fires() {
		wait = min(wait, j.nextCron.Sub(now))
	}
	return max(wait, 0)
}

// rouse says that there are new jobs in the queue, now or when they are due. In a process that does not work on jobs it
// calls those that do.
func (j *Jobs) rouse(queue string, due int64) {
	if !j.awake.Load() {
		j.ring()
		return
	}
	if due > 0 {
		if !j.lower(due) {
			return // the pump wakes before that anyway
		}
	} else if q := j.queues[queue]; q != nil {
		q.maybe.Store(true)
	}
	j.nudge()
}

func (j *Jobs) nudge() {
	select {
	case j.wake <- struct{}{}:
	default: // it is awake already
	}
}

// lower brings the next look at the scheduled jobs forward, and reports whether it did.
func (j *Jobs) lower(due int64) bool {
	for {
		old := j.nextDue.Load()
		if due >= old {
			return false
		}
		if j.nextDue.CompareAndSwap(old, due) {
			return true
		}
	}
}

// lookAgain makes the pump ask for everything.
func (j *Jobs) lookAgain() {
	for _, q := range j.queues {
		q.maybe.Store(true)
	}
	j.lower(0)
	j.nudge()
}

func (j *Jobs) complain(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil {
		j.logger.Warn("jobs could not be looked after", "error", err)
	}
}
