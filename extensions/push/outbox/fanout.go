package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/serial"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/push/device"
	"github.com/satchelbase/satchel/extensions/push/message"
)

const (
	// Queue is that of all jobs of messages.
	Queue = "push"

	fanoutKind  = "push.fanout"
	chunkKind   = "push.chunk"
	receiptKind = "push.receipts"
	sweepKind   = "push.sweep"
	inboxKind   = "push.inbox"
	eraseKind   = "push.erase"

	// chunkSize is how many devices one job sends to.
	chunkSize = 500

	// maxDelays bounds into how many chunks a page is split by when its devices are due. There are 38 offsets from UTC.
	maxDelays = 64
)

// kinds are the jobs.
func (o *Outbox) kinds() []jobs.Kind {
	return []jobs.Kind{
		jobs.Define(jobs.Spec[fanout]{
			Kind: fanoutKind, Queue: Queue, Priority: 4, Attempts: attempts, FirstWait: time.Second, LongestWait: 10 * time.Minute,
			Timeout: jobs.NoTimeout, Resumable: true, Work: o.fanOut,
		}),
		jobs.Define(jobs.Spec[chunk]{
			Kind: chunkKind, Queue: Queue, Attempts: attempts, FirstWait: firstWait, LongestWait: longestWait,
			Timeout: 10 * time.Minute, Work: o.sendChunk,
		}),
		o.ends().Define(Queue),
		jobs.Define(jobs.Spec[erasure]{Kind: eraseKind, Queue: Queue, Priority: 7, Attempts: 25, Timeout: jobs.NoTimeout, Resumable: true, Work: o.eraseAll}),
		jobs.Define(jobs.Spec[receipts]{Kind: receiptKind, Queue: Queue, Priority: 8, Attempts: 5, FirstWait: time.Minute, Work: o.fetchReceipts}),
		jobs.Define(jobs.Spec[struct{}]{Kind: sweepKind, Queue: Queue, Priority: 9, Attempts: 1, Timeout: 10 * time.Minute, Cron: "*/5 * * * *", Work: o.sweep}),
		jobs.Define(jobs.Spec[struct{}]{Kind: inboxKind, Queue: Queue, Priority: 9, Attempts: 1, Timeout: 10 * time.Minute, Cron: "17 * * * *", Work: o.sweepInbox}),
	}
}

// fanout is what the job is given.
type fanout struct {
	Message string `json:"message"`
}

// position is how far a fan-out is: the accounts from At on are to do, and of these the devices behind Device.
type position struct {
	At     string `json:"at"`
	Device string `json:"device"`
}

// fanOut writes a delivery for each device and asks for the chunks.
func (o *Outbox) fanOut(ctx context.Context, job *jobs.Job, in fanout) error {
	id, err := parse(in.Message)
	if err != nil {
		return jobs.Permanent(err)
	}
	r, err := find(o.app, id)
	if errors.Is(err, errNone) || err == nil && r.State == cancelled {
		return nil
	}
	if err != nil {
		return err
	}
	m, err := r.message()
	if err != nil {
		return o.giveUp(id, err)
	}
	if _, err := exec(o.app, `UPDATE `+messagesTable+` SET state = {:sending} WHERE id = {:id} AND state = {:scheduled}`,
		dbx.Params{"id": id, "sending": sending, "scheduled": scheduled}); err != nil {
		return fmt.Errorf("begin message: %w", err)
	}
	var at position
	if err := job.State(&at); err != nil {
		return err
	}
	f := &fan{Outbox: o, id: id, m: m, ends: time.UnixMilli(r.EndsAt), audience: device.Audience{Topic: m.To.Topic, All: m.To.All}}
	for more := true; more; {
		if err := ctx.Err(); err != nil {
			return err
		}
		if more, err = f.page(ctx, job, &at); err != nil {
			if errors.Is(err, errStopped) {
				return nil
			}
			if job.Attempt >= attempts {
				return o.giveUp(id, err)
			}
			return err
		}
	}
	return nil
}

// giveUp ends a message that cannot be fanned out any further.
func (o *Outbox) giveUp(id int64, cause error) error {
	err := o.app.RunInTransaction(func(tx core.App) error { return o.finish(tx, id, true) })
	return jobs.Permanent(errors.Join(cause, err))
}

// errStopped says that the message was cancelled.
var errStopped = errors.New("the message was cancelled")

// fan is one attempt at a fan-out.
type fan struct {
	*Outbox

	id       int64
	m        *message.Message
	ends     time.Time
	audience device.Audience

	accounts []device.Account // of the page that starts at from
	from     string
	next     string
	loaded   bool
	done     int64
}

// page does the next devices, in a transaction, and reports whether there are more.
func (f *fan) page(ctx context.Context, job *jobs.Job, at *position) (more bool, err error) {
	if f.m.To.ByAccounts() && (!f.loaded || f.from != at.At) {
		if f.accounts, f.next, err = f.m.To.Some(ctx, f.app, at.At); err != nil {
			return false, err
		}
		f.loaded, f.from, f.audience = true, at.At, device.Audience{Accounts: f.accounts}
	}
	var list []device.Device
	if !f.m.To.ByAccounts() || len(f.accounts) > 0 {
		if list, err = f.deps.Devices.List(ctx, f.app, f.audience, at.Device, chunkSize); err != nil {
			return false, err
		}
	}
	first := at.Device == ""
	to := position{At: at.At}
	switch {
	case len(list) == chunkSize:
		to.Device, more = list[len(list)-1].ID, true
	case f.next != "":
		to.At, more = f.next, true
	}
	if err := f.announce(ctx, list, first); err != nil {
		return false, err
	}
	err = f.app.RunInTransaction(func(tx core.App) error {
		if err := f.write(tx, list, first); err != nil {
			return err
		}
		if !more {
			return f.finish(tx, f.id, true)
		}
		return job.Checkpoint(tx, to)
	})
	if err == nil {
		*at = to
		f.done += int64(len(list))
		job.Progress(f.done, 0)
	}
	return more, err
}

