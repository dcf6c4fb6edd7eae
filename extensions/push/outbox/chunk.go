package outbox

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/push/batch"
	"github.com/satchelbase/satchel/extensions/push/device"
	"github.com/satchelbase/satchel/extensions/push/message"
	"github.com/satchelbase/satchel/extensions/push/rest"
	"github.com/satchelbase/satchel/extensions/push/sender"
)

const (
	// attempts are about six hours of trying: 2 s, 4 s, and so on, then every quarter of an hour.
	attempts    = 33
	firstWait   = 2 * time.Second
	longestWait = 15 * time.Minute

	// unwritten is how many slices of a chunk may have been handed to a sender without their results being written. Their
	// pushes are sent twice when the process dies.
	unwritten = 2
)

// chunk is what the job is given.
type chunk struct {
	ID string `json:"id"`
}

// result is what became of one delivery.
type result struct {
	message  int64
	device   string
	state    int
	attempts int
	code     string
	provider string
	platform sender.Platform
	since    time.Time // of dead
	wait     time.Duration
}

// open is a delivery without a result.
type open struct {
	Device   string          `db:"device"`
	Attempts int             `db:"attempts"`
	Platform sender.Platform `db:"platform"`
}

// shipment is one attempt at a chunk.
type shipment struct {
	*Outbox

	ctx      context.Context //nolint:containedctx // of this attempt alone
	id       int64           // of the chunk
	row      *row
	m        *message.Message
	attempt  int
	collapse string // what it has waited with
	begun    time.Time
	open     map[string]open // the deliveries without a result
	decided  []result        // without sending
}

// sendChunk sends to the devices of a chunk that have no result yet.
func (o *Outbox) sendChunk(ctx context.Context, job *jobs.Job, in chunk) error {
	id, err := parse(in.ID)
	if err != nil {
		return jobs.Permanent(err)
	}
	o.writer.Enter()
	defer o.writer.Leave()
	s, parcels, err := o.prepare(ctx, job, id)
	if err != nil || s == nil {
		return err
	}
	wait, err := s.ship(parcels)
	switch {
	case err != nil:
		return err
	case wait > 0:
		return jobs.RetryAfter(wait, errors.New("some devices could not be reached now"))
	}
	return nil
}

// prepare makes the pushes of a chunk. That is much work for a processor, so one chunk is prepared at a time: several would
// keep all processors from others for as many turns.
func (o *Outbox) prepare(ctx context.Context, job *jobs.Job, id int64) (*shipment, []parcel, error) {
	o.preparing.Lock()
	defer o.preparing.Unlock()
	s, err := o.load(ctx, id)
	if err != nil || s == nil {
		return nil, nil, err
	}
	s.attempt = job.Attempt
	devices, err := s.choose()
	if err != nil {
		return nil, nil, err
	}
	parcels, err := s.pack(devices)
	return s, parcels, err
}

// load reads a chunk. It is nil when there is nothing to do any more.
func (o *Outbox) load(ctx context.Context, id int64) (*shipment, error) {
	var c struct {
		Message  int64  `db:"message"`
		Devices  string `db:"devices"`
		Collapse string `db:"collapse"`
	}
	err := o.app.ConcurrentDB().NewQuery(`SELECT message, devices, collapse FROM ` + chunksTable + ` WHERE id = {:id}`).Bind(dbx.Params{"id": id}).WithContext(ctx).One(&c)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil //nolint:nilnil // the message was cancelled, or the chunk is done
	}
	if err != nil {
		return nil, fmt.Errorf("read chunk: %w", err)
	}
	s := &shipment{Outbox: o, ctx: ctx, id: id, collapse: c.Collapse, begun: o.now(), open: map[string]open{}}
	if s.row, err = find(o.app, c.Message); err != nil {
		return nil, err
	}
	if s.row.State == cancelled { // which stops the chunk soon
		return nil, nil //nolint:nilnil // as above
	}
	if s.m, err = s.row.message(); err != nil {
		return nil, err
	}
	var list []open
	err = o.app.ConcurrentDB().NewQuery(`SELECT d.device, d.attempts, d.platform FROM json_each({:devices}) AS e CROSS JOIN ` + deliveriesTable + ` AS d
		ON d.message = {:message} AND d.device = e.value WHERE d.state = {:queued}`).
		Bind(dbx.Params{"devices": c.Devices, "message": c.Message, "queued": queued}).WithContext(ctx).All(&list)
	if err != nil {
		return nil, fmt.Errorf("read deliveries: %w", err)
	}
	for _, d := range list {
		s.open[d.Device] = d
	}
	return s, nil
}

