package ledger

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// Kinds of checkpoints.
const (
	genesis = "genesis" // where the chain begins
	floor   = "floor"   // up to where entries were deleted
)

// checkpoint is a signed place at which the chain may begin.
type checkpoint struct {
	ID      int64  `db:"id"`
	Kind    string `db:"kind"`
	Floor   int64  `db:"floor"`   // the last entry before the chain's present beginning
	MAC     []byte `db:"mac"`     // of that entry; random for genesis
	Removed int64  `db:"removed"` // entries that were deleted so far
	At      int64  `db:"at"`
	Seal    []byte `db:"seal"`
}

func (c checkpoint) sum(key []byte) []byte {
	b := appendText([]byte{encodingVersion}, c.Kind)
	for _, n := range []int64{c.ID, c.Floor, c.Removed, c.At} {
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	return mac(key, appendText(b, c.MAC))
}

func (c checkpoint) authentic(key []byte) bool { return hmac.Equal(c.Seal, c.sum(key)) }

// store signs and stores the checkpoint.
func (c checkpoint) store(db dbx.Builder, key []byte) error {
	c.At = time.Now().UnixMilli()
	c.Seal = c.sum(key)
	_, err := db.NewQuery(`INSERT INTO audit_checkpoints (id, kind, floor, mac, removed, at, seal)
		VALUES ({:id}, {:kind}, {:floor}, {:mac}, {:removed}, {:at}, {:seal})`).
		Bind(dbx.Params{"id": c.ID, "kind": c.Kind, "floor": c.Floor, "mac": c.MAC, "removed": c.Removed, "at": c.At, "seal": c.Seal}).Execute()
	if err != nil {
		return fmt.Errorf("store checkpoint: %w", err)
	}
	return nil
}

// start is the checkpoint behind which the chain begins now, and whether there is one. It trusts no signature.
func start(db dbx.Builder) (checkpoint, bool, error) {
	var c checkpoint
	err := db.NewQuery("SELECT * FROM audit_checkpoints ORDER BY id DESC LIMIT 1").One(&c)
	if errors.Is(err, sql.ErrNoRows) {
		return c, false, nil
	}
	if err != nil {
		return c, false, fmt.Errorf("read checkpoint: %w", err)
	}
	return c, true, nil
}

// begin returns where the first entry goes. The chain begins at a signed random value, so that the beginnings of two
// databases differ; entries from before the chain are sealed here, in the order in which they were written.
func (l *Ledger) begin(tx core.App) (Link, error) {
	db := tx.NonconcurrentDB()
	c, found, err := start(db)
	if err != nil {
		return Link{}, err
	}
	if found { // somebody emptied the table: going on behind it keeps the gap visible
		return Link{c.Floor, c.MAC}, nil
	}
	c = checkpoint{ID: 1, Kind: genesis, MAC: make([]byte, 32)}
	_, _ = rand.Read(c.MAC) // never fails
	if err := c.store(db, l.keys().checkpoint); err != nil {
		return Link{}, err
	}
	old, err := hasUnsealed(db)
	if err != nil || !old {
		return Link{0, c.MAC}, err
	}
	return l.sealOld(tx, Link{0, c.MAC})
}

// oldEntry is a row from before the chain.
type oldEntry struct {
	ID      int64  `db:"id"`
	At      string `db:"at"`
	Action  string `db:"action"`
	Outcome string `db:"outcome"`
	Kind    string `db:"actor_kind"`
	Coll    string `db:"actor_collection"`
	Actor   string `db:"actor_id"`
	ActAs   string `db:"act_as"`
	SubKind string `db:"subject_kind"`
	SubColl string `db:"subject_collection"`
	Subject string `db:"subject_id"`
	Session string `db:"session"`
	Request string `db:"request"`
	Address string `db:"address"`
	Details string `db:"details"`
}

// sealChunk is how many rows are read at a time.
const sealChunk = 500

// sealOld moves the rows from before the chain into it and drops their table. What was done to them before this moment
// cannot be told.
func (l *Ledger) sealOld(tx core.App, at Link) (Link, error) {
	db := tx.NonconcurrentDB()
	var after int64
	for {
		var chunk []oldEntry
		err := db.NewQuery("SELECT * FROM audit_unsealed WHERE id > {:after} ORDER BY id LIMIT {:limit}").
			Bind(dbx.Params{"after": after, "limit": sealChunk}).All(&chunk)
		if err != nil {
			return Link{}, fmt.Errorf("read old entries: %w", err)
		}
		for _, o := range chunk {
			when, err := time.Parse(time.RFC3339, o.At)
			if err != nil {
				when = time.Unix(0, 0)
			}
			row := chained{
				At: when.UnixMilli(), Action: o.Action, Outcome: o.Outcome, Session: o.Session, Request: o.Request, Address: o.Address, Details: o.Details,
			}
			actAs := Party{}
			if o.ActAs != "" {
				actAs = Party{Kind: User, Collection: o.SubColl, ID: o.ActAs}
			}
			if err := l.insert(tx, &row, Party{o.Kind, o.Coll, o.Actor}, Party{o.SubKind, o.SubColl, o.Subject}, actAs); err != nil {
				return Link{}, err
			}
			at, after = Link{row.ID, row.MAC}, o.ID
		}
		if len(chunk) < sealChunk {
			return at, execute(tx, "DROP TABLE "+unsealedTable)
		}
	}
}

// expireChunk is how many entries are deleted in a transaction, so that other writers hardly wait.
const expireChunk = 1000

// Expire deletes the entries from before the time, and the parties that no entry names any more. The newest entry always
// stays. It returns how many entries were deleted.
func (l *Ledger) Expire(ctx context.Context, app core.App, before time.Time) (removed int64, err error) {
	if err := l.Unlock(); err != nil {
		return 0, fmt.Errorf("expire audit: %w", err)
	}
	for ctx.Err() == nil {
		n := int64(0)
		err := app.RunInTransaction(func(tx core.App) error {
			n, err = l.expireSome(tx.NonconcurrentDB(), before)
			return err
		})
		if err != nil {
			return removed, fmt.Errorf("expire audit: %w", err)
		}
		if removed += n; n < expireChunk {
			break
		}
	}
	if removed == 0 || ctx.Err() != nil {
		return removed, ctx.Err()
	}
	if err := dropParties(ctx, app); err != nil {
		return removed, fmt.Errorf("expire audit: %w", err)
	}
	return removed, l.Append(app, Entry{Action: "audit.expired", Details: map[string]any{"count": removed, "before": before.UTC().Format(time.RFC3339)}})
}

// expireSome moves the floor and deletes what is below it now, in one transaction: below the floor there is never a row.
func (l *Ledger) expireSome(db dbx.Builder, before time.Time) (int64, error) {
	from, found, err := start(db)
	if err != nil || !found {
		return 0, err
	}
	if !from.authentic(l.keys().checkpoint) {
		return 0, errors.New("the floor is forged; see: satchel audit verify")
	}
	last, err := Newest(db)
	if err != nil {
		return 0, err
	}
	var chunk []struct {
		ID  int64  `db:"id"`
		At  int64  `db:"at"`
		MAC []byte `db:"mac"`
	}
	err = db.NewQuery("SELECT id, at, mac FROM audit_chain WHERE id > {:floor} AND id < {:last} ORDER BY id LIMIT {:limit}").
		Bind(dbx.Params{"floor": from.Floor, "last": last.ID, "limit": expireChunk}).All(&chunk)
	if err != nil {
		return 0, err
	}
	n := 0
	for n < len(chunk) && chunk[n].At < before.UnixMilli() {
		if chunk[n].ID != from.Floor+int64(n)+1 {
			return 0, fmt.Errorf("entry %d is missing; see: satchel audit verify", from.Floor+int64(n)+1) // a floor must not cover it up
		}
		n++
	}
	if n == 0 {
		return 0, nil
	}
	to := checkpoint{ID: from.ID + 1, Kind: floor, Floor: chunk[n-1].ID, MAC: chunk[n-1].MAC, Removed: from.Removed + int64(n)}
	if err := to.store(db, l.keys().checkpoint); err != nil {
		return 0, err
	}
	for _, q := range []string{"DELETE FROM audit_chain WHERE id <= {:floor}", "DELETE FROM audit_checkpoints WHERE kind = 'floor' AND floor < {:floor}"} {
		if _, err := db.NewQuery(q).Bind(dbx.Params{"floor": to.Floor}).Execute(); err != nil {
			return 0, err
		}
	}
	return int64(n), nil
}

// dropParties deletes the parties that no entry names, whose record ids nobody needs any longer.
func dropParties(ctx context.Context, app core.App) error {
	for after := int64(0); ctx.Err() == nil; {
		var ids []int64
		err := app.ConcurrentDB().NewQuery("SELECT id FROM audit_parties WHERE id > {:after} ORDER BY id LIMIT {:limit}").
			Bind(dbx.Params{"after": after, "limit": expireChunk}).Column(&ids)
		if err != nil || len(ids) == 0 {
			return err
		}
		_, err = app.NonconcurrentDB().NewQuery(`DELETE FROM audit_parties WHERE id > {:after} AND id <= {:last}
			AND NOT EXISTS (SELECT 1 FROM audit_chain WHERE actor = audit_parties.id)
			AND NOT EXISTS (SELECT 1 FROM audit_chain WHERE subject = audit_parties.id AND subject > 0)
			AND NOT EXISTS (SELECT 1 FROM audit_chain WHERE act_as = audit_parties.id AND act_as > 0)`).
			Bind(dbx.Params{"after": after, "last": ids[len(ids)-1]}).Execute()
		if err != nil {
			return err
		}
		after = ids[len(ids)-1]
	}
	return ctx.Err()
}
