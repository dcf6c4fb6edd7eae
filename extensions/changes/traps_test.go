package changes

import (
	"errors"
	"fmt"
	"testing"

	"github.com/pocketbase/pocketbase/core"
)

// The traps of capturing changes by triggers.
func TestTraps(t *testing.T) {
	f := start(t, defaults())
	a, b, c := f.note("a", "A"), f.note("b", "B"), f.note("c", "C")
	const d, e, moved = "00000000000000d", "00000000000000e", "00000000000000f"
	for _, trap := range []struct {
		name string
		do   []string
		want []string
	}{
		{"a conflict clause of the outer statement", []string{`UPDATE OR IGNORE notes SET title = 'x' WHERE id = '` + a.Id + `'`}, []string{"update " + a.Id}},
		{"or ignore that changes nothing", []string{`INSERT OR IGNORE INTO notes (id) VALUES ('` + a.Id + `')`}, nil},
		{"replace of the same record", []string{`INSERT OR REPLACE INTO notes (id, title, code) VALUES ('` + b.Id + `', 'r', 'B')`}, []string{"delete " + b.Id, "create " + b.Id}},
		{"replace that evicts another record", []string{`INSERT OR REPLACE INTO notes (id, title, code) VALUES ('` + d + `', 'r', 'C')`}, []string{"delete " + c.Id, "create " + d}},
		{"update or replace that evicts another record", []string{`UPDATE OR REPLACE notes SET code = 'C' WHERE id = '` + b.Id + `'`}, []string{"delete " + d, "update " + b.Id}},
		{"upsert", []string{`INSERT INTO notes (id, code) VALUES ('` + e + `', 'E') ON CONFLICT (id) DO UPDATE SET code = excluded.code`, `INSERT INTO notes (id, code) VALUES ('` + e + `', 'E2') ON CONFLICT (id) DO UPDATE SET code = excluded.code`}, []string{"create " + e, "update " + e}},
		{"delete without a condition", []string{`DELETE FROM notes WHERE id = '` + e + `'`, `UPDATE notes SET title = 'all'`}, []string{"delete " + e, "update " + a.Id, "update " + b.Id}},
	} {
		got := f.during(func() { f.exec(trap.do...) })
		if trap.name == "delete without a condition" && len(got) == 3 && got[1] > got[2] {
			got[1], got[2] = got[2], got[1]
		}
		want := trap.want
		if trap.name == "delete without a condition" && want[1] > want[2] {
			want[1], want[2] = want[2], want[1]
		}
		equal(t, trap.name, got, want...)
		f.sound("notes")
	}
	got := f.during(func() { f.exec(`UPDATE notes SET id = '` + moved + `' WHERE id = '` + a.Id + `'`) })
	if len(got) != 2 || !f.heads("notes")[a.Id].Deleted || f.heads("notes")[moved].Deleted {
		t.Errorf("a change of the id: %v", got)
	}
	f.sound("notes")
	if got := f.during(func() { f.exec(`DELETE FROM notes`) }); len(got) != 2 {
		t.Errorf("truncate: %v", got)
	}
	f.sound("notes")
}

// OR FAIL keeps the rows before the one that fails, but not SQLite's note of the last number.
func TestOrFailReusesNoNumber(t *testing.T) {
	f := start(t, defaults())
	f.note("a", "A")
	from := f.at()
	_, err := f.NonconcurrentDB().NewQuery(`INSERT OR FAIL INTO notes (id, code) VALUES ('00000000000000b', 'B'), ('00000000000000c', 'A')`).Execute()
	if err == nil {
		t.Fatal("no conflict")
	}
	f.note("d", "D")
	if got := f.since(from); len(got) != 2 || got[0] != "create 00000000000000b" {
		t.Errorf("%v", got)
	}
	f.sound("notes")
}

// What a transaction undoes never had a number.
func TestRollback(t *testing.T) {
	f := start(t, defaults())
	from := f.at()
	undone := errors.New("undone")
	err := f.RunInTransaction(func(tx core.App) error {
		r := core.NewRecord(f.notes)
		if err := tx.Save(r); err != nil {
			return err
		}
		return undone
	})
	if !errors.Is(err, undone) || f.at() != from {
		t.Errorf("%v: %v, was %v", err, f.at(), from)
	}
}