// decide ends the delivery to a device without sending.
func (s *shipment) decide(id string, state int, code string) {
	if d, ok := s.open[id]; ok {
		delete(s.open, id)
		s.decided = append(s.decided, result{message: s.row.ID, device: id, state: state, attempts: d.Attempts, code: code, platform: d.Platform})
	}
}

// choose asks who wants the message now, and returns the devices to send to.
func (s *shipment) choose() ([]device.Device, error) {
	ids := make([]string, 0, len(s.open))
	for id := range s.open {
		ids = append(ids, id)
	}
	if s.begun.UnixMilli() >= s.row.EndsAt {
		for _, id := range ids {
			s.decide(id, expired, "")
		}
		return nil, nil
	}
	if len(ids) == 0 {
		return nil, nil
	}
	list, err := s.present(ids)
	if err != nil {
		return nil, err
	}
	if list, err = s.newest(s.absent(list)); err != nil {
		return nil, err
	}
	if list, err = s.willing(list); err != nil {
		return nil, err
	}
	if !s.m.Hint || len(list) == 0 || s.attempt > 1 { // in another attempt they were counted before
		return list, nil
	}
	may, err := rest.Take(s.ctx, s.app, list, s.begun)
	if err != nil {
		return nil, err
	}
	return s.keep(list, "hints", func(d device.Device) bool { return may[d.ID] }), nil
}

// absent leaves out who has the app open.
func (s *shipment) absent(list []device.Device) []device.Device {
	if s.deps.Live == nil || s.m.Presence == message.PresenceIgnore {
		return list
	}
	asked := map[device.Account]func(d device.Device) bool{}
	return s.keep(list, "live", func(d device.Device) bool {
		is, ok := asked[d.User]
		if !ok {
			sessions, connected := s.deps.Live(d.User.Collection, d.User.ID)
			is = func(device.Device) bool { return connected }
			if s.m.Presence == message.PresenceDevice {
				is = func(d device.Device) bool {
					for _, id := range sessions {
						if id != "" && id == d.Session {
							return true
						}
					}
					return false
				}
			}
			asked[d.User] = is
		}
		return !is(d)
	})
}

// keep leaves devices out for a reason.
func (s *shipment) keep(list []device.Device, code string, want func(d device.Device) bool) []device.Device {
	out := list[:0]
	for _, d := range list {
		if want(d) {
			out = append(out, d)
		} else {
			s.decide(d.ID, skipped, code)
		}
	}
	return out
}

// willing asks for the wishes of the receivers. Those who want it later get a chunk of their own.
func (s *shipment) willing(list []device.Device) ([]device.Device, error) {
	if s.m.Quiet == message.Ignore || s.m.Silent || len(list) == 0 {
		return list, nil
	}
	seen := map[device.Account]bool{}
	var accounts []device.Account
	for _, d := range list {
		if !seen[d.User] {
			seen[d.User] = true
			accounts = append(accounts, d.User)
		}
	}
	verdicts, err := s.deps.Devices.Judge(s.ctx, s.app, s.row.ID, accounts, s.m.Category, s.begun)
	if err != nil {
		return nil, err
	}
	later := map[time.Time][]string{}
	waits := false // and of those that wait, the newest is sent
	out := list[:0]
	for _, d := range list {
		v := verdicts[d.User]
		switch {
		case v.Send:
			out = append(out, d)
		case v.Defer.IsZero() || s.m.Quiet == message.Drop || v.Defer.UnixMilli() >= s.row.EndsAt:
			s.decide(d.ID, skipped, v.Reason)
		default:
			later[v.Defer] = append(later[v.Defer], d.ID)
			waits = waits || v.Collapse
		}
	}
	collapse := ""
	if s.m.Quiet == message.Collapse || waits {
		collapse = s.group()
	}
	return out, s.postpone(later, out, collapse)
}

// group names the messages of which only the newest is sent when they have waited.
func (s *shipment) group() string {
	if s.m.Collapse != "" {
		return "key " + s.m.Collapse
	}
	return "category " + s.m.Category
}

