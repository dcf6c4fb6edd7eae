package ledger

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

const (
	// verifyChunk is how many entries are read at a time, so that no long read keeps the write-ahead log from shrinking.
	verifyChunk = 2000

	// verifyParties bounds how many commitments are remembered; each takes about 100 bytes.
	verifyParties = 1 << 16

	// maxProblems bounds the report.
	maxProblems = 20
)

// Problem is one thing that is wrong. Entry is the first bad entry where that can be told.
type Problem struct {
	Entry  int64  `json:"entry,omitempty"`
	Code   string `json:"code"`
	Detail string `json:"detail"`
}

// Codes of problems.
const (
	ProblemChanged    = "changed"    // an entry is not what was sealed
	ProblemMissing    = "missing"    // entries between others are gone
	ProblemMisplaced  = "misplaced"  // an entry is there twice, or out of order
	ProblemTruncated  = "truncated"  // the file outside knows entries that are not there
	ProblemReplaced   = "replaced"   // the file outside knows another entry under this number
	ProblemParty      = "party"      // who acted, or on whom, was changed
	ProblemCheckpoint = "checkpoint" // the beginning of the chain is missing or forged
	ProblemFile       = "file"       // a line of the file outside was changed, or is of another key
	ProblemSchema     = "schema"     // a table or trigger is not what the program made
)

// Report is what a verification found.
type Report struct {
	OK       bool      `json:"ok"`
	Entries  int64     `json:"entries"`           // that were verified
	First    int64     `json:"first,omitempty"`   // of them
	Last     int64     `json:"last,omitempty"`    // of them
	Removed  int64     `json:"removed,omitempty"` // that retention has deleted
	File     string    `json:"file"`              // "checked", "missing" or "off"
	Problems []Problem `json:"problems,omitempty"`
	Millis   int64     `json:"milliseconds"`

	End Link `json:"-"` // up to where all is well
}

func (r *Report) add(entry int64, code, format string, args ...any) {
	if len(r.Problems) < maxProblems {
		r.Problems = append(r.Problems, Problem{Entry: entry, Code: code, Detail: fmt.Sprintf(format, args...)})
	}
}

// Verify reads the log and reports what is wrong with it. With a place in the chain that was verified before, entries up
// to there are left out; nil reads all. Its error says that it could not read. Memory is bounded; others may write
// meanwhile.
func (l *Ledger) Verify(ctx context.Context, app core.App, known *Link) (*Report, error) {
	if err := l.Unlock(); err != nil {
		return nil, fmt.Errorf("verify audit: %w", err)
	}
	began := time.Now()
	v := &verifier{Report: &Report{}, keys: l.keys(), db: app.ConcurrentDB(), seals: map[int64][]byte{}}
	// The file is read first: what it names is committed by then, and must be found.
	err := v.readFile(l.File())
	for _, step := range []func(context.Context) error{v.schema, v.checkpoints, v.parties, v.chain(known)} {
		if err == nil {
			err = step(ctx)
		}
	}
	if err != nil && len(v.Problems) > 0 && ctx.Err() == nil { // a table that was replaced need not be readable
		v.add(0, ProblemSchema, "the log cannot be read on: %v", err)
		err = nil
	}
	if err != nil {
		return nil, fmt.Errorf("verify audit: %w", err)
	}
	v.OK, v.Millis = len(v.Problems) == 0, time.Since(began).Milliseconds()
	return v.Report, nil
}

type verifier struct {
	*Report
	keys  keys
	db    dbx.Builder
	marks []Mark
	from  checkpoint
	seals map[int64][]byte
	buf   []byte
}

func (v *verifier) readFile(path string) error {
	good, bad, err := ReadMarks(path, v.keys.head)
	switch {
	case path == "":
		v.File = "off"
	case errors.Is(err, fs.ErrNotExist):
		v.File, err = "missing", nil
	default:
		v.File = "checked"
	}
	if len(bad) > 0 {
		v.add(0, ProblemFile, "%d lines of %s were changed or are of another key", len(bad), path)
	}
	v.marks = good
	return err
}

