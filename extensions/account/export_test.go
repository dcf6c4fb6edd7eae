package account

import (
	"archive/zip"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

// export makes an export of Ada's account and returns it when it is ready.
func (f *fixture) export(t testing.TB, token string) Export {
	t.Helper()
	x := answer[Export](t, f.call(t, token, "account.export"))
	await(t, "the export", func() bool {
		s := answer[Status](t, f.call(t, token, "account.status"))
		i := slices.IndexFunc(s.Exports, func(e Export) bool { return e.ID == x.ID })
		if i < 0 || s.Exports[i].State == "failed" {
			t.Fatalf("%+v", s)
		}
		x = s.Exports[i]
		return x.State == "ready"
	})
	return x
}

func (f *fixture) download(t testing.TB, token string, x Export, header map[string]string) apptest.Response {
	t.Helper()
	return f.Do(t, apptest.Request{Path: x.URL, Token: token, Header: header})
}

// contents reads an archive.
func contents(t testing.TB, archive []byte) map[string]string {
	t.Helper()
	r, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, file := range r.File {
		in, err := file.Open()
		if err != nil {
			t.Fatal(err)
		}
		if _, twice := out[file.Name]; twice {
			t.Errorf("%s is in the archive twice", file.Name)
		}
		out[file.Name] = string(readAll(t, in))
		_ = in.Close()
	}
	return out
}

func TestExport(t *testing.T) {
	f := start(t, func(_ *Config, d *Deps) {
		d.Sections = []Section{{Name: "devices", Export: func(_ context.Context, _ core.App, account *core.Record, w io.Writer) error {
			return json.NewEncoder(w).Encode([]string{"phone of " + account.Id})
		}}, {Name: "audit", Export: audit.ExportAccount}}
		d.Map = Map{"posts": {Delete: Blank}}
	})
	f.world(t)
	token := f.signIn(t, "ada@example.test")
	x := f.export(t, token)
	r := f.download(t, token, x, nil)
	if r.Status != http.StatusOK || r.Header.Get("Content-Type") != "application/zip" || r.Header.Get("Cache-Control") != "no-store" ||
		!strings.HasPrefix(r.Header.Get("Content-Disposition"), `attachment; filename="account-2`) || int64(len(r.Body)) != x.Size {
		t.Fatalf("%d %v, %d bytes of %d", r.Status, r.Header, len(r.Body), x.Size)
	}
	files := contents(t, r.Body)
	for name, want := range map[string]int{"notes": 3, "attachments": 3, "labels": 3, "comments": 6, "posts": 1, "rooms": 2} {
		var records []map[string]any
		if err := json.Unmarshal([]byte(files["data/"+name+".json"]), &records); err != nil || len(records) != want {
			t.Errorf("%s: %d records (%v): %s", name, len(records), err, files["data/"+name+".json"])
		}
		if lines := strings.Count(files["data/"+name+".json"], "\n"); lines != want+2 {
			t.Errorf("%s: %d lines", name, lines)
		}
	}
	copied := map[string]int{}
	for name, content := range files {
		if strings.HasPrefix(name, "files/") {
			copied[content]++
		}
		for _, foreign := range []string{"bob-", "bob@", "guest-on-ada", "tokenKey", "ada-secret", "pin-of", f.ada.TokenKey(), f.ada.GetString("password:hash")} {
			if strings.Contains(content, foreign) {
				t.Errorf("%q is in %s: %s", foreign, name, content)
			}
		}
	}
	if copied["ada-content"] != 3 || copied["ada-first"] != 3 || copied["ada-second"] != 3 || len(copied) != 3 {
		t.Errorf("files: %v", copied)
	}
	if !strings.Contains(files["account.json"], `"email":"ada@example.test"`) || !strings.Contains(files["devices.json"], "phone of "+f.ada.Id) {
		t.Errorf("%s %s", files["account.json"], files["devices.json"])
	}
	var m struct {
		Account     struct{ ID string }
		Collections []struct {
			Collection                   string
			Records, Files, MissingFiles int64
			Fields                       map[string]string
		}
	}
	if err := json.Unmarshal([]byte(files["manifest.json"]), &m); err != nil || len(m.Collections) != 6 || m.Account.ID != f.ada.Id {
		t.Fatalf("%s", files["manifest.json"])
	}
	for _, c := range m.Collections {
		if c.Collection == "attachments" && (c.Records != 3 || c.Files != 6 || c.MissingFiles != 0 || c.Fields["note"] != "relation") {
			t.Errorf("%+v", c)
		}
	}
	if !strings.Contains(files["audit.json"], `"action":"account.export","outcome":"success","byTheAccount":true,"address":"127.0.0.0/24"}`) || !json.Valid([]byte(files["audit.json"])) {
		t.Errorf("audit: %s", files["audit.json"])
	}
	if !strings.HasPrefix(files["README.txt"], "This archive") {
		t.Error("no README")
	}

	part := f.download(t, token, x, map[string]string{"Range": "bytes=2-5"})
	if part.Status != http.StatusPartialContent || !bytes.Equal(part.Body, r.Body[2:6]) {
		t.Errorf("range: %d %q", part.Status, part.Body)
	}
	stored, err := os.ReadFile(filepath.Join(f.DataDir(), "account_exports", x.ID))
	if err != nil || bytes.Contains(stored, []byte("account.json")) {
		t.Errorf("the file lies open (%v)", err)
	}
	if info, err := os.Stat(filepath.Join(f.DataDir(), "account_exports", x.ID)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info.Mode(), err)
	}
}

