package audit

import (
	"testing"

	"github.com/pocketbase/pocketbase/core"
)

// Summarise stores what was counted, as the server does every minute.
func (l *Log) Summarise() error { return l.summarise(l.app, false) }

// AfterRestore is what the server does when it starts.
func (l *Log) AfterRestore() error { return l.afterRestore() }

// Plan is how SQLite finds a page of the entries that the filter chooses.
func (l *Log) Plan(t testing.TB, app core.App, f Filter) string {
	t.Helper()
	q, err := f.query(app.ConcurrentDB())
	if err != nil {
		t.Fatal(err)
	}
	text, params := q.sql(&position{at: 1, id: 1}, 10, false)
	var steps []struct {
		Detail string `db:"detail"`
	}
	if err := app.ConcurrentDB().NewQuery("EXPLAIN QUERY PLAN " + text).Bind(params).All(&steps); err != nil {
		t.Fatal(err)
	}
	out := ""
	for _, s := range steps {
		out += s.Detail + "\n"
	}
	return out
}