// postpone moves devices to chunks that are due later, and keeps the others in this one.
func (s *shipment) postpone(later map[time.Time][]string, now []device.Device, collapse string) error {
	if len(later) == 0 {
		return nil
	}
	rest := []string{} // what is decided is written with the results, and until then part of the chunk
	for _, d := range now {
		rest = append(rest, d.ID)
	}
	for _, d := range s.decided {
		rest = append(rest, d.device)
	}
	text, err := json.Marshal(rest)
	if err != nil {
		return fmt.Errorf("encode devices: %w", err)
	}
	err = s.app.RunInTransaction(func(tx core.App) error {
		n, err := exec(tx, `UPDATE `+chunksTable+` SET devices = {:devices} WHERE id = {:id} AND EXISTS (SELECT 1 FROM `+messagesTable+` AS m WHERE m.id = message AND m.state <> {:cancelled})`,
			dbx.Params{"id": s.id, "devices": string(text), "cancelled": cancelled})
		if err != nil || n == 0 { // cancelled
			return err
		}
		return s.chunks(tx, s.row.ID, s.m.Urgency(), later, collapse)
	})
	if err != nil {
		return fmt.Errorf("postpone deliveries: %w", err)
	}
	for _, list := range later {
		for _, id := range list {
			delete(s.open, id)
		}
	}
	return nil
}

// newest leaves out devices for which a newer message waits in place of this one.
func (s *shipment) newest(list []device.Device) ([]device.Device, error) {
	if s.collapse == "" || len(list) == 0 {
		return list, nil
	}
	var waiting []string
	err := s.app.ConcurrentDB().NewQuery(`SELECT devices FROM ` + chunksTable + ` WHERE collapse = {:collapse} AND collapse <> '' AND message > {:message}`).
		Bind(dbx.Params{"collapse": s.collapse, "message": s.row.ID}).WithContext(s.ctx).Column(&waiting)
	if err != nil {
		return nil, fmt.Errorf("look for newer messages: %w", err)
	}
	replaced := map[string]bool{}
	for _, text := range waiting {
		var ids []string
		if err := json.Unmarshal([]byte(text), &ids); err != nil {
			return nil, fmt.Errorf("read devices of a chunk: %w", err)
		}
		for _, id := range ids {
			replaced[id] = true
		}
	}
	out := list[:0]
	for _, d := range list {
		if replaced[d.ID] {
			s.decide(d.ID, collapsed, "")
		} else {
			out = append(out, d)
		}
	}
	return out, nil
}

// ship sends, and returns how long to wait before another attempt; zero is that none is needed.
func (s *shipment) ship(parcels []parcel) (wait time.Duration, err error) {
	var batches []*batch.Batch[result]
	again := false
	for i, p := range parcels {
		if i >= unwritten {
			if err := s.writer.Wait(batches[i-unwritten]); err != nil {
				return 0, err
			}
		}
		over, err := s.cancelled()
		if err != nil || over {
			return 0, errors.Join(err, s.writer.Wait(append(batches, s.writer.Add(s.decided, nil))...))
		}
		results := s.send(p)
		for _, r := range results {
			if r.state == queued {
				again = true
				wait = max(wait, r.wait)
			}
		}
		if i == len(parcels)-1 && !again {
			return 0, s.end(batches, append(s.decided, results...))
		}
		batches = append(batches, s.writer.Add(results, nil))
	}
	if !again {
		return 0, s.end(batches, s.decided)
	}
	batches = append(batches, s.writer.Add(s.decided, nil))
	if err := s.writer.Wait(batches...); err != nil {
		return 0, err
	}
	return max(wait, backoff(s.attempt)), nil
}

// cancelled reports whether the message was cancelled meanwhile.
func (s *shipment) cancelled() (is bool, err error) {
	err = s.app.ConcurrentDB().NewQuery(`SELECT state = {:cancelled} FROM ` + messagesTable + ` WHERE id = {:id}`).
		Bind(dbx.Params{"id": s.row.ID, "cancelled": cancelled}).WithContext(s.ctx).Row(&is)
	if err != nil {
		return false, fmt.Errorf("look whether the message was cancelled: %w", err)
	}
	return is, nil
}

// end writes the last results once the others are written, and removes the chunk with them.
func (s *shipment) end(batches []*batch.Batch[result], last []result) error {
	if len(batches) > 0 {
		if err := s.writer.Wait(batches...); err != nil {
			return err
		}
	}
	return s.writer.Wait(s.writer.Add(last, func(tx core.App) error {
		if _, err := exec(tx, `DELETE FROM `+chunksTable+` WHERE id = {:id}`, dbx.Params{"id": s.id}); err != nil {
			return fmt.Errorf("end chunk: %w", err)
		}
		return s.finish(tx, s.row.ID, false)
	}))
}

// backoff is the wait after a number of attempts: between half and all of a time that doubles.
func backoff(attempts int) time.Duration {
	wait := min(firstWait<<min(attempts-1, 20), longestWait)
	return wait/2 + rand.N(wait/2+1) //nolint:gosec // nobody gains by guessing it
}
