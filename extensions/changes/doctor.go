package changes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/changes/capture"
	"github.com/satchelbase/satchel/extensions/changes/dependency"
	"github.com/satchelbase/satchel/extensions/internal/readonly"
)

// Examined is what the doctor found about one collection.
type Examined struct {
	id         string
	Collection string   `json:"collection"`
	Records    int      `json:"records"`
	Heads      int      `json:"heads"`
	Deleted    int      `json:"deleted"`
	Problems   []string `json:"problems"`

	// Reads are the names of the collections that the list rule reads; Notes, what makes it slow.
	Reads []string `json:"reads"`
	Notes []string `json:"notes"`
}

// Mending says what to do about problems.
const Mending = "satchel changes doctor --mend, which begins these collections anew: devices read them again"

// check is the line of "satchel doctor", which opens no database for writing. It looks at triggers only: to count records
// takes long.
func (l *Log) check(ctx context.Context, h *extensions.Host) extensions.Result {
	skip := extensions.Result{Level: extensions.Skip, Message: "there is no change log yet", Next: "satchel serve"}
	path := filepath.Join(h.App.DataDir(), "data.db")
	if _, err := os.Stat(path); err != nil {
		return skip
	}
	file, err := readonly.Open(path)
	if err != nil {
		return extensions.Result{Level: extensions.Skip, Message: "the database cannot be read: " + err.Error()}
	}
	defer func() { _ = file.Close() }() // it was only read
	db := dbx.NewFromDB(file, "sqlite")
	var there bool
	err = db.NewQuery("SELECT count(*) FROM sqlite_schema WHERE name = 'changes_state'").WithContext(ctx).Row(&there)
	if err == nil && !there {
		return skip
	}
	captured, problems, err := l.captured(ctx, db)
	switch {
	case err != nil:
		return extensions.Result{Level: extensions.Skip, Message: "the database cannot be read: " + err.Error()}
	case len(problems) > 0:
		return extensions.Result{Level: extensions.Fail, Message: fmt.Sprintf("%d problems, the first: %s", len(problems), problems[0]), Next: Mending}
	}
	return extensions.Result{Message: fmt.Sprintf("the changes of %d collections are recorded", len(captured))}
}

// captured lists the ids of the collections that are captured, and what is wrong with the triggers of those that should
// be.
func (l *Log) captured(ctx context.Context, db dbx.Builder) (ids, problems []string, err error) {
	var all []struct{ ID, Name, Type string }
	if err := db.NewQuery("SELECT id, name, type FROM _collections ORDER BY name").WithContext(ctx).All(&all); err != nil {
		return nil, nil, fmt.Errorf("list collections: %w", err)
	}
	stored, err := capture.StoredTriggers(db)
	if err != nil {
		return nil, nil, err
	}
	for _, found := range all {
		c := &core.Collection{}
		c.Id, c.Name, c.Type = found.ID, found.Name, found.Type
		if !capture.Capturable(c) || l.excluded(c) {
			continue
		}
		k, ok, err := capture.Live(db, c.Id)
		if err != nil {
			return nil, nil, err
		}
		wrong := "it is not captured"
		if ok {
			wrong = capture.WrongTriggers(stored, k.C, c.Name)
		}
		if wrong != "" {
			problems = append(problems, c.Name+": "+wrong)
			continue
		}
		ids = append(ids, c.Id)
	}
	return ids, problems, nil
}

// connection says what is wrong with the connections that this program writes through.
func (l *Log) connection(ctx context.Context) (problems []string, err error) {
	var recursive bool
	if err := l.app.NonconcurrentDB().NewQuery("PRAGMA recursive_triggers").WithContext(ctx).Row(&recursive); err != nil {
		return nil, fmt.Errorf("read setting of the connection: %w", err)
	}
	if !recursive {
		problems = append(problems, "recursive_triggers is off: deletions by REPLACE are not recorded")
	}
	return problems, nil
}

// Examine looks at the triggers of all collections that should be captured, holds heads against records, with deep every
// id, and finds out what the list rules read. problems are those of the whole, each collection's with its name among them.
// It folds the log, as readers do, and changes nothing else.
func (l *Log) Examine(ctx context.Context, deep bool) (list []Examined, problems []string, err error) {
	if problems, err = l.connection(ctx); err != nil {
		return nil, nil, err
	}
	ids, lost, err := l.captured(ctx, l.app.ConcurrentDB())
	if err != nil {
		return nil, nil, err
	}
	problems = append(problems, lost...)
	for _, id := range ids {
		collection, err := l.app.FindCollectionByNameOrId(id)
		if err != nil {
			return nil, nil, fmt.Errorf("find collection: %w", err)
		}
		e, err := l.compare(ctx, collection, deep)
		if err != nil {
			return nil, nil, err
		}
		if err := l.explain(collection, &e); err != nil {
			e.Notes = append(e.Notes, err.Error())
		}
		for _, p := range e.Problems {
			problems = append(problems, e.Collection+": "+p)
		}
		list = append(list, e)
	}
	return list, problems, nil
}