// Changes of a collection keep the triggers, and are entries themselves.
func TestCollectionChanges(t *testing.T) {
	f := start(t, defaults())
	r := f.note("a", "A")
	edit := func(change func(c *core.Collection)) func() {
		return func() {
			t.Helper()
			c, err := f.FindCollectionByNameOrId(f.notes.Id)
			f.must(err)
			change(c)
			f.save(c)
			f.notes = c
		}
	}
	schemas := map[string]bool{}
	for _, c := range []struct {
		name   string
		change func(c *core.Collection)
		want   []string
		same   bool // the schema
	}{
		{"add field", func(c *core.Collection) { c.Fields.Add(&core.TextField{Name: "extra"}) }, []string{"schema"}, false},
		{"rename field", func(c *core.Collection) { c.Fields.GetByName("extra").SetName("title2") }, []string{"schema"}, false},
		{"remove field", func(c *core.Collection) { c.Fields.RemoveByName("title2") }, []string{"schema"}, false},
		{"single to multiple", func(c *core.Collection) { c.Fields.GetByName("tag").(*core.SelectField).MaxSelect = 2 }, []string{"update " + r.Id, "schema"}, false},
		{"multiple to single", func(c *core.Collection) { c.Fields.GetByName("tag").(*core.SelectField).MaxSelect = 1 }, []string{"update " + r.Id, "schema"}, false},
		{"rule", func(c *core.Collection) { c.ListRule = new("title != ''") }, []string{"schema"}, true},
		{"rename", func(c *core.Collection) { c.Name = "memos" }, []string{"schema"}, true},
		{"rename to another case", func(c *core.Collection) { c.Name = "Memos" }, []string{"schema"}, true},
	} {
		before, err := f.Collection(t.Context(), f.notes.Id)
		f.must(err)
		equal(t, c.name, f.during(edit(c.change)), c.want...)
		after, err := f.Collection(t.Context(), f.notes.Name)
		f.must(err)
		if (after.Schema == before.Schema) != c.same || after.C != before.C || after.Name != f.notes.Name {
			t.Errorf("%s: %+v, then %+v", c.name, before, after)
		}
		schemas[after.Schema] = true
		equal(t, "a write after "+c.name, f.during(func() { r.Set("title", "after "+c.name); f.save(reload(f, r)) }), "update "+r.Id)
		if result := f.check(t.Context(), f.Host); result.Level != 0 {
			t.Errorf("%s: %+v", c.name, result)
		}
	}
	if len(schemas) < 3 {
		t.Errorf("%d states of the schema", len(schemas))
	}
	f.sound("Memos")
}

// reload returns the record as its present collection has it, with another title.
func reload(f *fixture, r *core.Record) *core.Record {
	f.t.Helper()
	fresh, err := f.FindRecordById(f.notes.Id, r.Id)
	f.must(err)
	fresh.Set("title", r.GetString("title"))
	return fresh
}

// A collection that is deleted leaves one tombstone, and one made again under its id is another one.
func TestCollectionDeleted(t *testing.T) {
	f := start(t, defaults())
	f.note("a", "A")
	before, err := f.Collection(t.Context(), "notes")
	f.must(err)
	from := f.at()
	equal(t, "delete", f.during(func() { f.must(f.Delete(f.notes)) }), "gone")
	if _, err := f.Collection(t.Context(), "notes"); !errors.Is(err, ErrNotCaptured) {
		t.Errorf("still captured: %v", err)
	}
	gone, err := f.Gone(t.Context(), from.Seq)
	if err != nil || len(gone) != 1 || gone[0].ID != before.ID || gone[0].Gone != from.Seq+1 {
		t.Errorf("gone: %+v %v", gone, err)
	}
	f.notes = f.collection("notes")
	r := f.note("b", "B")
	again, err := f.Collection(t.Context(), "notes")
	f.must(err)
	if again.ID != before.ID || again.C == before.C || again.Base <= gone[0].Gone {
		t.Errorf("before %+v, again %+v", before, again)
	}
	if heads := f.heads("notes"); len(heads) != 1 || heads[r.Id].Version == 0 {
		t.Errorf("heads: %+v", heads)
	}
	if gone, err := f.Gone(t.Context(), from.Seq); err != nil || len(gone) != 0 {
		t.Errorf("gone although it is there again: %+v %v", gone, err)
	}
	f.must(f.purge(t.Context())) // drops the heads of the old one only
	f.sound("notes")
}

// A change of a collection that fails leaves everything as it was.
func TestCollectionChangeFails(t *testing.T) {
	f := start(t, defaults())
	from := f.at()
	c, err := f.FindCollectionByNameOrId("notes")
	f.must(err)
	c.Name = "memos"
	c.Fields.Add(&core.TextField{Name: "more"})
	c.Indexes = append(c.Indexes, "CREATE INDEX broken ON memos (nothing)")
	if err := f.Save(c); err == nil {
		t.Fatal("the index was made")
	}
	if f.at() != from {
		t.Errorf("entries of a failed change: %v", f.since(from))
	}
	f.note("a", "A")
	f.sound("notes")
}

// RETURNING, the number of rows and the last row are those of the statement and not of the trigger.
func TestTriggersAreInvisible(t *testing.T) {
	f := start(t, defaults())
	db := f.NonconcurrentDB()
	for range 3 {
		f.note("x", "")
	}
	var id string
	f.must(db.NewQuery(`INSERT INTO notes (id, title) VALUES ('00000000000000z', 'z') RETURNING id`).Row(&id))
	if id != "00000000000000z" {
		t.Errorf("returning: %q", id)
	}
	result, err := db.NewQuery(`UPDATE notes SET title = 'y'`).Execute()
	f.must(err)
	if n, err := result.RowsAffected(); err != nil || n != 4 {
		t.Errorf("rows affected: %d %v", n, err)
	}
	f.exec("CREATE TABLE plain (id INTEGER PRIMARY KEY, n INTEGER)")
	err = f.RunInTransaction(func(tx core.App) error {
		result, err := tx.DB().NewQuery("INSERT INTO plain (id) VALUES (77)").Execute()
		if err != nil {
			return err
		}
		if n, err := result.LastInsertId(); err != nil || n != 77 {
			return fmt.Errorf("last id: %d %w", n, err)
		}
		if _, err := tx.DB().NewQuery(`UPDATE notes SET title = 'w'`).Execute(); err != nil {
			return err
		}
		var last, changed int
		if err := tx.DB().NewQuery("SELECT last_insert_rowid(), changes()").Row(&last, &changed); err != nil {
			return err
		}
		if last != 77 || changed != 4 {
			return fmt.Errorf("last %d, changed %d", last, changed)
		}
		return nil
	})
	f.must(err)
}