// schema compares the tables and triggers with what the migration made. A table that was replaced may lack what keeps
// numbers unique, and triggers that are gone let everything pass.
func (v *verifier) schema(ctx context.Context) error {
	var have []struct {
		Name string `db:"name"`
		SQL  string `db:"sql"`
	}
	err := v.db.NewQuery(`SELECT name, coalesce(sql, '') AS sql FROM sqlite_master
		WHERE type IN ('table', 'trigger') AND tbl_name IN ('audit_chain', 'audit_parties', 'audit_checkpoints')`).WithContext(ctx).All(&have)
	if err != nil {
		return fmt.Errorf("read schema: %w", err)
	}
	found := map[string]string{}
	for _, h := range have {
		found[h.Name] = h.SQL
	}
	want := tables()
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if found[name] != want[name] {
			v.add(0, ProblemSchema, "%s is missing or was changed", name)
		}
		delete(found, name)
	}
	for _, name := range slices.Sorted(maps.Keys(found)) {
		v.add(0, ProblemSchema, "%s was added", name)
	}
	return nil
}

func (v *verifier) checkpoints(ctx context.Context) error {
	var all []checkpoint
	if err := v.db.NewQuery("SELECT * FROM audit_checkpoints ORDER BY id LIMIT 1000").WithContext(ctx).All(&all); err != nil {
		return fmt.Errorf("read checkpoints: %w", err)
	}
	for _, c := range all {
		if !c.authentic(v.keys.checkpoint) {
			v.add(c.Floor, ProblemCheckpoint, "checkpoint %d is forged or of another key", c.ID)
		}
	}
	if len(all) > 0 {
		v.from = all[len(all)-1]
	}
	if len(all) == 0 || all[0].Kind != genesis {
		var any int
		if err := v.db.NewQuery("SELECT count(*) FROM (SELECT 1 FROM audit_chain LIMIT 1)").WithContext(ctx).Row(&any); err != nil {
			return err
		}
		if any > 0 || len(v.marks) > 0 || len(all) > 0 {
			v.add(0, ProblemCheckpoint, "the beginning of the chain is missing")
		}
	}
	v.Removed = v.from.Removed
	return nil
}

// parties tests the commitments, and that whoever was forgotten was forgotten by the program.
func (v *verifier) parties(ctx context.Context) error {
	for after := int64(-1 << 62); ; {
		rows, err := v.db.NewQuery("SELECT id, kind, collection, record, salt, seal, forgotten FROM audit_parties WHERE id > {:after} ORDER BY id LIMIT {:limit}").
			Bind(dbx.Params{"after": after, "limit": verifyChunk}).WithContext(ctx).Rows()
		if err != nil {
			return fmt.Errorf("read parties: %w", err)
		}
		n := 0
		for rows.Next() {
			var kind, collection, record string
			var salt, seal, forgotten []byte
			if err = rows.Scan(&after, &kind, &collection, &record, &salt, &seal, &forgotten); err != nil {
				break
			}
			n++
			switch {
			case len(forgotten) == 0 && !bytes.Equal(seal, commit(salt, kind, collection, record)):
				v.add(0, ProblemParty, "party %d (%s %s/%s) is not who it was", after, kind, collection, record)
			case len(forgotten) > 0 && !bytes.Equal(forgotten, party{after, seal}.tombstone(v.keys.party)):
				v.add(0, ProblemParty, "party %d (%s) was taken out past the program", after, kind)
			}
		}
		if err = errors.Join(err, rows.Err(), rows.Close()); err != nil {
			return fmt.Errorf("read parties: %w", err)
		}
		if n < verifyChunk {
			return nil
		}
	}
}

