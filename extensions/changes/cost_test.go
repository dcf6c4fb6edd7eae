//go:build unix

package changes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

// way is a way of recording changes by triggers. %[1]s is the collection, %[2]s the event, %[3]s NEW or OLD, %[4]d
// the action.
type way struct {
	name  string
	setup []string
	body  string
}

func ways() []way {
	const counter = `UPDATE lab_state SET seq = seq + 1 WHERE k = 1; `
	return []way{
		{name: "none"},
		{
			name:  "auto",
			setup: []string{`CREATE TABLE lab_auto (seq INTEGER PRIMARY KEY AUTOINCREMENT, c INTEGER, rec TEXT, op INTEGER)`},
			body:  `INSERT INTO lab_auto (c, rec, op) VALUES (1, %[3]s.id, %[4]d);`,
		},
		{
			name: "log",
			setup: []string{
				`CREATE TABLE lab_state (k INTEGER PRIMARY KEY, seq INTEGER NOT NULL)`, `INSERT INTO lab_state VALUES (1, 0)`,
				`CREATE TABLE lab_log (seq INTEGER PRIMARY KEY, c INTEGER, rec TEXT, op INTEGER)`,
			},
			body: counter + `INSERT INTO lab_log (seq, c, rec, op) VALUES ((SELECT seq FROM lab_state WHERE k = 1), 1, %[3]s.id, %[4]d);`,
		},
		{
			name: "head",
			setup: []string{
				`CREATE TABLE lab_heads (hid INTEGER PRIMARY KEY AUTOINCREMENT, c INTEGER NOT NULL, rec TEXT NOT NULL, seq INTEGER NOT NULL, del INTEGER NOT NULL, at INTEGER, UNIQUE (c, rec))`,
				`CREATE INDEX lab_heads_seq ON lab_heads (c, seq)`,
			},
			body: counter + `INSERT INTO lab_heads (c, rec, seq, del, at) VALUES (1, %[3]s.id, (SELECT seq FROM lab_state WHERE k = 1), %[4]d = 3, unixepoch())
				ON CONFLICT (c, rec) DO UPDATE SET seq = excluded.seq, del = excluded.del, at = excluded.at;`,
		},
	}
}

// cpu is the time that this process has used, in microseconds.
func cpu(b *testing.B) float64 {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Sec+u.Stime.Sec)*1e6 + float64(u.Utime.Usec+u.Stime.Usec)
}

// foldCosts is the CPU time of folding per record, for new ones and known ones. None of it
// is in the way of a writer, but for its turn.
func foldCosts(b *testing.B, app *apptest.App, l *Log) [2]float64 {
	b.Helper()
	notes := core.NewBaseCollection("folded")
	notes.Fields.Add(&core.TextField{Name: "title"})
	if err := app.Save(notes); err != nil {
		b.Fatal(err)
	}
	const n = 4000
	measure := func(texts ...string) float64 {
		for _, text := range texts {
			if _, err := app.NonconcurrentDB().NewQuery(text).Execute(); err != nil {
				b.Fatalf("%s: %v", text, err)
			}
		}
		if _, err := l.Horizon(b.Context()); err != nil {
			b.Fatal(err)
		}
		before := cpu(b)
		if _, err := l.Fold(b.Context()); err != nil {
			b.Fatal(err)
		}
		return (cpu(b) - before) / n
	}
	return [2]float64{
		measure(fmt.Sprintf(`WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < %d)
			INSERT INTO folded (id) SELECT lower(substr(hex(randomblob(8)), 1, 10)) || printf('%%05d', i) FROM n`, n)),
		measure("UPDATE folded SET title = 'x'"),
	}
}

