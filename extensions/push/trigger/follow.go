package trigger

import (
	"context"
	"errors"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/jobs"
)

const (
	// page is how many changes are looked at at once.
	page = 500

	// gather is how long changes are left to pile up after some were looked at, so that many writes cost few readings.
	gather = 20 * time.Millisecond

	// saveEvery is how often the position is written down while nothing concerns a trigger.
	saveEvery = 5 * time.Second

	// retryAfter is the wait after the log could not be read.
	retryAfter = time.Second
)

// follower is where the triggers are in the log. A position is written together with the jobs that the changes before it
// ask for. Changes that concern no trigger cost no write: after a crash the last of them are looked at again.
type follower struct {
	*Triggers
	reader *changes.Reader

	at, saved changes.Position // zero until they are known
	savedAt   time.Time
}

var errNotLeader = errors.New("another process follows the changes")

func (f *follower) follow(ctx context.Context) {
	for ctx.Err() == nil {
		var err error
		if f.deps.Leader == nil || f.deps.Leader() {
			err = f.next(ctx)
		} else {
			f.at, err = changes.Position{}, errNotLeader // the other one goes on from what is written
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		if reset, ok := errors.AsType[*changes.ResetError](err); ok {
			f.log.Warn("changes were missed by triggers: the data has gone back in time, or they were away for too long", "reason", reset.Reason)
			f.at = changes.Position{}
			if err = f.reader.Reset(f.app, reset.Now); err == nil {
				continue
			}
		}
		if !errors.Is(err, errNotLeader) {
			f.log.Warn("triggers wait", "error", err)
		}
		pause(ctx, retryAfter)
	}
}

func pause(ctx context.Context, wait time.Duration) {
	select {
	case <-time.After(wait):
	case <-ctx.Done():
	}
}

// next looks at what follows the position, or waits until there is something.
func (f *follower) next(ctx context.Context) error {
	if f.at == (changes.Position{}) {
		at, err := f.reader.Position(ctx)
		if err != nil {
			return err
		}
		f.at, f.saved, f.savedAt = at, at, time.Now()
	}
	changed := f.deps.Log.Changed()
	list, to, err := f.deps.Log.Since(ctx, f.at, page)
	if err != nil {
		return err
	}
	tasks, err := f.tasks(to.Epoch, list)
	if err != nil {
		return err
	}
	if len(tasks) > 0 || to != f.saved && time.Since(f.savedAt) >= saveEvery {
		if err := f.save(to, tasks); err != nil {
			return err
		}
	}
	f.at = to
	switch {
	case len(list) == 0:
		f.wait(ctx, changed)
	case len(list) < page:
		pause(ctx, gather)
	}
	return nil
}

// wait returns when something has changed, or when the position ought to be written.
func (f *follower) wait(ctx context.Context, changed <-chan struct{}) {
	var due <-chan time.Time
	if f.at != f.saved {
		due = time.After(time.Until(f.savedAt.Add(saveEvery)))
	}
	select {
	case <-changed:
	case <-due:
	case <-ctx.Done():
	}
}

// save writes the position down, and asks for the jobs.
func (f *follower) save(to changes.Position, tasks []task) error {
	err := f.app.RunInTransaction(func(tx core.App) error {
		if err := f.reader.Advance(tx, to); err != nil {
			return err
		}
		for _, one := range tasks {
			if _, err := f.deps.Jobs.Enqueue(tx, kind, one, jobs.Options{Key: one.key()}); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		f.saved, f.savedAt = to, time.Now()
	}
	return err
}
