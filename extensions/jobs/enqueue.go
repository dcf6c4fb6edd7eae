package jobs

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/pb"
	"github.com/satchelbase/satchel/extensions/internal/serial"
	"github.com/satchelbase/satchel/extensions/jobs/table"
)

const (
	// maxPayload bounds what a job is given and what it remembers, in bytes of JSON: a job names its work, it does not hold it.
	maxPayload = 256 << 10

	// maxBatch is how many jobs one statement inserts.
	maxBatch = 500
)

// Options say how a job differs from others of its kind. The zero value is one that is due at once.
type Options struct {
	// At is when it is due, Delay how long to wait until then.
	At    time.Time
	Delay time.Duration

	// Priority is 1 to 9; 0 is that of the kind.
	Priority int

	// Key is one that no two jobs of the kind have that have not ended; dead ones do not count. KeyByInput makes it of what
	// the job is given. With KeyFor it stays taken for that time from now on, however soon the job ends. Enqueueing another
	// one returns the id of the first and changes nothing.
	Key        string
	KeyByInput bool
	KeyFor     time.Duration

	// Lane keeps jobs of the kind from running together: those of one user, or those for one receiver. See Spec.PerLane.
	Lane string

	// Expires is when it makes no sense any more: it is not begun, and its context ends, after that.
	Expires time.Time

	Owner   Owner
	Request string // the id of the request that asked for it
}

// Enqueue asks for a job, in the transaction of tx if it is one: the job exists if that is committed, and starts after it.
func (j *Jobs) Enqueue(tx core.App, kind string, input any, o Options) (id string, err error) {
	ids, err := j.EnqueueAll(tx, kind, []any{input}, o)
	if err != nil {
		return "", err
	}
	return ids[0], nil
}

// EnqueueAll is Enqueue for many jobs of a kind, which it writes a few hundred at a time.
func (j *Jobs) EnqueueAll(tx core.App, kind string, inputs []any, o Options) (ids []string, err error) {
	k, known := j.kinds[kind]
	if !known {
		return nil, fmt.Errorf("enqueue job: the kind %q is not declared", kind)
	}
	ids = make([]string, 0, len(inputs))
	now := j.now() // once: what is ready is that for everybody
	err = tx.RunInTransaction(func(tx core.App) error {
		for some := range slices.Chunk(inputs, maxBatch) {
			part, err := j.insert(tx, k, some, o, now)
			if err != nil {
				return fmt.Errorf("enqueue job %s: %w", kind, err)
			}
			ids = append(ids, part...)
		}
		due := int64(0)
		if at := o.due(now); at.After(now) {
			due = at.UnixMilli()
		}
		pb.AfterCommit(tx, func() { j.rouse(k.queue, due) })
		return nil
	})
	if err != nil {
		return nil, err
	}
	return ids, nil
}

func (o Options) due(now time.Time) time.Time {
	if o.At.IsZero() {
		return now.Add(o.Delay)
	}
	return o.At.Add(o.Delay)
}

// insert writes up to maxBatch jobs and returns their ids, or those of the jobs that have their keys already.
func (j *Jobs) insert(tx core.App, k *Kind, inputs []any, o Options, now time.Time) ([]string, error) {
	if o.Priority < 0 || o.Priority > 9 || o.KeyFor < 0 || !table.IsText(o.Key) || !table.IsText(o.Lane) {
		return nil, errors.New("the priority is 1 to 9, a key or lane UTF-8 of at most 500 bytes, and a time not negative")
	}
	ids := make([]string, len(inputs))
	var asked []table.Fresh
	for i, input := range inputs {
		w, err := j.want(k, input, o, now)
		if err != nil {
			return nil, err
		}
		if o.KeyFor > 0 {
			taken, err := table.Taken(tx, k.name, w.Key, now)
			if err != nil {
				return nil, err
			}
			if taken != 0 {
				ids[i] = serial.Format(taken)
				continue
			}
		}
		ids[i] = serial.Format(w.ID)
		asked = append(asked, w)
	}
	if len(asked) == 0 {
		return ids, nil
	}
	made, err := j.write(tx, k, asked, o, now)
	if err != nil || len(made) == len(asked) && o.KeyFor == 0 {
		return ids, err
	}
	for _, w := range asked {
		if !slices.Contains(made, w.ID) {
			at := slices.Index(ids, serial.Format(w.ID))
			if w.ID, err = j.holder(tx, k, w, inputs[at], o, now); err != nil {
				return nil, err
			}
			ids[at] = serial.Format(w.ID)
		}
		if o.KeyFor > 0 {
			if err := table.Reserve(tx, k.name, w, now.Add(o.KeyFor)); err != nil {
				return nil, err
			}
		}
	}
	return ids, nil
}

