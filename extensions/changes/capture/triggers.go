package capture

import (
	"fmt"
	"maps"
	"strings"

	"github.com/pocketbase/dbx"
)

// triggers are the texts of the triggers of a collection by name, in the form in which SQLite keeps them, also after it
// has renamed the table. They append with a plain INSERT into a table that has nothing to conflict with, so that no
// conflict clause of the statement that fires them can drop a change.
func triggers(c int64, table string) map[string]string {
	entry := func(row string, action Action) string {
		return fmt.Sprintf("INSERT INTO changes_log (c, rec, op) VALUES (%d, %s.id, %d)", c, row, action)
	}
	out := map[string]string{}
	add := func(name, event, body string) {
		name = fmt.Sprintf("changes_%d_%s", c, name)
		before, when, _ := strings.Cut(event, "|")
		out[name] = fmt.Sprintf("CREATE TRIGGER %s AFTER %s ON %s%s BEGIN %s; END", name, before, Quote(table), when, body)
	}
	add("insert", "INSERT", entry("NEW", Create))
	add("update", "UPDATE", entry("NEW", Update))
	add("delete", "DELETE", entry("OLD", Delete))
	// A record that gets another id is gone under the old one.
	add("move", "UPDATE OF id| WHEN OLD.id IS NOT NEW.id", entry("OLD", Delete))
	return out
}

// StoredTriggers are the triggers of this package in the database, their texts by name.
func StoredTriggers(db dbx.Builder) (map[string]string, error) {
	var rows []struct{ Name, SQL string }
	err := db.NewQuery(`SELECT name, sql FROM sqlite_schema WHERE type = 'trigger' AND name GLOB 'changes_[0-9]*_[a-z]*'`).All(&rows)
	if err != nil {
		return nil, fmt.Errorf("read triggers: %w", err)
	}
	out := make(map[string]string, len(rows))
	for _, r := range rows {
		out[r.Name] = r.SQL
	}
	return out, nil
}

// WrongTriggers says what is wrong with the triggers of a collection, empty when nothing is. A name of the table in
// another case is the same table.
func WrongTriggers(stored map[string]string, c int64, table string) string {
	for name, text := range triggers(c, table) {
		have, ok := stored[name]
		if !ok {
			return "the trigger " + name + " is missing"
		}
		if !strings.EqualFold(have, text) {
			return "the trigger " + name + " has another text"
		}
	}
	return ""
}

func createTriggers(db dbx.Builder, c int64, table string) error {
	for _, text := range triggers(c, table) {
		if err := Exec(db, text, nil); err != nil {
			return err
		}
	}
	return nil
}

// dropTriggers drops those of the stored triggers that do not belong to the collections in live.
func dropTriggers(db dbx.Builder, stored map[string]string, live []int64) error {
	stray := maps.Clone(stored)
	for _, c := range live {
		for name := range triggers(c, "") {
			delete(stray, name)
		}
	}
	for name := range stray {
		if err := Exec(db, "DROP TRIGGER IF EXISTS "+Quote(name), nil); err != nil {
			return err
		}
		delete(stored, name)
	}
	return nil
}