// compare holds the heads of a collection against its records: their numbers, and if deep every id.
func (l *Log) compare(ctx context.Context, c *core.Collection, deep bool) (Examined, error) {
	out := Examined{id: c.Id, Collection: c.Name, Problems: []string{}, Reads: []string{}, Notes: []string{}}
	k, err := l.complete(ctx, c.Id)
	if err != nil {
		return out, err
	}
	db, ok := l.app.ConcurrentDB().(*dbx.DB)
	if !ok {
		return out, errors.New("the database is not open")
	}
	for attempt := 0; ; attempt++ {
		busy := false
		err := db.TransactionalContext(ctx, nil, func(tx *dbx.Tx) error { // one snapshot
			s, err := capture.ReadState(ctx, tx)
			if err != nil || s.Folded < s.Horizon {
				busy = err == nil
				return err
			}
			return out.count(ctx, tx, k, deep)
		})
		if err != nil {
			return out, fmt.Errorf("compare heads of %s: %w", c.Name, err)
		}
		if !busy {
			return out, nil
		}
		if attempt == 20 {
			out.Notes = append(out.Notes, "it is written to all the time and was not compared")
			return out, nil
		}
		if _, err := l.Fold(ctx); err != nil {
			return out, err
		}
	}
}

func (e *Examined) count(ctx context.Context, tx *dbx.Tx, k Collection, deep bool) error {
	params := dbx.Params{"c": k.C}
	number := func(query string, into *int) error { return tx.NewQuery(query).Bind(params).WithContext(ctx).Row(into) }
	if err := number("SELECT count(*) FROM "+capture.Quote(k.Name), &e.Records); err != nil {
		return err
	}
	if err := number("SELECT count(*) FROM changes_heads WHERE c = {:c} AND del = 0", &e.Heads); err != nil {
		return err
	}
	if err := number("SELECT count(*) FROM changes_heads WHERE c = {:c} AND del = 1", &e.Deleted); err != nil {
		return err
	}
	if e.Records != e.Heads {
		e.Problems = append(e.Problems, fmt.Sprintf("%d records have %d heads", e.Records, e.Heads))
	}
	if !deep {
		return nil
	}
	for _, q := range []struct{ text, query string }{
		{"records without a head", "SELECT id FROM " + capture.Quote(k.Name) + " EXCEPT SELECT rec FROM changes_heads WHERE c = {:c} AND del = 0"},
		{"heads without a record", "SELECT rec FROM changes_heads WHERE c = {:c} AND del = 0 EXCEPT SELECT id FROM " + capture.Quote(k.Name)},
	} {
		var n int
		if err := number("SELECT count(*) FROM ("+q.query+")", &n); err != nil {
			return err
		}
		if n == 0 {
			continue
		}
		var first string
		if err := tx.NewQuery(q.query + " LIMIT 1").Bind(params).WithContext(ctx).Row(&first); err != nil {
			return err
		}
		e.Problems = append(e.Problems, fmt.Sprintf("%d %s, such as %s", n, q.text, first))
	}
	return nil
}

// largeTable is from how many records on a scan is worth a note.
const largeTable = 1000

// explain says what the list rule of the collection reads, for a user of the first auth collection.
func (l *Log) explain(c *core.Collection, e *Examined) error {
	if c.ListRule == nil {
		return nil
	}
	var auth *core.Record
	all, err := l.app.FindAllCollections(core.CollectionTypeAuth)
	if err != nil {
		return err
	}
	for _, a := range all {
		if capture.Capturable(a) {
			auth = core.NewRecord(a)
			auth.Id = core.GenerateDefaultRandomId()
			break
		}
	}
	d, err := RuleDependencies(l.app, c, *c.ListRule, auth)
	if err != nil {
		return err
	}
	for _, id := range d.Collections {
		if read, err := l.app.FindCachedCollectionByNameOrId(id); err == nil {
			e.Reads = append(e.Reads, read.Name)
		}
	}
	if d.Volatile {
		e.Notes = append(e.Notes, "the list rule depends on time or on the request: its answer cannot be remembered")
	}
	for _, table := range d.Tables {
		e.Notes = append(e.Notes, "the list rule reads "+table+", whose changes are not recorded")
	}
	for _, table := range d.Scans {
		var n int
		err := l.app.ConcurrentDB().NewQuery("SELECT count(*) FROM (SELECT 1 FROM " + capture.Quote(table) + " LIMIT {:n})").Bind(dbx.Params{"n": largeTable}).Row(&n)
		if err != nil {
			return err
		}
		if n < largeTable {
			continue
		}
		column, err := dependency.Index(l.app, c, *c.ListRule, auth, table)
		if err != nil {
			return err
		}
		help := "no index on a column of it helps"
		if column != "" {
			help = "an index on its column " + column + " helps"
		}
		e.Notes = append(e.Notes, "the list rule reads "+table+" from end to end: "+help)
	}
	return nil
}