func TestDownloadIsForTheOwner(t *testing.T) {
	f := start(t, nil)
	ada := f.signIn(t, "ada@example.test")
	x := f.export(t, ada)
	bob := f.signIn(t, "bob@example.test")
	for name, c := range map[string]struct {
		token, url string
		status     int
	}{
		"another user": {bob, x.URL, 404}, "guest": {"", x.URL, 401}, "no such export": {ada, "/api/v1/account/exports/none", 404},
		"a path": {ada, "/api/v1/account/exports/..%2f..%2fdata.db", 404},
	} {
		if r := f.Do(t, apptest.Request{Path: c.url, Token: c.token}); r.Status != c.status {
			t.Errorf("%s: %d %s", name, r.Status, r.Body)
		}
	}
	if s := answer[Status](t, f.call(t, bob, "account.status")); len(s.Exports) != 0 {
		t.Errorf("Bob sees %+v", s)
	}
	if _, err := f.NonconcurrentDB().Update("sessions_logins", dbx.Params{"auth_at": 0}, nil).Execute(); err != nil {
		t.Fatal(err)
	}
	if r := f.download(t, ada, x, nil); r.Code() != "sessions.recent_auth_required" {
		t.Errorf("an old sign-in: %d %s", r.Status, r.Body)
	}

	// It expires, and what the sweep finds is deleted.
	f.accounts.now = func() time.Time { return time.Now().Add(8 * 24 * time.Hour) }
	ada = f.signIn(t, "ada@example.test")
	if r := f.download(t, ada, x, nil); r.Status != http.StatusNotFound {
		t.Errorf("expired: %d", r.Status)
	}
	stray := f.accounts.file("stray")
	if err := os.WriteFile(stray, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := f.accounts.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(f.accounts.folder()); err != nil || len(left) != 0 || f.count(t, exportsTable) != 0 {
		t.Errorf("%v %v", left, err)
	}
}

func TestExportLimits(t *testing.T) {
	hold := make(chan struct{})
	f := start(t, func(c *Config, d *Deps) {
		c.ExportsPerDay = 2
		d.Sections = []Section{{Name: "slow", Export: func(_ context.Context, _ core.App, _ *core.Record, w io.Writer) error {
			<-hold
			_, err := io.WriteString(w, "[]")
			return err
		}}}
	})
	token := f.signIn(t, "ada@example.test")
	first := answer[Export](t, f.call(t, token, "account.export"))
	if second := answer[Export](t, f.call(t, token, "account.export")); second.ID != first.ID || second.State != "running" {
		t.Errorf("two exports at a time: %+v", second)
	}
	if r := f.download(t, token, first, nil); r.Status != http.StatusNotFound {
		t.Errorf("before it is ready: %d", r.Status)
	}
	close(hold)
	await(t, "the first export", func() bool { return f.count(t, exportsTable+" WHERE ready_at > 0") == 1 })
	await(t, "the end of the run", func() bool { return f.count(t, "jobs_history WHERE outcome = 'succeeded'") == 1 })
	f.export(t, token)
	r := f.call(t, token, "account.export")
	if r.Status != http.StatusTooManyRequests || r.Code() != ErrExportLimit.Name || r.Header.Get("Retry-After") == "" {
		t.Errorf("%d %s", r.Status, r.Body)
	}
	f.accounts.cfg.ExportSize = 100
	f.accounts.now = func() time.Time { return time.Now().Add(25 * time.Hour) }
	x := answer[Export](t, f.call(t, f.signIn(t, "ada@example.test"), "account.export"))
	await(t, "the failure", func() bool { return f.count(t, "jobs_queue WHERE state = 3") == 1 })
	if s := answer[Status](t, f.call(t, token, "account.status")); s.Exports[0].ID != x.ID || s.Exports[0].State != "failed" {
		t.Errorf("%+v", s)
	}
	if left, err := os.ReadDir(f.accounts.folder()); err != nil || len(left) != 2 {
		t.Errorf("the failed export left %v (%v)", left, err)
	}
}

// A deleted account takes its exports along.
func TestDeleteTakesExports(t *testing.T) {
	f := start(t, atOnce)
	f.export(t, f.signIn(t, "ada@example.test"))
	f.deleteNow(t)
	if left, err := os.ReadDir(f.accounts.folder()); err != nil || len(left) != 0 || f.count(t, exportsTable) != 0 {
		t.Errorf("%v %v", left, err)
	}
}

// The memory of an export does not grow with the account.
func TestExportMemory(t *testing.T) {
	f := start(t, nil)
	n := 100_000
	if raceEnabled {
		n = 5000
	}
	f.insert(t, "notes", n, func(i int) dbx.Params {
		return dbx.Params{"id": fmt.Sprintf("note%011d", i), "owner": f.ada.Id, "title": strings.Repeat("x", 200), "file": "[]"}
	})
	runtime.GC()
	var before, m runtime.MemStats
	runtime.ReadMemStats(&before)
	var most uint64
	written := &counter{}
	begun := time.Now()
	err := f.accounts.write(t.Context(), written, f.ada, func(done int64) {
		if done%1000 == 0 {
			runtime.ReadMemStats(&m)
			most = max(most, m.HeapAlloc)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	grown := float64(int64(most)-int64(before.HeapAlloc)) / (1 << 20)
	t.Logf("%d records, %d bytes of zip in %s, heap grew by %.1f MiB at most", n, written.n.Load(), time.Since(begun).Round(time.Millisecond), grown)
	if grown > 64 {
		t.Errorf("the heap grew by %.1f MiB", grown)
	}
}

type counter struct{ n atomic.Int64 }

func (c *counter) Write(p []byte) (int, error) { c.n.Add(int64(len(p))); return len(p), nil }