// write makes deliveries, chunks and entries of inboxes. Devices that have one are left out: the audience has changed
// between two pages, or an account is in it twice.
func (f *fan) write(tx core.App, list []device.Device, first bool) error {
	var state int
	err := tx.NonconcurrentDB().NewQuery(`SELECT state FROM ` + messagesTable + ` WHERE id = {:id}`).Bind(dbx.Params{"id": f.id}).Row(&state)
	if err != nil || state == cancelled {
		return errors.Join(err, errStopped)
	}
	if f.m.Inbox {
		if err := f.inbox.Deliver(tx, serial.Format(f.id), f.m, f.receivers(list, first)); err != nil {
			return err
		}
	}
	now := f.now()
	rows := make([]any, len(list))
	for i, d := range list {
		rows[i] = []any{d.ID, string(d.Platform), d.User.Collection, d.User.ID}
	}
	text, err := json.Marshal(rows)
	if err != nil {
		return fmt.Errorf("encode deliveries: %w", err)
	}
	var made []string
	err = tx.NonconcurrentDB().NewQuery(`INSERT INTO ` + deliveriesTable + ` (message, device, state, platform, at, collection, record)
		SELECT {:message}, value->>0, {:queued}, value->>1, {:now}, value->>2, value->>3 FROM json_each({:rows})
		WHERE EXISTS (SELECT 1 FROM push_devices AS p WHERE p.id = value->>0) ON CONFLICT DO NOTHING RETURNING device`).
		Bind(dbx.Params{"message": f.id, "queued": queued, "now": now.UnixMilli(), "rows": string(text)}).Column(&made)
	if err != nil {
		return fmt.Errorf("write deliveries: %w", err)
	}
	fresh := make(map[string]bool, len(made))
	for _, id := range made {
		fresh[id] = true
	}
	byTime := map[time.Time][]string{}
	for _, d := range list {
		if fresh[d.ID] {
			at := f.m.At(d.TimeZone)
			if !at.After(now) {
				at = time.Time{}
			}
			byTime[at] = append(byTime[at], d.ID)
		}
	}
	return f.chunks(tx, f.id, f.m.Urgency(), byTime, "")
}

// receivers are the accounts whose inbox gets an entry: those that the target names, also without a device, and else those
// of the devices.
func (f *fan) receivers(list []device.Device, first bool) []device.Account {
	if f.m.To.ByAccounts() {
		if first {
			return f.accounts
		}
		return nil
	}
	seen := map[device.Account]bool{}
	var out []device.Account
	for _, d := range list {
		if !seen[d.User] {
			seen[d.User] = true
			out = append(out, d.User)
		}
	}
	return out
}

// chunks asks for jobs that send to devices at their times; the zero time is now. Of messages that wait with the same
// collapse, the newest is sent.
func (o *Outbox) chunks(tx core.App, message int64, priority int, byTime map[time.Time][]string, collapse string) error {
	if len(byTime) > maxDelays { // by the quarter of an hour, then
		coarse := map[time.Time][]string{}
		for at, list := range byTime {
			if !at.IsZero() {
				at = at.Truncate(15 * time.Minute).Add(15 * time.Minute)
			}
			coarse[at] = append(coarse[at], list...)
		}
		byTime = coarse
	}
	for at, list := range byTime {
		slices.Sort(list)
		for some := range slices.Chunk(list, chunkSize) {
			id := o.numbers.Next(o.now())
			options := jobs.Options{At: at, Priority: priority}
			if at.IsZero() {
				options.At = o.now()
			}
			job, err := o.deps.Jobs.Enqueue(tx, chunkKind, chunk{ID: serial.Format(id)}, options)
			if err != nil {
				return err
			}
			devices, err := json.Marshal(some)
			if err != nil {
				return fmt.Errorf("encode devices: %w", err)
			}
			_, err = exec(tx, `INSERT INTO `+chunksTable+` (id, message, job, due_at, devices, collapse) VALUES ({:id}, {:message}, {:job}, {:due}, {:devices}, {:collapse})`,
				dbx.Params{"id": id, "message": message, "job": job, "due": options.At.UnixMilli(), "devices": string(devices), "collapse": collapse})
			if err != nil {
				return fmt.Errorf("keep chunk: %w", err)
			}
		}
	}
	return nil
}

// finish ends a message when it is fanned out, which fanned says to be so from now on, and has no chunk left.
func (o *Outbox) finish(tx core.App, id int64, fanned bool) error {
	params := dbx.Params{"id": id, "now": o.now().UnixMilli(), "done": done}
	if fanned {
		if _, err := exec(tx, `UPDATE `+messagesTable+` SET fanned = 1 WHERE id = {:id}`, params); err != nil {
			return fmt.Errorf("end fan-out: %w", err)
		}
	}
	n, err := exec(tx, `UPDATE `+messagesTable+` SET state = {:done}, done_at = {:now} WHERE id = {:id} AND state < 2 AND fanned = 1
		AND NOT EXISTS (SELECT 1 FROM `+chunksTable+` WHERE message = {:id})`, params)
	if err != nil {
		return fmt.Errorf("end message: %w", err)
	}
	if n == 0 {
		return nil
	}
	return o.ends().Total(tx, id)
}
