//go:build unix

package sync_test

import (
	"flag"
	"fmt"
	"strings"
	"syscall"
	"testing"
)

var benchRows = flag.Int("sync.rows", 1_000_000, "rows of the table that the benchmarks pull from")

// crowd is a table with many rows of a thousand users, of whom one has a device, and a hundred teams.
func crowd(b *testing.B, rule string) (f *fixture, d *device) {
	f = start(b, options{})
	exec := func(text string) {
		b.Helper()
		if _, err := f.NonconcurrentDB().NewQuery(text).Execute(); err != nil {
			b.Fatal(err)
		}
	}
	series := func(n int) string {
		return fmt.Sprintf("WITH RECURSIVE c(i) AS (SELECT 0 UNION ALL SELECT i+1 FROM c WHERE i < %d) ", n-1)
	}
	ann, token := f.User(b, "ann@example.test")
	team := f.record("teams", map[string]any{"id": id("t7x"), "name": "mine"})
	f.record("members", map[string]any{"user": ann.Id, "team": team.Id})
	f.notes.ListRule = new(rule)
	f.save(f.notes)
	const chunk = 50_000
	for from := 0; from < *benchRows; from += chunk {
		exec(series(chunk) + fmt.Sprintf(`INSERT INTO notes (id, title, body, likes, owner, team) SELECT printf('n%%014d', i+%d), 'title', '%s', i,
			CASE (i+%d) %% 1000 WHEN 7 THEN '%s' ELSE printf('u%%014d', (i+%d) %% 1000) END, substr('t' || ((i+%d) %% 100) || 'x00000000000000', 1, 15) FROM c`,
			from, strings.Repeat("lorem ", 30), from, ann.Id, from, from))
		if _, err := f.log.Fold(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	exec("ANALYZE")
	d = f.device(token, "ann")
	d.limit = 1000
	d.sync()
	return f, d
}

// cpu is the time that this process has used, in milliseconds, the client in it included. Unlike the time on the wall it
// is not that of others.
func cpu(b *testing.B) float64 {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return float64(u.Utime.Sec+u.Stime.Sec)*1e3 + float64(u.Utime.Usec+u.Stime.Usec)/1e3
}

// BenchmarkPull measures a whole request: 100 changed rows out of the table.
func BenchmarkPull(b *testing.B) {
	for name, rule := range map[string]string{"owner": ownerRule, "members": `team.members_via_team.user ?= @request.auth.id`} {
		b.Run(name, func(b *testing.B) {
			f, d := crowd(b, rule)
			n, used, folding := 0, 0.0, 0.0
			for b.Loop() {
				b.StopTimer()
				n++
				ids := make([]string, 100)
				for i := range ids {
					ids[i] = fmt.Sprintf("'n%014d'", i*1000+7)
				}
				if _, err := f.NonconcurrentDB().NewQuery(fmt.Sprintf("UPDATE notes SET title = 'x%d' WHERE id IN (%s)", n, strings.Join(ids, ","))).Execute(); err != nil {
					b.Fatal(err)
				}
				before := cpu(b)
				if _, err := f.log.Fold(b.Context()); err != nil {
					b.Fatal(err)
				}
				folding += cpu(b) - before
				before = cpu(b)
				b.StartTimer()
				p := d.ask(d.cursor, []string{"notes"})
				b.StopTimer()
				used += cpu(b) - before
				if got := len(p.Collections["notes"].Upserts); got != 100 || p.More {
					b.Fatalf("%d rows, more %v", got, p.More)
				}
				d.cursor = p.Cursor
				b.StartTimer()
			}
			b.ReportMetric(used/float64(n), "cpu-ms/op")
			b.ReportMetric(folding/float64(n), "fold-cpu-ms/op")
		})
	}
}

// BenchmarkFirstSync measures rows of a first sync of 50,000 rows, page after page.
func BenchmarkFirstSync(b *testing.B) {
	*benchRows = 50_000
	f, d := crowd(b, ownerRule)
	if _, err := f.NonconcurrentDB().NewQuery("UPDATE notes SET owner = (SELECT id FROM users)").Execute(); err != nil {
		b.Fatal(err)
	}
	d.sync()
	rows, before := 0, cpu(b)
	b.ResetTimer()
	for b.Loop() {
		d.cursor = nil
		_, upserts, _ := d.sync()
		rows += len(upserts)
	}
	b.ReportMetric(float64(rows)/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric((cpu(b)-before)/float64(rows)*1000, "cpu-us/row")
}

// BenchmarkCompare measures a pull that brings nothing but must compare all visible rows, because a record that the rule
// reads has changed: once under a rule whose rows an index finds, once under a membership rule, for which SQLite goes
// through the table.
func BenchmarkCompare(b *testing.B) {
	const indexed, membership = `owner = @request.auth.id && owner.name != "gone"`, `team.members_via_team.user ?= @request.auth.id`
	for name, rule := range map[string]string{"indexed": indexed, "membership": membership} {
		for _, visible := range []int{100, 10_000, 100_000} {
			b.Run(fmt.Sprintf("%s/%d", name, visible), func(b *testing.B) {
				f, d := crowd(b, rule)
				exec := func(text string) {
					b.Helper()
					if _, err := f.NonconcurrentDB().NewQuery(text).Execute(); err != nil {
						b.Fatal(err)
					}
				}
				exec(fmt.Sprintf(`UPDATE notes SET owner = CASE WHEN x.n < %d THEN (SELECT id FROM users) ELSE 'nobody' END,
					team = CASE WHEN x.n < %d THEN '%s' ELSE 'none' END FROM (SELECT id, row_number() OVER (ORDER BY id) - 1 AS n FROM notes) x WHERE x.id = notes.id`,
					visible, visible, id("t7x")))
				exec("ANALYZE")
				d.sync()
				if len(d.rows) != visible {
					b.Fatalf("%d rows are visible", len(d.rows))
				}
				n, used := 0, 0.0
				for b.Loop() {
					b.StopTimer()
					n++
					exec("UPDATE users SET name = 'n" + fmt.Sprint(n) + "'")
					exec("UPDATE members SET id = id")
					if _, err := f.log.Fold(b.Context()); err != nil {
						b.Fatal(err)
					}
					before := cpu(b)
					b.StartTimer()
					p := d.ask(d.cursor, []string{"notes"})
					b.StopTimer()
					used += cpu(b) - before
					if len(p.Collections) != 0 {
						b.Fatalf("rows: %v", len(p.Collections["notes"].Upserts))
					}
					d.cursor = p.Cursor
					b.StartTimer()
				}
				b.ReportMetric(used/float64(n), "cpu-ms/op")
			})
		}
	}
}