// holder finds the job that has the key. Without one it was the id that was taken, and another one is.
func (j *Jobs) holder(tx core.App, k *Kind, w table.Fresh, input any, o Options, now time.Time) (int64, error) {
	id, err := table.HolderOf(tx, k.name, w.Key)
	if !errors.Is(err, ErrNotFound) {
		return id, err
	}
	again, err := j.insert(tx, k, []any{input}, o, now)
	if err != nil {
		return 0, err
	}
	return table.ParseID(again[0])
}

// want prepares a job: its input is checked, and sealed if the kind says so.
func (j *Jobs) want(k *Kind, input any, o Options, now time.Time) (table.Fresh, error) {
	w := table.Fresh{ID: j.ids.Next(now), Key: o.Key}
	raw, err := marshal(input)
	if err != nil {
		return w, err
	}
	if err := k.check([]byte(raw)); err != nil {
		return w, err
	}
	if o.KeyByInput {
		sum := sha256.Sum256([]byte(raw))
		w.Key += "#" + hex.EncodeToString(sum[:16])
	}
	w.Payload, err = j.seal(k, w.ID, raw)
	return w, err
}

func (j *Jobs) seal(k *Kind, id int64, plain string) (string, error) {
	if !k.sealed {
		return plain, nil
	}
	sealed, err := j.deps.Vault.Seal(sealedFor(id), []byte(plain))
	if err != nil {
		return "", fmt.Errorf("seal what the job is given: %w", err)
	}
	return sealed, nil
}

func sealedFor(id int64) string { return table.Queue + "|payload|" + serial.Format(id) }

// write inserts the jobs whose ids and keys are free, and returns the ids.
func (j *Jobs) write(tx core.App, k *Kind, list []table.Fresh, o Options, now time.Time) (made []int64, err error) {
	b := table.Batch{
		Queue: k.queue, Kind: k.name, State: table.IsReady, Priority: cmp.Or(o.Priority, k.priority), At: o.due(now), Expires: o.Expires,
		Attempts: k.attempts, Lane: o.Lane, OwnerCollection: o.Owner.Collection, Owner: o.Owner.ID, Request: o.Request, Sealed: k.sealed, Now: now,
	}
	if b.At.After(now) {
		b.State = table.IsScheduled
	}
	return table.Insert(tx, b, list)
}

func marshal(value any) (string, error) {
	raw, err := json.Marshal(value)
	if err != nil {
		return "", fmt.Errorf("marshal: %w", err)
	}
	if len(raw) > maxPayload {
		return "", fmt.Errorf("%d bytes are more than a job may hold", len(raw))
	}
	return string(raw), nil
}

// Around makes a hook of OnRecord*Execute one transaction: what fn enqueues through the event's application exists if, and
// only if, the record is written. fn calls e.Next to write it. Hooks after success come after the commit and cannot do that.
func Around(fn func(e *core.RecordEvent) error) func(e *core.RecordEvent) error {
	return func(e *core.RecordEvent) error {
		outer := e.App
		defer func() { e.App = outer }()
		return outer.RunInTransaction(func(tx core.App) error {
			e.App = tx
			return fn(e)
		})
	}
}
