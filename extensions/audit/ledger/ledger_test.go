package ledger_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/audit/ledger"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

// A trigger stops whoever means no harm, and lets pass what retention and forgetting do.
func TestTriggers(t *testing.T) {
	app, l, _ := open(t)
	fill(t, l, app, 5)
	forgotten := "record = '', salt = x'', forgotten = randomblob(32)"
	for _, s := range []string{
		"UPDATE audit_chain SET action = 'x'", "UPDATE OR IGNORE audit_chain SET id = 99 WHERE id = 5", "DELETE FROM audit_chain", "DELETE FROM audit_chain WHERE id = 1",
		"REPLACE INTO audit_chain SELECT * FROM audit_chain WHERE id = 5", "INSERT INTO audit_chain SELECT -1, at, action, outcome, actor, subject, act_as, session, request, address, details, mac FROM audit_chain WHERE id = 1",
		"UPDATE audit_parties SET record = 'x'", "UPDATE audit_parties SET " + forgotten + ", kind = 'guest'", "UPDATE audit_parties SET record = '', salt = x''",
		"DELETE FROM audit_parties", "REPLACE INTO audit_parties SELECT * FROM audit_parties",
		"UPDATE audit_checkpoints SET floor = 3", "DELETE FROM audit_checkpoints", "REPLACE INTO audit_checkpoints SELECT * FROM audit_checkpoints",
	} {
		if _, err := app.NonconcurrentDB().NewQuery(s).Execute(); err == nil || !strings.Contains(err.Error(), "audit_") {
			t.Errorf("%s: %v", s, err)
		}
	}
	intact(t, l, app, 5)
	// Behind a floor, exactly what is below it may go.
	run := func(s string) error { _, err := app.NonconcurrentDB().NewQuery(s).Execute(); return err }
	if err := run("INSERT INTO audit_checkpoints SELECT 2, 'floor', 3, mac, 3, at, mac FROM audit_chain WHERE id = 3"); err != nil {
		t.Fatal(err)
	}
	if err := run("DELETE FROM audit_chain WHERE id = 4"); err == nil {
		t.Error("a row above the floor was deleted")
	}
	if err := run("DELETE FROM audit_chain WHERE id <= 3"); err != nil {
		t.Error(err)
	}
	found(t, verify(t, l, app), ledger.ProblemCheckpoint, 3)
	if _, err := l.Expire(t.Context(), app, time.Now().Add(time.Hour)); err == nil {
		t.Error("a forged floor was built on")
	}
}

func TestExpire(t *testing.T) {
	app, l, _ := open(t)
	fill(t, l, app, 1100)
	p := ledger.Party{Kind: ledger.User, Collection: "users", ID: "recent"}
	if err := l.Append(app, ledger.Entry{Action: "a.b", Actor: p}); err != nil {
		t.Fatal(err)
	}
	if n, err := l.Expire(t.Context(), app, time.Now().Add(-time.Hour)); n != 0 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	intact(t, l, app, 1101)
	n, err := l.Expire(t.Context(), app, time.Now().Add(time.Hour))
	if n != 1100 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	r := verify(t, l, app)
	if !r.OK || r.First != 1101 || r.Entries != 2 || r.Removed != 1100 { // the newest of before, and the entry about it
		t.Fatalf("%+v", r)
	}
	var parties, checkpoints int
	if err := app.DB().NewQuery("SELECT (SELECT count(*) FROM audit_parties), (SELECT count(*) FROM audit_checkpoints)").Row(&parties, &checkpoints); err != nil {
		t.Fatal(err)
	}
	if parties != 2 || checkpoints != 2 {
		t.Errorf("%d parties, %d checkpoints", parties, checkpoints)
	}
	fill(t, l, app, 5)
	intact(t, l, app, 7)
	force(t, app, "DELETE FROM audit_chain WHERE id = 1101")
	found(t, verify(t, l, app), ledger.ProblemMissing, 1101)
	if _, err := l.Expire(t.Context(), app, time.Now().Add(time.Hour)); err == nil {
		t.Error("a floor was put over a gap")
	}
}

// Retention passes by while somebody verifies.
func TestVerifyWhileExpiring(t *testing.T) {
	app, l, _ := open(t)
	fill(t, l, app, 1200)
	known := ledger.Link{ID: 1, MAC: make([]byte, 32)} // as if the floor had moved since the first read
	if _, err := l.Expire(t.Context(), app, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if r, err := l.Verify(t.Context(), app, &known); err != nil || !r.OK {
		t.Fatalf("%+v, %v", r, err)
	}
	fill(t, l, app, 1200)
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := l.Expire(context.Background(), app, time.Now().Add(time.Hour)); err != nil {
			t.Error(err)
		}
	})
	for range 5 {
		if r := verify(t, l, app); !r.OK {
			t.Errorf("%+v", r.Problems)
		}
	}
	wg.Wait()
}

