//go:build !windows

package idempotency

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

// Environment of the child: its data folder, the address of the provider, and where it kills itself.
const (
	childDir      = "IDEMPOTENCY_TEST_DIR"
	childProvider = "IDEMPOTENCY_TEST_PROVIDER"
	childDeath    = "IDEMPOTENCY_TEST_DEATH"
)

// dieAt ends the process as kill -9 does, at the place that the environment names.
func dieAt(place string) {
	if os.Getenv(childDeath) == place {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {} // until the signal arrives
	}
}

// TestChild is the server of the other tests in this file, in a process of its own. It ends with its standard input.
func TestChild(t *testing.T) {
	dir := os.Getenv(childDir)
	if dir == "" {
		t.Skip("it is a part of others")
	}
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{Quiet: []string{Table}})
	if err != nil {
		t.Fatal(err)
	}
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: dir, DBConnect: db.Connect})
	k := newKeeper(Config{Retention: 24 * time.Hour, MaxKeys: 1000, Lease: 2 * time.Second}, Deps{Route: phasedRoutes, Healthy: db.Healthy, Unavailable: store.IsUnavailable})
	lab := extensions.Extension{Name: "lab", Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
		g.POST("/order", func(e *core.RequestEvent) error { return order(e, os.Getenv(childProvider), dieAt) })
	}}
	h := &extensions.Host{App: app, Version: "test", Logger: slog.New(slog.DiscardHandler)}
	if err := extensions.Install(h, []extensions.Extension{api.New(settings.Defaults[api.Config]()), store.New(db), k.extension(), lab}); err != nil {
		t.Fatal(err)
	}
	app.OnRecordCreateExecute("notes").BindFunc(func(e *core.RecordEvent) error {
		dieAt("before the write")
		if err := e.Next(); err != nil {
			return err
		}
		dieAt("before the commit")
		return nil
	})
	app.OnRecordAfterCreateSuccess("notes").BindFunc(func(e *core.RecordEvent) error {
		dieAt("before the answer")
		return e.Next()
	})
	if err := app.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	if err := app.RunAllMigrations(); err != nil {
		t.Fatal(err)
	}
	fmt.Println("\nserving " + apptest.Serve(t, app))
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// child is a running server.
type child struct {
	url   string
	cmd   *exec.Cmd
	stdin io.Closer
}

func startChild(t *testing.T, dir, provider, death string) *child {
	t.Helper()
	c := &child{cmd: exec.Command(os.Args[0], "-test.run=^TestChild$", "-test.timeout=5m")}
	c.cmd.Env = append(os.Environ(), childDir+"="+dir, childProvider+"="+provider, childDeath+"="+death)
	stdin, err := c.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.stdin = stdin
	stdout, err := c.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		_ = c.cmd.Wait()
	})
	var said strings.Builder
	for lines := bufio.NewScanner(stdout); lines.Scan(); {
		if url, ok := strings.CutPrefix(lines.Text(), "serving "); ok {
			c.url = url
			return c
		}
		said.WriteString(lines.Text() + "\n")
	}
	t.Fatalf("the child does not serve: %s", said.String())
	return nil
}

// died waits for the end that the child made of itself.
func (c *child) died(t *testing.T) {
	t.Helper()
	_ = c.cmd.Wait()
	if state, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !state.Signaled() || state.Signal() != syscall.SIGKILL {
		t.Fatalf("the child ended otherwise: %v", c.cmd.ProcessState)
	}
}

// answer is what came back; the status is 0 if nothing did.
type answer struct {
	status   int
	replayed string
	body     string
}

func (c *child) post(t *testing.T, token, path, key, body string) answer {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.url+path, io.NopCloser(strings.NewReader(body))) // not repeated by the client
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", token)
	req.Header.Set(Header, key)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return answer{}
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return answer{}
	}
	return answer{resp.StatusCode, resp.Header.Get(Replayed), string(text)}
}

// folder is a data folder with notes and ada, for children.
func folder(t *testing.T) (dir, token string) {
	t.Helper()
	f := start(t, setup{deps: Deps{Route: phasedRoutes}})
	dir = t.TempDir()
	if _, err := f.NonconcurrentDB().NewQuery("VACUUM INTO {:file}").Bind(dbx.Params{"file": dir + "/data.db"}).Execute(); err != nil {
		t.Fatal(err)
	}
	return dir, f.ada
}

// count asks the files of a data folder that nobody has open.
func countIn(t *testing.T, dir, title string) int {
	t.Helper()
	db, err := core.DefaultDBConnect(dir + "/data.db")
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var n int
	if err := db.NewQuery("SELECT count(*) FROM notes WHERE title = {:title}").Bind(dbx.Params{"title": title}).Row(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// The process is killed before and after the commit. The repeat finds nothing or the answer, and there is one note.
func TestKill(t *testing.T) {
	dir, token := folder(t)
	for _, place := range []string{"before the write", "before the commit", "before the answer"} {
		t.Run(place, func(t *testing.T) {
			key, body := newKey(), `{"title":"`+place+`"}`
			c := startChild(t, dir, "", place)
			if got := c.post(t, token, notesPath, key, body); got.status != 0 {
				t.Fatalf("the request was answered: %+v", got)
			}
			c.died(t)
			c = startChild(t, dir, "", "")
			got := c.post(t, token, notesPath, key, body)
			want := ""
			if place == "before the answer" {
				want = "true"
			}
			if got.status != http.StatusOK || got.replayed != want {
				t.Errorf("the repeat: %+v", got)
			}
			again := c.post(t, token, notesPath, key, body)
			if again.replayed != "true" || again.body != got.body || again.status != got.status {
				t.Errorf("the second repeat: %+v, first %+v", again, got)
			}
			_ = c.stdin.Close()
			_ = c.cmd.Wait()
			if n := countIn(t, dir, place); n != 1 {
				t.Errorf("%d notes", n)
			}
		})
	}
}

// The process is killed at every place of an operation. The next attempts, after the lease, finish it: one charge.
func TestKillInPhases(t *testing.T) {
	for _, place := range places {
		t.Run(place, func(t *testing.T) {
			t.Parallel()
			dir, token := folder(t)
			p := newProvider(t)
			key := newKey()
			c := startChild(t, dir, p.URL, place)
			if got := c.post(t, token, orderPath, key, ""); got.status != 0 {
				t.Fatalf("the request was answered: %+v", got)
			}
			c.died(t)
			c = startChild(t, dir, p.URL, "")
			var got answer
			for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				if got = c.post(t, token, orderPath, key, ""); got.status != http.StatusConflict {
					break
				}
			}
			if got.status != http.StatusCreated {
				t.Fatalf("the repeat: %+v", got)
			}
			if again := c.post(t, token, orderPath, key, ""); again.replayed != "true" || again.body != got.body {
				t.Errorf("the second repeat: %+v, first %+v", again, got)
			}
			_ = c.stdin.Close()
			_ = c.cmd.Wait()
			charges, calls := p.effects("/charge")
			pushes, _ := p.effects("/push")
			if place == "after the charge" && calls != 2 {
				t.Errorf("%d calls: the provider was not asked again for the charge whose answer got lost", calls)
			}
			if charges != 1 || pushes != 1 || countIn(t, dir, "reserved") != 1 || countIn(t, dir, "ordered") != 1 {
				t.Errorf("%d charges, %d pushes, %d reservations, %d orders", charges, pushes, countIn(t, dir, "reserved"), countIn(t, dir, "ordered"))
			}
		})
	}
}