// chain recomputes every MAC up to the entry that is the newest now, and stops at the first that is wrong.
func (v *verifier) chain(known *Link) func(context.Context) error {
	return func(ctx context.Context) error {
		at := Link{v.from.Floor, v.from.MAC}
		if known != nil && known.ID > at.ID {
			at = *known
		}
		until, err := Newest(v.db)
		if err != nil {
			return err
		}
		v.First = at.ID + 1
		intact := true
		for intact && at.ID < until.ID {
			if at, intact, err = v.some(ctx, at, until.ID); err != nil {
				return err
			}
		}
		v.Last, v.End = at.ID, at
		if v.Entries == 0 {
			v.First, v.Last = 0, 0
		}
		if !intact {
			return nil
		}
		if err := v.below(ctx); err != nil {
			return err
		}
		for _, m := range v.marks {
			if m.Entry > until.ID {
				v.add(until.ID+1, ProblemTruncated, "entries %d to %d are missing: the file has seen them on %s", until.ID+1, m.Entry, m.At.Format(time.RFC3339))
			} else if ok, err := m.Kept(v.db); err != nil {
				return err
			} else if !ok {
				v.add(m.Entry, ProblemReplaced, "the file has seen another entry under this number on %s", m.At.Format(time.RFC3339))
			}
		}
		return nil
	}
}

// below finds rows under the floor, which deletes what it covers in the same transaction.
func (v *verifier) below(ctx context.Context) error {
	var id *int64
	err := v.db.NewQuery(`SELECT min(id) FROM audit_chain WHERE id <= (SELECT coalesce(max(floor), 0) FROM audit_checkpoints)`).WithContext(ctx).Row(&id)
	if err == nil && id != nil {
		v.add(*id, ProblemMisplaced, "the entry lies below the floor")
	}
	return err
}

// some verifies the next entries after a place in the chain and returns the place it has come to.
func (v *verifier) some(ctx context.Context, at Link, until int64) (Link, bool, error) {
	chunk, err := v.read(ctx, at.ID, until)
	if err != nil {
		return at, false, err
	}
	if len(chunk) == 0 || chunk[0].ID != at.ID+1 {
		if to, moved, err := v.passed(at.ID); err != nil || moved {
			return to, moved, err
		}
	}
	for i := range chunk {
		c := &chunk[i]
		switch {
		case c.ID > at.ID+1:
			v.add(at.ID+1, ProblemMissing, "entries %d to %d are missing", at.ID+1, c.ID-1)
			return at, false, nil
		case c.ID < at.ID+1:
			v.add(c.ID, ProblemMisplaced, "the entry is there twice or out of order")
			return at, false, nil
		}
		for _, p := range []*party{&c.Actor, &c.Subject, &c.ActAs} {
			p.Seal = v.seals[p.ID]
		}
		if !bytes.Equal(c.sum(v.keys.chain, at.MAC, v.buf), c.MAC) {
			// Its parties were read after it, and retention may have deleted them, or given their numbers to others.
			intact, err := v.again(ctx, at, c)
			if err != nil {
				return at, false, err
			}
			if intact {
				at = Link{c.ID, c.MAC}
				v.Entries++
				continue
			}
			if to, moved, err := v.passed(c.ID - 1); err != nil || moved {
				return to, moved, err
			}
			v.add(c.ID, ProblemChanged, "the entry is not what was sealed, or the one before it, or who it names (MAC %s)", hex.EncodeToString(c.MAC[:min(4, len(c.MAC))]))
			return at, false, nil
		}
		at = Link{c.ID, c.MAC}
		v.Entries++
	}
	if len(chunk) == 0 {
		v.add(at.ID+1, ProblemMissing, "entries from %d on are missing", at.ID+1)
		return at, false, nil
	}
	return at, true, nil
}

