package push

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/sync/sight"
)

// Table is where changes are noted that were judged.
const Table = "sync_applied"

// Migration creates it.
func Migration(unix int64) extensions.Migration {
	return extensions.Tables(unix, "applied", []string{
		`CREATE TABLE sync_applied (
			device TEXT NOT NULL,
			cid TEXT NOT NULL,
			result TEXT NOT NULL,
			at INTEGER NOT NULL,
			PRIMARY KEY (device, cid)
		) WITHOUT ROWID`,
		`CREATE INDEX sync_applied_at ON sync_applied (at)`,
	}, Table)
}

// Pusher executes changes. It is safe for concurrent use; changes of one device must come one after the other.
type Pusher struct {
	log       *changes.Log
	policies  map[string]string
	resolvers map[string]Resolver
	now       func() time.Time
}

// New makes one. policies and resolvers are by name of the collection; a resolver goes before a policy, and what has
// neither is merged.
func New(log *changes.Log, policies map[string]string, resolvers map[string]Resolver) *Pusher {
	return &Pusher{log: log, policies: policies, resolvers: resolvers, now: time.Now}
}

func (p *Pusher) policy(collection string) string {
	if policy, ok := p.policies[collection]; ok {
		return policy
	}
	return PolicyMerge
}

// batch is one call of Push.
type batch struct {
	*Pusher
	e       *core.RequestEvent
	device  string
	sight   *sight.Sight
	results []Result
	stuck   map[string]bool // records whose later changes must wait
	out     bool            // the database is out of order
}

// Push executes the changes in their order, one result for each. Changes of one group stand where its first one does.
// Errors are told in the results.
func (p *Pusher) Push(e *core.RequestEvent, device string, s *sight.Sight, list []Change) []Result {
	b := &batch{Pusher: p, e: e, device: device, sight: s, results: make([]Result, len(list)), stuck: map[string]bool{}}
	grouped := map[string]bool{}
	for i, c := range list {
		if c.Group == "" {
			b.unit(list, []int{i})
			continue
		}
		if grouped[c.Group] {
			continue
		}
		grouped[c.Group] = true
		var members []int
		for j := i; j < len(list); j++ {
			if list[j].Group == c.Group {
				members = append(members, j)
			}
		}
		b.unit(list, members)
	}
	for i := range b.results {
		b.complete(list[i], &b.results[i])
	}
	return b.results
}

func recordKey(c Change) string { return c.Collection + "/" + c.ID }

// unit executes changes in one transaction.
func (b *batch) unit(list []Change, members []int) {
	wait := b.out || slices.ContainsFunc(members, func(i int) bool { return b.stuck[recordKey(list[i])] })
	at, err := members[0], error(ErrAgain)
	if !wait {
		at, err = b.transact(list, members)
	}
	if err == nil {
		return
	}
	first := Result{Status: Retry, Reason: reasonOf(&api.Problem{Code: ErrAgain})}
	if r, ok := errors.AsType[*refusal](err); ok {
		first = Result{Status: r.status, Reason: reasonOf(r.Problem), Fields: r.fields, V: r.v}
		b.complete(list[at], &first) // the others must not tell more
	} else if !wait {
		b.out = outage(b.e.Request.Context(), err)
		b.e.App.Logger().Warn("a synced change could not be judged", slog.Any("error", err))
	}
	first.Outage = b.out
	for _, i := range members {
		if b.results[i].Status == Duplicate {
			continue
		}
		b.results[i] = first
		if i != at && first.Status != Retry {
			b.results[i] = Result{Status: first.Status, Reason: reasonOf(&api.Problem{Code: ErrGroup, Detail: "the change " + list[at].CID + " was refused: " + first.Reason.Detail})}
		}
		b.results[i].CID = list[i].CID
		if first.Status == Retry {
			b.stuck[recordKey(list[i])] = true
		}
	}
	if first.Status == Retry {
		return
	}
	if err := b.noteAll(list, members); err != nil { // then they are judged anew when they come again
		b.e.App.Logger().Warn("a refused change could not be noted", slog.Any("error", err))
	}
}

