package doctor_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/doctor"
)

func TestDoctor(t *testing.T) {
	production := doctor.Info{Production: true, PublicURL: "https://api.example.com", TrustedProxies: 1}
	for _, test := range []struct {
		name   string
		before func(t *testing.T, s *setup)
		exit   int
		want   []string // regular expressions, each for one line
		not    []string
	}{
		{
			name: "healthy",
			exit: 0,
			want: []string{
				`^settings +ok +2 keys, 0 set, 0 unknown$`, `^mode +info +development, listens on 127.0.0.1:8090`,
				`^data folder +ok +/.*/pb_data, writable$`, `^database +ok +data.db: WAL, integrity ok \(\d+`,
				`^database +ok +auxiliary.db: WAL, integrity ok`, `^migrations +ok +\d+ applied, 0 pending$`,
				`^rules +ok +\d+ collections, none is open`, `^superuser +warn +no admin exists yet  → satchel superuser`,
				`^clock +ok +20`,
			},
			not: []string{"permissions", "fail", "network", "\x1b"},
		},
		{
			name:   "missing folder",
			before: func(_ *testing.T, s *setup) { s.dir = filepath.Join(filepath.Dir(s.dir), "a", "b", "new") },
			want: []string{
				`^data folder +info +/.*/new does not exist yet`, `^database +skip +none yet$`,
				`^migrations +skip +no database yet$`, `^rules +skip`, `^superuser +skip`,
			},
			not: []string{"fail"},
		},
		{
			name: "folder is a file",
			before: func(t *testing.T, s *setup) {
				s.dir = filepath.Join(s.dir, "data.db")
			},
			exit: 3, want: []string{`^data folder +fail +/.* is not a folder`},
		},
		{
			name: "odd path",
			before: func(t *testing.T, s *setup) {
				odd := filepath.Join(filepath.Dir(s.dir), "100% odd? #1 &mode=rwc")
				if err := os.Rename(s.dir, odd); err != nil {
					t.Fatal(err)
				}
				s.dir = odd
			},
			want: []string{`^database +ok +data.db: WAL, integrity ok`, `^migrations +ok`},
		},
		{
			name: "not a database",
			before: func(t *testing.T, s *setup) {
				overwrite(t, s.dir, "data.db", 0, bytes.Repeat([]byte("garbage "), 4096))
			},
			exit: 3,
			want: []string{
				`^database +fail +data.db: file is not a database  → stop the server and restore`,
				`^database +ok +auxiliary.db`, `^migrations +skip +the database cannot be read`, `^rules +skip`, `^superuser +skip`,
			},
		},
		{
			name: "empty file",
			before: func(t *testing.T, s *setup) {
				if err := os.Truncate(filepath.Join(s.dir, "data.db"), 0); err != nil {
					t.Fatal(err)
				}
			},
			exit: 3, want: []string{`^database +fail +data.db: file is not a database`},
		},
		{
			name: "damaged pages",
			before: func(t *testing.T, s *setup) {
				overwrite(t, s.dir, "data.db", 4*4096, bytes.Repeat([]byte{0x5a}, 40*4096))
			},
			exit: 3, want: []string{`^database +fail +data.db.*(damaged|malformed)`},
		},
		{
			name: "cut off",
			before: func(t *testing.T, s *setup) {
				if err := os.Truncate(filepath.Join(s.dir, "data.db"), 10*4096+17); err != nil {
					t.Fatal(err)
				}
			},
			exit: 3, want: []string{`^database +fail +data.db.*(damaged|malformed)`},
		},
		{
			name:   "damaged logs",
			before: func(t *testing.T, s *setup) { overwrite(t, s.dir, "auxiliary.db", 0, []byte("no header")) },
			exit:   3, want: []string{`^database +ok +data.db`, `^database +fail +auxiliary.db: file is not a database`},
		},
		{
			name:   "data lost, logs kept",
			before: func(t *testing.T, s *setup) { remove(t, s.dir, "data.db") },
			exit:   3, want: []string{`^database +fail +data.db is missing beside auxiliary.db`},
		},
		{
			name:   "logs lost",
			before: func(t *testing.T, s *setup) { remove(t, s.dir, "auxiliary.db") },
			want:   []string{`^database +warn +auxiliary.db is missing`},
		},
		{
			name: "log without its index",
			before: func(t *testing.T, s *setup) {
				if err := os.WriteFile(filepath.Join(s.dir, "data.db-wal"), make([]byte, 4152), 0o600); err != nil {
					t.Fatal(err)
				}
			},
			want: []string{`^database +warn +data.db: not checked, its write-ahead log has no index`, `^migrations +skip`},
		},
		{
			name:   "pending migration",
			before: rawDelete("DELETE FROM _migrations WHERE file = (SELECT max(file) FROM _migrations)"),
			want:   []string{`^migrations +info +1 will be applied by the next start, the first is \d+_`},
		},
		{
			name:   "newer database",
			before: execute("INSERT INTO _migrations (file, applied) VALUES ('9999999999_next_release.go', 1)"),
			want:   []string{`^migrations +warn +1 in the database are unknown to this program, the first is 9999999999_next_release.go`},
		},
		{
			name: "open rules",
			before: func(t *testing.T, s *setup) {
				change(t, s.dir, func(app core.App) error {
					c, err := app.FindCollectionByNameOrId("notes")
					if err != nil {
						return err
					}
					c.ListRule, c.CreateRule, c.DeleteRule = new(""), new(""), new("")
					return app.Save(c)
				})
			},
			want: []string{
				`^rules +warn +collection "notes" is world-readable \(listRule empty string\)`,
				`^rules +warn +collection "notes" is world-writable \(createRule, deleteRule empty string\)`,
			},
			not: []string{`"users"`}, // everybody may sign up
		},
		{
			name: "superuser",
			before: func(t *testing.T, s *setup) {
				change(t, s.dir, func(app core.App) error {
					c, err := app.FindCollectionByNameOrId(core.CollectionNameSuperusers)
					if err != nil {
						return err
					}
					r := core.NewRecord(c)
					r.SetEmail("root@example.test")
					r.SetPassword("correct-horse-battery")
					return app.Save(r)
				})
			},
			want: []string{`^superuser +ok +1 exist`},
		},
		{
			name: "clock behind",
			before: func(t *testing.T, s *setup) {
				future := time.Now().Add(time.Hour)
				if err := os.Chtimes(filepath.Join(s.dir, "data.db"), future, future); err != nil {
					t.Fatal(err)
				}
			},
			want: []string{`^clock +warn +files are newer than the clock: data.db by 1h0m0s`},
		},
		{
			name: "open folder",
			before: func(t *testing.T, s *setup) {
				if err := os.Chmod(s.dir, 0o755); err != nil {
					t.Fatal(err)
				}
			},
			want: []string{`^permissions +warn +every user of this machine can look into .*  → chmod 700 /`},
		},
		{
			name: "settings",
			before: func(_ *testing.T, s *setup) {
				s.env = []string{"SATCHEL_TEST_GREETING=hi", "SATCHEL_TEST_GRETING=typo", "SATCHEL_X=1", "SATCHEL_TEST_KEY=hush-hush"}
			},
			exit: 3,
			want: []string{`^settings +fail +SATCHEL_TEST_GRETING: .*  → satchel config check`, `^settings +fail +SATCHEL_X: `},
			not:  []string{"hush-hush", "0 unknown"},
		},
		{
			name: "settings in use",
			before: func(_ *testing.T, s *setup) {
				s.env = []string{"SATCHEL_TEST_GREETING=hi"}
			},
			want: []string{`^settings +ok +2 keys, 1 set, 0 unknown$`},
		},
		{
			name: "development open to the network",
			before: func(_ *testing.T, s *setup) {
				s.info.Addr = func() string { return "0.0.0.0:8090" }
			},
			want: []string{`^network +warn +a development server is reachable by others on 0.0.0.0:8090`},
		},
		{
			name:   "production",
			before: func(_ *testing.T, s *setup) { s.info = production },
			want:   []string{`^mode +ok +production`, `^public url +ok +https://api.example.com$`, `^proxy +ok +1 trusted`},
			not:    []string{"tls/proxy"},
		},
		{
			name: "production without a proxy",
			before: func(_ *testing.T, s *setup) {
				s.info = production
				s.info.TrustedProxies = 0
			},
			want: []string{`^proxy +warn +no proxy is trusted`},
		},
		{
			name: "production in the open",
			before: func(_ *testing.T, s *setup) {
				s.info = doctor.Info{Production: true, PublicURL: "http://user:hunter2@api.example.com", Addr: func() string { return ":8090" }}
			},
			want: []string{`^tls/proxy +warn +:8090 is open to the network`, `^public url +warn +http://user:xxxxx@api.example.com is not https`},
			not:  []string{"hunter2"},
		},
		{
			name:   "production without an address",
			before: func(_ *testing.T, s *setup) { s.info = doctor.Info{Production: true, TrustedProxies: 1} },
			want:   []string{`^public url +warn +not set`},
		},
		{
			name: "production with a wrong address",
			before: func(_ *testing.T, s *setup) {
				s.info = doctor.Info{Production: true, TrustedProxies: 1, PublicURL: "api.example.com"}
			},
			exit: 3, want: []string{`^public url +fail +not an absolute address`},
		},
		{
			name: "checks of extensions",
			before: func(_ *testing.T, s *setup) {
				s.list = []extensions.Extension{{Name: "limits", Checks: []extensions.Check{
					{Name: "rate limits", Offline: true, Run: func(context.Context, *extensions.Host) extensions.Result {
						return extensions.Result{Message: "on, login 10/15m\x1b[31m", Next: ""}
					}},
					{Name: "broken", Offline: true, Run: func(_ context.Context, h *extensions.Host) extensions.Result {
						_, err := h.App.FindCollectionByNameOrId("users") // not open: panics
						return extensions.Result{Level: extensions.Fail, Message: fmt.Sprint("no panic", err)}
					}},
					{Name: "online", Run: func(context.Context, *extensions.Host) extensions.Result {
						return extensions.Result{Message: "must not run"}
					}},
				}}}
			},
			exit: 3,
			want: []string{`^rate limits +ok +on, login 10/15m \[31m$`, `^broken +fail +the check panicked: `},
			not:  []string{"must not run", "\x1b"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := setup{dir: dataFolder(t)}
			if test.before != nil {
				test.before(t, &s)
			}
			parent := filepath.Dir(s.dir)
			before := listing(t, parent)
			got := examine(t, s)
			if after := listing(t, parent); after != before {
				t.Errorf("the folder was changed\nbefore:\n%s\nafter:\n%s", before, after)
			}
			if got.exit != test.exit {
				t.Errorf("exit %d, want %d", got.exit, test.exit)
			}
			lines := strings.Split(got.text, "\n")
			for _, want := range test.want {
				if !matchesAny(regexp.MustCompile(want), lines) {
					t.Errorf("no line matches %s", want)
				}
			}
			for _, not := range test.not {
				if strings.Contains(got.text, not) {
					t.Errorf("the report has %q", not)
				}
			}
			if t.Failed() {
				t.Logf("report:\n%s", got.text)
			}
		})
	}
}