// BenchmarkWays compares the ways of recording changes by the CPU time of API writes: blocks of requests take turns, and
// the quarter of the rounds that was disturbed least counts.
func BenchmarkWays(b *testing.B) {
	db, err := store.Open(store.Config{Durability: store.Normal}, store.Options{Quiet: append(Tables(), "lab_auto", "lab_log", "lab_state", "lab_heads")})
	if err != nil {
		b.Fatal(err)
	}
	cfg := defaults()
	for _, c := range ways() {
		cfg.Exclude = append(cfg.Exclude, "lab_"+c.name+"_notes")
	}
	l := New(cfg, db)
	var h http.Handler
	outermost := extensions.Extension{Name: "outermost", Handler: func(next http.Handler) http.Handler { h = next; return next }}
	app := apptest.Open(b, db.Connect, outermost, api.New(settings.Defaults[api.Config]()), store.New(db), l.Extension())
	app.Settings().Logs.MaxDays = 0
	user, token := app.User(b, "ann@example.test")
	exec := func(text string) {
		if _, err := app.NonconcurrentDB().NewQuery(text).Execute(); err != nil {
			b.Fatalf("%s: %v", text, err)
		}
	}
	for _, c := range ways() {
		notes := core.NewBaseCollection("lab_" + c.name + "_notes")
		notes.Fields.Add(
			&core.RelationField{Name: "owner", CollectionId: user.Collection().Id, MaxSelect: 1}, &core.TextField{Name: "title"}, &core.TextField{Name: "body"},
			&core.AutodateField{Name: "created", OnCreate: true}, &core.AutodateField{Name: "updated", OnCreate: true, OnUpdate: true},
		)
		for _, rule := range []**string{&notes.ListRule, &notes.ViewRule, &notes.CreateRule, &notes.UpdateRule, &notes.DeleteRule} {
			*rule = new("owner = @request.auth.id")
		}
		notes.AddIndex("idx_"+c.name, false, "owner, updated", "")
		if err := app.Save(notes); err != nil {
			b.Fatal(err)
		}
		for _, text := range c.setup {
			exec(text)
		}
		for i, event := range []string{"INSERT", "UPDATE", "DELETE"} {
			if c.body != "" {
				exec(fmt.Sprintf("CREATE TRIGGER lab_%[5]s_%[2]s AFTER %[2]s ON %[1]s BEGIN "+c.body+" END", notes.Name, event, []string{"NEW", "NEW", "OLD"}[i], i+1, c.name))
			}
		}
	}
	request := func(method, path string, body any) []byte {
		raw, err := json.Marshal(body)
		if err != nil {
			b.Fatal(err)
		}
		r := httptest.NewRequest(method, path, bytes.NewReader(raw))
		r.Header.Set("Authorization", token)
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusOK {
			b.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
		}
		return w.Body.Bytes()
	}
	folds := foldCosts(b, app, l)
	const block, rounds = 25, 160
	creates, updates := map[string][]float64{}, map[string][]float64{}
	for round := range rounds {
		list := ways()
		for i := range list {
			c := list[(i+round)%len(list)]
			path := "/api/collections/lab_" + c.name + "_notes/records"
			ids := make([]string, 0, block)
			start := cpu(b)
			for n := range block {
				var out struct{ ID string }
				if err := json.Unmarshal(request(http.MethodPost, path, map[string]any{"owner": user.Id, "title": fmt.Sprint(n), "body": strings.Repeat("words ", 40)}), &out); err != nil {
					b.Fatal(err)
				}
				ids = append(ids, out.ID)
			}
			middle := cpu(b)
			for n, id := range ids {
				request(http.MethodPatch, path+"/"+id, map[string]any{"title": fmt.Sprint("other ", n)})
			}
			creates[c.name] = append(creates[c.name], (middle-start)/block)
			updates[c.name] = append(updates[c.name], (cpu(b)-middle)/block)
		}
	}
	quiet := func(all []float64) (mean float64) { // the quarter that was disturbed least
		sorted := slices.Sorted(slices.Values(all))[:len(all)/4]
		for _, v := range sorted {
			mean += v / float64(len(sorted))
		}
		return mean
	}
	for _, c := range ways() {
		create, update := quiet(creates[c.name]), quiet(updates[c.name])
		b.Logf("%-5s create %4.0f µs (%+.1f %%)  update %4.0f µs (%+.1f %%)", c.name, create, (create/quiet(creates["none"])-1)*100, update, (update/quiet(updates["none"])-1)*100)
	}
	b.Logf("fold: %.1f µs for a new record, %.1f µs for a known one", folds[0], folds[1])
}