func TestForget(t *testing.T) {
	app, l, file := open(t)
	ann := ledger.Party{Kind: ledger.User, Collection: "users", ID: "ann0000000ann"}
	root := ledger.Party{Kind: ledger.Superuser, Collection: "_superusers", ID: "root"}
	for _, e := range []ledger.Entry{
		{Action: "a.b", Actor: ann, Subject: root}, {Action: "a.b", Actor: root, Subject: ann}, {Action: "a.b", Actor: root, ActAs: ann},
	} {
		if err := l.Append(app, e); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Forget(app, "other", ann.ID); err != nil {
		t.Fatal(err)
	}
	intact(t, l, app, 3)
	if err := l.Forget(app, "users", ann.ID); err != nil {
		t.Fatal(err)
	}
	intact(t, l, app, 4)
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil || strings.Contains(string(text), ann.ID) {
		t.Errorf("%s, %v", text, err)
	}
	for _, table := range []string{"audit_chain", "audit_parties", "audit_checkpoints", "audit_entries"} {
		rows := []map[string]any{}
		list, err := app.DB().NewQuery("SELECT * FROM " + table).Rows()
		if err != nil {
			t.Fatal(err)
		}
		columns, _ := list.Columns()
		for list.Next() {
			values := make([]any, len(columns))
			for i := range values {
				values[i] = new(any)
			}
			if err := list.Scan(values...); err != nil {
				t.Fatal(err)
			}
			row := map[string]any{}
			for i, c := range columns {
				row[c] = fmt.Sprint(*values[i].(*any))
			}
			rows = append(rows, row)
		}
		_ = list.Close()
		if text := fmt.Sprint(rows); len(rows) == 0 || strings.Contains(text, ann.ID) {
			t.Errorf("%s still knows: %s", table, text)
		}
	}
	// The entries of one account are still those of one, and the next account with this id is another.
	var same int
	err = app.DB().NewQuery("SELECT count(*) FROM audit_chain a, audit_chain b, audit_chain c WHERE a.id = 1 AND b.id = 2 AND c.id = 3 AND a.actor = b.subject AND b.subject = c.act_as").Row(&same)
	if err != nil || same != 1 {
		t.Errorf("%d, %v", same, err)
	}
	if err := l.Append(app, ledger.Entry{Action: "a.b", Actor: ann}); err != nil {
		t.Fatal(err)
	}
	intact(t, l, app, 5)
	if err := l.Forget(app, "users", ann.ID); err != nil { // twice the same empty record
		t.Fatal(err)
	}
	intact(t, l, app, 6)
	var parties int
	if err := app.DB().NewQuery("SELECT count(*) FROM audit_parties WHERE kind = 'user'").Row(&parties); err != nil || parties != 2 {
		t.Errorf("%d, %v", parties, err)
	}
}

// A transaction that forgets and fails has forgotten nothing.
func TestForgetRollsBack(t *testing.T) {
	app, l, _ := open(t)
	fill(t, l, app, 5)
	err := app.RunInTransaction(func(tx core.App) error {
		if err := l.Forget(tx, "users", "u1"); err != nil {
			return err
		}
		return os.ErrInvalid
	})
	var n int
	if rowErr := app.DB().NewQuery("SELECT count(*) FROM audit_parties WHERE record = 'u1'").Row(&n); err == nil || rowErr != nil || n != 1 {
		t.Errorf("%v, %v, %d", err, rowErr, n)
	}
	intact(t, l, app, 5)
}

const helper = "SATCHEL_AUDIT_TEST_WRITER"

// second opens the application in a folder, with the store as the program has it.
func second(t testing.TB, dir string) (*core.BaseApp, *ledger.Ledger) {
	t.Helper()
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: dir, DBConnect: db.Connect})
	if err := extensions.Install(&extensions.Host{App: app, Version: "test", Logger: slog.New(slog.DiscardHandler)}, []extensions.Extension{feature(), store.New(db)}); err != nil {
		t.Fatal(err)
	}
	if err := app.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	l := ledger.New(vault())
	l.Connect(app, func() string { return dir + ".head" }, func(err error) { fmt.Fprintln(os.Stderr, err) })
	return app, l
}

// TestWriter is the other process of the next tests: it writes entries until it is killed, and says which are committed.
func TestWriter(t *testing.T) {
	dir := os.Getenv(helper)
	if dir == "" {
		t.Skip("only as another process")
	}
	app, l := second(t, dir)
	for i := 0; ; i++ {
		if err := l.Append(app, ledger.Entry{Action: "a.b", Actor: ledger.Party{Kind: ledger.User, ID: fmt.Sprint(os.Getpid(), i%20)}}); err != nil {
			fmt.Println("error", err)
			return
		}
		fmt.Println("committed", i)
	}
}

func writer(t *testing.T, dir string) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^TestWriter$", "-test.timeout=120s")
	cmd.Env = append(os.Environ(), helper+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return cmd, bufio.NewScanner(out)
}

// Two processes and this one write to one database; two are killed in the middle. The chain is whole, holds every entry
// that was acknowledged, and the file agrees.
func TestProcesses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	app, l := second(t, dir)
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		_ = app.ClearBootstrap()
	})
	if err := l.Append(app, ledger.Entry{Action: "a.b"}); err != nil {
		t.Fatal(err)
	}
	acknowledged := int64(1)
	var wg sync.WaitGroup
	var mu sync.Mutex
	count := func(n int64) {
		mu.Lock()
		defer mu.Unlock()
		acknowledged += n
	}
	for range 2 {
		cmd, out := writer(t, dir)
		wg.Go(func() {
			n := int64(0)
			for out.Scan() {
				if strings.HasPrefix(out.Text(), "error") {
					t.Error(out.Text())
				}
				if strings.HasPrefix(out.Text(), "committed") {
					if n++; n == 60 {
						_ = cmd.Process.Kill()
					}
				}
			}
			count(n)
		})
	}
	wg.Go(func() {
		for range 60 {
			if err := l.Append(app, ledger.Entry{Action: "a.b", Actor: ledger.Party{Kind: ledger.User, ID: "here"}}); err != nil {
				t.Error(err)
				return
			}
			count(1)
		}
	})
	wg.Wait()
	r := verify(t, l, app)
	if !r.OK || r.Entries < acknowledged || r.Entries > acknowledged+2 {
		t.Errorf("%d acknowledged: %+v", acknowledged, r)
	}
	if err := l.Flush(); err != nil {
		t.Fatal(err)
	}
	if r := verify(t, l, app); !r.OK || r.File != "checked" {
		t.Errorf("%+v", r)
	}
}