// passed returns the floor if retention has moved it behind an entry meanwhile.
func (v *verifier) passed(id int64) (Link, bool, error) {
	now, _, err := start(v.db)
	if err != nil || now.Floor <= id || !now.authentic(v.keys.checkpoint) {
		return Link{}, false, err
	}
	v.from, v.Removed = now, now.Removed
	return Link{now.Floor, now.MAC}, true, nil
}

// again verifies an entry with the parties of the same moment.
func (v *verifier) again(ctx context.Context, at Link, c *chained) (bool, error) {
	clear(v.seals)
	err := v.db.NewQuery(`SELECT a.seal, s.seal, n.seal FROM audit_chain c LEFT JOIN audit_parties a ON a.id = c.actor
		LEFT JOIN audit_parties s ON s.id = c.subject LEFT JOIN audit_parties n ON n.id = c.act_as WHERE c.id = {:id} AND c.mac = {:mac}`).
		Bind(dbx.Params{"id": c.ID, "mac": c.MAC}).WithContext(ctx).Row(&c.Actor.Seal, &c.Subject.Seal, &c.ActAs.Seal)
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return err == nil && bytes.Equal(c.sum(v.keys.chain, at.MAC, v.buf), c.MAC), err
}

// read returns the entries after an id, and makes the commitments that they name known.
func (v *verifier) read(ctx context.Context, after, until int64) ([]chained, error) {
	rows, err := v.db.NewQuery(`SELECT id, at, action, outcome, actor, subject, act_as, session, request, address, details, mac
		FROM audit_chain WHERE id > {:after} AND id <= {:until} ORDER BY id LIMIT {:limit}`).
		Bind(dbx.Params{"after": after, "until": until, "limit": verifyChunk}).WithContext(ctx).Rows()
	if err != nil {
		return nil, fmt.Errorf("read entries: %w", err)
	}
	if v.buf == nil {
		v.buf = make([]byte, 0, maxDetails+8*MaxText)
	}
	out := make([]chained, 0, verifyChunk)
	wanted := map[int64]bool{}
	for rows.Next() {
		var c chained
		err = rows.Scan(&c.ID, &c.At, &c.Action, &c.Outcome, &c.Actor.ID, &c.Subject.ID, &c.ActAs.ID, &c.Session, &c.Request, &c.Address, &c.Details, &c.MAC)
		if err != nil {
			break
		}
		out = append(out, c)
		for _, id := range [...]int64{c.Actor.ID, c.Subject.ID, c.ActAs.ID} {
			if _, known := v.seals[id]; !known && id != 0 {
				wanted[id] = true
			}
		}
	}
	if err = errors.Join(err, rows.Err(), rows.Close()); err != nil {
		return nil, fmt.Errorf("read entries: %w", err)
	}
	if len(v.seals)+len(wanted) > verifyParties {
		clear(v.seals)
		for _, c := range out {
			wanted[c.Actor.ID], wanted[c.Subject.ID], wanted[c.ActAs.ID] = true, true, true
		}
		delete(wanted, 0)
	}
	return out, v.learn(ctx, wanted)
}

// learn reads commitments.
func (v *verifier) learn(ctx context.Context, wanted map[int64]bool) error {
	for ids := range slices.Chunk(slices.Collect(maps.Keys(wanted)), 500) {
		numbers := make([]string, len(ids))
		for i, id := range ids {
			numbers[i] = strconv.FormatInt(id, 10)
		}
		rows, err := v.db.NewQuery("SELECT id, seal FROM audit_parties WHERE id IN (" + strings.Join(numbers, ",") + ")").WithContext(ctx).Rows()
		if err != nil {
			return fmt.Errorf("read parties: %w", err)
		}
		for rows.Next() {
			var id int64
			var seal []byte
			if err = rows.Scan(&id, &seal); err != nil {
				break
			}
			v.seals[id] = seal
		}
		if err = errors.Join(err, rows.Err(), rows.Close()); err != nil {
			return fmt.Errorf("read parties: %w", err)
		}
	}
	return nil
}
