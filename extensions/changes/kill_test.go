//go:build unix

package changes

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

const killVariable = "CHANGES_TEST_KILL"

// TestKill ends a writing process as kill -9 does: whatever was written has its entry, and the reverse.
func TestKill(t *testing.T) {
	if dir := os.Getenv(killVariable); dir != "" {
		writeUntilKilled(t, dir)
		return
	}
	for _, after := range []int{1, 40, 150} {
		f := start(t, defaults())
		f.quiet()
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), killVariable+"="+f.DataDir())
		out, err := cmd.StdoutPipe()
		f.must(err)
		f.must(cmd.Start())
		acknowledged := map[string]int{}
		for lines := bufio.NewScanner(out); len(acknowledged) < after && lines.Scan(); {
			var id string
			var n int
			if _, err := fmt.Sscanf(lines.Text(), "wrote %s %d", &id, &n); err != nil {
				t.Fatalf("the child says %q", lines.Text())
			}
			acknowledged[id] = n
		}
		f.must(cmd.Process.Kill())
		_ = cmd.Wait()

		// Each record says in its title how often it was updated.
		var notes []struct{ ID, Title string }
		f.must(f.NonconcurrentDB().NewQuery("SELECT id, title FROM notes").All(&notes))
		var entries []struct {
			Rec                       string
			Creates, Updates, Deletes int
		}
		f.must(f.NonconcurrentDB().NewQuery(`SELECT rec, sum(op = 1) AS creates, sum(op = 2) AS updates, sum(op = 3) AS deletes
			FROM changes_log WHERE op <= 3 AND c = (SELECT c FROM changes_collections WHERE name = 'notes') GROUP BY rec`).All(&entries))
		titles := map[string]string{}
		for _, n := range notes {
			titles[n.ID] = n.Title
		}
		there := 0
		for _, e := range entries {
			title, ok := titles[e.Rec]
			if e.Creates != 1 || ok == (e.Deletes == 1) || ok && title != strconv.Itoa(e.Updates) {
				t.Errorf("record %q (%v): %+v", title, ok, e)
			}
			if ok {
				there++
			}
			if e.Updates < acknowledged[e.Rec] {
				t.Errorf("%d updates were acknowledged: %+v", acknowledged[e.Rec], e)
			}
			delete(acknowledged, e.Rec)
		}
		if there != len(notes) || len(acknowledged) > 0 {
			t.Errorf("%d of %d records have entries; acknowledged and lost: %v", there, len(notes), acknowledged)
		}
		f.sound("notes")
	}
}

func writeUntilKilled(t *testing.T, dir string) {
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{Quiet: Tables()})
	if err != nil {
		t.Fatal(err)
	}
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: dir, DBConnect: db.Connect})
	l := New(defaults(), db)
	f := &fixture{App: &apptest.App{App: app}, Log: l, t: t}
	f.must(l.Extension().Bind(hostOf(app)))
	f.must(app.Bootstrap())
	f.must(l.start(t.Context(), nil))
	notes, err := app.FindCollectionByNameOrId("notes")
	f.must(err)
	var all sync.WaitGroup
	var line sync.Mutex
	for w := range 4 {
		all.Go(func() {
			for i := 0; ; i++ {
				r := core.NewRecord(notes)
				r.Set("title", "0")
				for n := range 4 {
					r.Set("title", strconv.Itoa(n))
					if err := app.Save(r); err != nil {
						t.Error(err)
						return
					}
					line.Lock()
					_, _ = fmt.Fprintf(os.Stdout, "wrote %s %d\n", r.Id, n)
					line.Unlock()
					if n == 1 { // folds and purges are killed too
						if _, err := l.Fold(t.Context()); err != nil && !strings.Contains(err.Error(), "closed") {
							t.Error(err)
						}
					}
				}
				if (i+w)%3 == 0 {
					if err := app.Delete(r); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	all.Wait()
}