func TestReadOnlyFolder(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may write everywhere")
	}
	dir := dataFolder(t)
	for _, mode := range []os.FileMode{0o500, 0o700} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		if mode == 0o700 {
			break // so that the folder can be removed
		}
		got := examine(t, setup{dir: dir})
		for _, want := range []string{"cannot be written", "data.db: WAL, integrity ok"} {
			if !strings.Contains(got.text, want) {
				t.Errorf("the report lacks %q:\n%s", want, got.text)
			}
		}
		if got.exit != cli.ExitChecks {
			t.Errorf("exit %d", got.exit)
		}
	}
}

func TestJSON(t *testing.T) {
	dir := dataFolder(t)
	overwrite(t, dir, "data.db", 0, []byte("garbage garbage garbage"))
	got := examine(t, setup{dir: dir, args: []string{"--json"}})
	var lines []map[string]any
	if err := json.Unmarshal([]byte(got.text), &lines); err != nil {
		t.Fatalf("decode: %v\n%s", err, got.text)
	}
	if got.exit != cli.ExitChecks {
		t.Errorf("exit %d, want %d", got.exit, cli.ExitChecks)
	}
	found := false
	for _, l := range lines {
		if len(l) != 4 || l["name"] == nil || l["level"] == nil || l["message"] == nil || l["next"] == nil {
			t.Errorf("line %v has not the four members", l)
		}
		found = found || l["name"] == "database" && l["level"] == "fail"
	}
	if !found {
		t.Errorf("no failed line about the database: %s", got.text)
	}
}

// TestMarked holds the promise that PocketBase is not opened for the command.
func TestMarked(t *testing.T) {
	x := doctor.New(nil, doctor.Info{})
	cmd := x.Commands(&extensions.Host{})[0]
	marked := cli.NoDatabase(&cobra.Command{})
	for key := range marked.Annotations {
		if cmd.Annotations[key] == "" {
			t.Errorf("the command lacks %s", key)
		}
	}
}