// transact runs the changes and returns which of them was refused, and why.
func (b *batch) transact(list []Change, members []int) (at int, err error) {
	at = members[0]
	defer func() {
		if r := recover(); r != nil { // of a hook: it must not take the other changes with it
			err = fmt.Errorf("panic: %v", r)
			b.e.App.Logger().Error("a hook panicked on a synced change", slog.Any("panic", r), slog.String("stack", string(debug.Stack())))
		}
	}()
	committed := false
	err = b.e.App.RunInTransaction(func(tx core.App) error {
		tx.TxInfo().OnComplete(func(err error) error { committed = err == nil; return nil })
		for _, i := range members {
			at = i
			var err error
			if b.results[i], err = b.judge(tx, list[i]); err != nil {
				return err
			}
			if b.results[i].Status == Duplicate {
				continue
			}
			if err := b.note(tx, b.results[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if committed && err != nil {
		b.e.App.Logger().Error("a hook after a synced change failed", slog.Any("error", err))
		err = nil
	}
	return at, err
}

// judge executes one change, unless it was judged before.
func (b *batch) judge(tx core.App, c Change) (Result, error) {
	if r, known, err := b.seen(tx, c.CID); err != nil || known {
		return r, err
	}
	collection, err := tx.FindCachedCollectionByNameOrId(c.Collection)
	if err != nil {
		return Result{}, refuse(Gone, ErrGone, "the collection is not there any more")
	}
	_, err = b.log.Collection(b.e.Request.Context(), collection.Id)
	if errors.Is(err, changes.ErrNotCaptured) {
		return Result{}, refuse(Gone, ErrGone, "the collection cannot be synced")
	}
	if err != nil {
		return Result{}, err
	}
	return b.execute(&writing{change: c, log: b.log, tx: tx, auth: b.e.Auth, outer: b.e, collection: collection})
}

// seen finds the note of a change.
func (b *batch) seen(tx core.App, cid string) (Result, bool, error) {
	var raw string
	err := tx.DB().NewQuery("SELECT result FROM sync_applied WHERE device = {:device} AND cid = {:cid}").
		Bind(dbx.Params{"device": b.device, "cid": cid}).Row(&raw)
	if errors.Is(err, sql.ErrNoRows) {
		return Result{}, false, nil
	}
	if err != nil {
		return Result{}, false, fmt.Errorf("look for change: %w", err)
	}
	var r Result
	if err := json.Unmarshal([]byte(raw), &r); err != nil {
		return Result{}, false, fmt.Errorf("read noted change: %w", err)
	}
	r.Original, r.Status = r.Status, Duplicate
	return r, true, nil
}

// note writes down that a change was judged.
func (b *batch) note(tx core.App, r Result) error {
	r.Record = nil
	raw, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode result: %w", err)
	}
	_, err = tx.DB().NewQuery("INSERT INTO sync_applied (device, cid, result, at) VALUES ({:device}, {:cid}, {:result}, {:at}) ON CONFLICT DO NOTHING").
		Bind(dbx.Params{"device": b.device, "cid": r.CID, "result": string(raw), "at": b.now().Unix()}).Execute()
	if err != nil {
		return fmt.Errorf("note change: %w", err)
	}
	return nil
}

func (b *batch) noteAll(list []Change, members []int) error {
	return b.e.App.RunInTransaction(func(tx core.App) error {
		for _, i := range members {
			if b.results[i].Status == Duplicate {
				continue
			}
			if err := b.note(tx, b.results[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// complete adds the present record to a result that is not simply applied. A refusal of a record that the caller does not
// see tells no more than that there is none.
func (b *batch) complete(c Change, r *Result) {
	if r.Status == Applied || r.Status == Retry || r.Status == Gone {
		return
	}
	ctx := b.e.Request.Context()
	err := b.sight.Bodies(ctx, c.Collection, []string{c.ID}, func(_ string, body []byte) { r.Record = body })
	if err != nil {
		b.e.App.Logger().Warn("the record of a result cannot be read", slog.Any("error", err))
	}
	if r.Record == nil && c.Op != Create && tells(r.Status) {
		r.Status, r.V, r.Fields, r.Reason = Gone, 0, nil, reasonOf(&api.Problem{Code: ErrGone})
	}
	if r.Record == nil && c.Op == Create && r.Status == Conflict {
		r.Status, r.V, r.Reason = Denied, 0, reasonOf(&api.Problem{Code: ErrDenied})
	}
	if r.Record == nil && r.Status == Duplicate {
		switch {
		case c.Op == Create && r.Original == Conflict:
			r.Original, r.V, r.Reason = Denied, 0, reasonOf(&api.Problem{Code: ErrDenied})
		case c.Op != Create && tells(r.Original):
			r.Original, r.V, r.Fields, r.Reason = Gone, 0, nil, reasonOf(&api.Problem{Code: ErrGone})
		}
	}
}

// tells reports whether the status of a change to a record says that there is one.
func tells(status string) bool { return status == Denied || status == Conflict || status == Invalid }

// outage reports an error that is not about the change.
func outage(ctx context.Context, err error) bool {
	code, ok := errors.AsType[*extensions.Code](err)
	return ctx.Err() != nil || ok && code.Status == http.StatusServiceUnavailable
}

// purgeChunk is how many notes one transaction forgets.
const purgeChunk = 1000

// Purge forgets changes that were judged before the time.
func Purge(ctx context.Context, app core.App, before time.Time) error {
	for {
		result, err := app.NonconcurrentDB().NewQuery("DELETE FROM sync_applied WHERE (device, cid) IN " +
			"(SELECT device, cid FROM sync_applied WHERE at < {:before} ORDER BY at LIMIT {:n})").
			Bind(dbx.Params{"before": before.Unix(), "n": purgeChunk}).WithContext(ctx).Execute()
		if err != nil {
			return fmt.Errorf("forget changes: %w", err)
		}
		if n, err := result.RowsAffected(); err != nil || n < purgeChunk {
			return err
		}
	}
}
