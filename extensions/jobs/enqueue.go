package jobs

import (
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/pb"
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

// wanted is one job to be inserted.
type wanted struct {
	id              int64
	payload, unique string
}

// insert writes up to maxBatch jobs and returns their ids, or those of the jobs that have their keys already.
func (j *Jobs) insert(tx core.App, k *Kind, inputs []any, o Options, now time.Time) ([]string, error) {
	if o.Priority < 0 || o.Priority > 9 || o.KeyFor < 0 || len(o.Key) > 500 || len(o.Lane) > 500 {
		return nil, errors.New("the priority is 1 to 9, a key or lane at most 500 bytes, and a time not negative")
	}
	ids := make([]string, len(inputs))
	var list []any
	var asked []wanted
	for i, input := range inputs {
		w, err := j.want(k, input, o, now)
		if err != nil {
			return nil, err
		}
		if o.KeyFor > 0 {
			taken, err := j.reserve(tx, k.name, &w, now, o.KeyFor)
			if err != nil {
				return nil, err
			}
			if taken != 0 {
				ids[i] = formatID(taken)
				continue
			}
		}
		ids[i] = formatID(w.id)
		asked = append(asked, w)
		list = append(list, []any{w.id, w.unique, w.payload})
	}
	if len(list) == 0 {
		return ids, nil
	}
	made, err := j.write(tx, k, list, o, now)
	if err != nil || len(made) == len(list) {
		return ids, err
	}
	for _, w := range asked {
		if slices.Contains(made, w.id) {
			continue
		}
		at := slices.Index(ids, formatID(w.id))
		if ids[at], err = j.holder(tx, k, w, inputs[at], o, now); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

// holder finds the job that has the key. Without one it was the id that was taken, and another one is.
func (j *Jobs) holder(tx core.App, k *Kind, w wanted, input any, o Options, now time.Time) (string, error) {
	var id int64
	err := tx.NonconcurrentDB().NewQuery(`SELECT id FROM ` + queueTable + ` WHERE kind = {:kind} AND unique_key = {:key} AND unique_key <> '' AND state <> 3`).
		Bind(dbx.Params{"kind": k.name, "key": w.unique}).Row(&id)
	if errors.Is(err, sql.ErrNoRows) {
		again, err := j.insert(tx, k, []any{input}, o, now)
		if err != nil {
			return "", err
		}
		return again[0], nil
	}
	if err != nil {
		return "", fmt.Errorf("find job with the same key: %w", err)
	}
	return formatID(id), nil
}

// want prepares a job: its input is checked, and sealed if the kind says so.
func (j *Jobs) want(k *Kind, input any, o Options, now time.Time) (wanted, error) {
	w := wanted{id: j.ids.next(now), unique: o.Key}
	raw, err := marshal(input)
	if err != nil {
		return w, err
	}
	if err := k.check([]byte(raw)); err != nil {
		return w, err
	}
	if o.KeyByInput {
		sum := sha256.Sum256([]byte(raw))
		w.unique += "#" + hex.EncodeToString(sum[:16])
	}
	w.payload, err = j.seal(k, w.id, raw)
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

func sealedFor(id int64) string { return queueTable + "|payload|" + formatID(id) }

// reserve takes the key for a time, and returns the job that has it if it is taken.
func (j *Jobs) reserve(tx core.App, kind string, w *wanted, now time.Time, period time.Duration) (taken int64, err error) {
	if w.unique == "" {
		return 0, errors.New("KeyFor needs a Key or KeyByInput")
	}
	err = tx.NonconcurrentDB().NewQuery(`INSERT INTO ` + keysTable + ` (kind, key, job, until) VALUES ({:kind}, {:key}, {:job}, {:until})
		ON CONFLICT (kind, key) DO UPDATE SET job = CASE WHEN until <= {:now} THEN excluded.job ELSE job END,
			until = CASE WHEN until <= {:now} THEN excluded.until ELSE until END RETURNING job`).
		Bind(dbx.Params{"kind": kind, "key": w.unique, "job": w.id, "until": now.Add(period).UnixMilli(), "now": now.UnixMilli()}).Row(&taken)
	if err != nil {
		return 0, fmt.Errorf("take the key: %w", err)
	}
	if taken == w.id {
		return 0, nil
	}
	return taken, nil
}

// write inserts the jobs whose ids and keys are free, and returns the ids.
func (j *Jobs) write(tx core.App, k *Kind, list []any, o Options, now time.Time) (made []int64, err error) {
	rows, err := json.Marshal(list)
	if err != nil {
		return nil, fmt.Errorf("marshal jobs: %w", err)
	}
	at, state := o.due(now), ready
	if at.After(now) {
		state = scheduled
	}
	priority, isSealed := o.Priority, 0
	if priority == 0 {
		priority = k.priority
	}
	if k.sealed {
		isSealed = 1
	}
	err = tx.NonconcurrentDB().NewQuery(`INSERT INTO ` + queueTable + ` (id, unique_key, payload, queue, kind, state, priority, run_at, expires_at, max_attempts,
			lane, owner_collection, owner, request, sealed, created_at)
		SELECT value->>0, value->>1, value->>2, {:queue}, {:kind}, {:state}, {:priority}, {:at}, {:expires}, {:most},
			{:lane}, {:collection}, {:owner}, {:request}, {:sealed}, {:now}
		FROM json_each({:rows}) WHERE true ON CONFLICT DO NOTHING RETURNING id`).
		Bind(dbx.Params{
			"rows": string(rows), "queue": k.queue, "kind": k.name, "state": state, "priority": priority, "at": at.UnixMilli(), "expires": millis(o.Expires),
			"most": k.attempts, "lane": o.Lane, "collection": o.Owner.Collection, "owner": o.Owner.ID, "request": o.Request, "sealed": isSealed, "now": now.UnixMilli(),
		}).Column(&made)
	if err != nil {
		return nil, fmt.Errorf("write jobs: %w", err)
	}
	return made, nil
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
