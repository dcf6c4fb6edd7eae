package idempotency

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

func TestReplay(t *testing.T) {
	f := start(t, setup{})
	key := newKey()
	first := f.send(t, http.MethodPost, notesPath, key, map[string]any{"title": "one"})
	status(t, first, http.StatusOK)
	kept(t, first, f.send(t, http.MethodPost, notesPath, key, map[string]any{"title": "one"}))
	// The path below /api is the same route, and a bare key the same key.
	kept(t, first, f.Do(t, apptest.Request{
		Method: http.MethodPost, Path: "/api/collections/notes/records", Token: f.ada, Header: map[string]string{Header: key}, Body: map[string]any{"title": "one"},
	}))
	if n := f.count(t, "one"); n != 1 || f.created.Load() != 1 {
		t.Errorf("%d notes, %d hooks after the commit", n, f.created.Load())
	}

	// Another caller with the key gets an answer of its own, an admin too.
	other := f.sendAs(t, f.ben, http.MethodPost, notesPath, key, map[string]any{"title": "one"})
	status(t, other, http.StatusOK)
	_, root := f.Superuser(t)
	admin := f.sendAs(t, root, http.MethodPost, notesPath, key, map[string]any{"title": "one"})
	status(t, admin, http.StatusOK)
	if other.Header.Get(Replayed)+admin.Header.Get(Replayed) != "" || f.count(t, "one") != 3 {
		t.Errorf("an answer of ada went to somebody else")
	}

	id, _ := first.JSON(t)["id"].(string)
	key = newKey()
	changed := f.send(t, http.MethodPatch, notesPath+"/"+id, key, map[string]any{"title": "two"})
	status(t, changed, http.StatusOK)
	kept(t, changed, f.send(t, http.MethodPatch, notesPath+"/"+id, key, map[string]any{"title": "two"}))
	key = newKey()
	gone := f.send(t, http.MethodDelete, notesPath+"/"+id, key, nil)
	status(t, gone, http.StatusNoContent)
	kept(t, gone, f.send(t, http.MethodDelete, notesPath+"/"+id, key, nil))
	status(t, f.send(t, http.MethodDelete, notesPath+"/"+id, newKey(), nil), http.StatusNotFound)

	key = newKey()
	batch := f.send(t, http.MethodPost, "/api/v1/batch", key, batchOf("b", "b"))
	status(t, batch, http.StatusOK)
	kept(t, batch, f.send(t, http.MethodPost, "/api/batch", key, batchOf("b", "b")))
	if n := f.count(t, "b"); n != 2 {
		t.Errorf("%d notes of the batch", n)
	}
	if f.keeper.replays.Load() != 5 || int(f.keeper.live.Load()) != f.rows(t) {
		t.Errorf("%d replays, %d live of %d", f.keeper.replays.Load(), f.keeper.live.Load(), f.rows(t))
	}
}

func TestUploads(t *testing.T) {
	f := start(t, setup{})
	key := newKey()
	first := f.upload(t, key, map[string]string{"title": "file", "owner": ""}, "hello")
	status(t, first, http.StatusOK)
	kept(t, first, f.upload(t, key, map[string]string{"owner": "", "title": "file"}, "hello"))
	code(t, f.upload(t, key, map[string]string{"title": "file", "owner": ""}, "hallo"), ErrKeyReused)
	code(t, f.upload(t, key, map[string]string{"title": "file", "owner": "x"}, "hello"), ErrKeyReused)
	if n := f.count(t, "file"); n != 1 {
		t.Errorf("%d notes", n)
	}
	status(t, f.upload(t, newKey(), map[string]string{"title": "large"}, long(maxBody-2000)), http.StatusOK)
}

// A body that is too long is refused when its length is told, and when it is not.
func TestLongBody(t *testing.T) {
	f := start(t, setup{})
	for _, length := range []string{"Content-Length: 9000000\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n810000\r\n"} {
		for _, contentType := range []string{"application/json", "multipart/form-data; boundary=x"} {
			conn, err := net.Dial("tcp", strings.TrimPrefix(f.URL, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_, err = fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\nIdempotency-Key: %s\r\nContent-Type: %s\r\n%s",
				notesPath, f.ada, newKey(), contentType, length)
			if err == nil && strings.Contains(length, "chunked") {
				_, err = io.WriteString(conn, "--x\r\nContent-Disposition: form-data; name=\"title\"\r\n\r\n"+strings.Repeat("x", 0x810000))
			}
			if err != nil && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
				t.Fatal(err)
			}
			answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				t.Fatalf("%s %s: %v", length, contentType, err)
			}
			body, _ := io.ReadAll(answer.Body)
			_ = answer.Body.Close()
			if answer.StatusCode != http.StatusRequestEntityTooLarge || !strings.Contains(string(body), api.ErrBodyTooLarge.Name) {
				t.Errorf("%s %s: %d %s", length, contentType, answer.StatusCode, body)
			}
		}
	}
}

// files lists what is stored of notes.
func (f *fixture) files(t testing.TB) []string {
	t.Helper()
	notes, err := f.FindCollectionByNameOrId("notes")
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	root := filepath.Join(f.DataDir(), "storage", notes.Id)
	err = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			found = append(found, path)
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return found
}

// An upload that is rolled back leaves no file behind.
func TestRolledBackFiles(t *testing.T) {
	fail := true
	f := start(t, setup{bind: func(app core.App) {
		app.OnRecordCreateRequest("notes").BindFunc(func(e *core.RecordRequestEvent) error {
			if err := e.Next(); err != nil || !fail {
				return err
			}
			return e.BadRequestError("changed its mind", nil)
		})
	}})
	key := newKey()
	status(t, f.upload(t, key, map[string]string{"title": "file"}, "hello"), http.StatusBadRequest)
	if left := f.files(t); len(left) != 0 || f.count(t, "file") != 0 || f.rows(t) != 0 {
		t.Fatalf("left behind: %v, %d notes, %d keys", left, f.count(t, "file"), f.rows(t))
	}
	fail = false
	status(t, f.upload(t, key, map[string]string{"title": "file"}, "hello"), http.StatusOK)
	if left := f.files(t); len(left) == 0 {
		t.Fatal("the file is not there")
	}
}

func TestRefused(t *testing.T) {
	f := start(t, setup{
		deps: Deps{Route: func(_, route string) Policy {
			return Policy{Required: route == "/api/v1/lab/pay", Guests: route == "/api/v1/lab/open", Off: route == "/api/v1/lab/stream"}
		}},
		routes: func(g *router.RouterGroup[*core.RequestEvent]) {
			for _, path := range []string{"/pay", "/open", "/stream"} {
				g.POST(path, func(e *core.RequestEvent) error { return api.Write(e, http.StatusOK, e.App.IsTransactional()) })
			}
		},
	})
	note := map[string]any{"title": "x"}
	for _, key := range []string{"short", strings.Repeat("k", 256), "white space in it here", `"sixteen-letters-`, "späße-und-mehr-davon"} {
		got := f.Do(t, apptest.Request{Method: http.MethodPost, Path: notesPath, Token: f.ada, Body: note, Header: map[string]string{Header: key}})
		code(t, got, ErrKeyInvalid)
	}
	code(t, f.sendAs(t, "", http.MethodPost, notesPath, newKey(), note), api.ErrUnauthorized)
	code(t, f.send(t, http.MethodPost, "/api/v1/lab/pay", "", note), ErrKeyRequired)
	status(t, f.send(t, http.MethodPost, "/api/v1/lab/pay", newKey(), note), http.StatusOK)
	if got := f.sendAs(t, "", http.MethodPost, "/api/v1/lab/open", "", note); got.JSON(t)["data"] != false {
		t.Errorf("without a key: %s", got.Body)
	}
	code(t, f.sendAs(t, "", http.MethodPost, "/api/v1/lab/open", "sixteen-letters--", note), ErrKeyInvalid)
	code(t, f.sendAs(t, "", http.MethodPost, "/api/v1/lab/open", "0123456789abcdef-0123456789abcde", note), ErrKeyInvalid)
	guest := "1b4e28ba-2fa1-4d2b-883f-0016d3cca427"
	first := f.sendAs(t, "", http.MethodPost, "/api/v1/lab/open", guest, note)
	kept(t, first, f.sendAs(t, "", http.MethodPost, "/api/v1/lab/open", guest, note))
	for range 2 {
		if got := f.send(t, http.MethodPost, "/api/v1/lab/stream", guest, note); got.JSON(t)["data"] != false || got.Header.Get(Replayed) != "" {
			t.Errorf("a route without keys: %s", got.Body)
		}
	}
	if f.count(t, "x") != 0 {
		t.Error("a refused request was carried out")
	}
	// A key on a read and at a sign-in is ignored, and nothing is kept.
	before := f.rows(t)
	status(t, f.send(t, http.MethodGet, notesPath, "short", nil), http.StatusOK)
	for range 2 {
		got := f.sendAs(t, "", http.MethodPost, "/api/v1/collections/users/auth-with-password", newKey(), map[string]any{
			"identity": "ada@example.test", "password": apptest.Password,
		})
		status(t, got, http.StatusOK)
	}
	if f.rows(t) != before {
		t.Error("the answer to a sign-in was kept")
	}
}

func TestOtherRequest(t *testing.T) {
	f := start(t, setup{})
	key := newKey()
	status(t, f.send(t, http.MethodPost, notesPath, key, `{"title":"one"}`), http.StatusOK)
	note, _ := f.send(t, http.MethodPost, notesPath, newKey(), `{"title":"other"}`).JSON(t)["id"].(string)
	for _, r := range []apptest.Request{
		{Method: http.MethodPost, Path: notesPath, Body: `{"title":"two"}`},
		{Method: http.MethodPost, Path: notesPath, Body: `{"title":"one"} `},
		{Method: http.MethodPost, Path: notesPath + "?fields=id", Body: `{"title":"one"}`},
		{Method: http.MethodPatch, Path: notesPath + "/" + note, Body: `{"title":"one"}`},
		{Method: http.MethodPost, Path: notesPath, Body: `{"title":"one"}`, Header: map[string]string{"Content-Type": "text/plain"}},
		{Method: http.MethodDelete, Path: notesPath + "/" + note},
	} {
		if r.Header == nil {
			r.Header = map[string]string{}
		}
		r.Header[Header], r.Token = key, f.ada
		code(t, f.Do(t, r), ErrKeyReused)
	}
	if f.count(t, "one") != 1 || f.keeper.conflicts.Load() != 6 {
		t.Errorf("%d notes, %d conflicts", f.count(t, "one"), f.keeper.conflicts.Load())
	}
}

// What failed is not kept: the key is good for the next try, corrected or not.
func TestFailuresAreNotKept(t *testing.T) {
	broken := true
	f := start(t, setup{routes: func(g *router.RouterGroup[*core.RequestEvent]) {
		g.POST("/write", func(e *core.RequestEvent) error {
			notes, err := e.App.FindCollectionByNameOrId("notes")
			if err != nil {
				return err
			}
			note := core.NewRecord(notes)
			note.Set("title", "half")
			if err := e.App.Save(note); err != nil {
				return err
			}
			if broken {
				return e.JSON(http.StatusConflict, "not now") // an answer, not an error
			}
			return api.Write(e, http.StatusCreated, "done")
		})
		g.POST("/swallow", func(e *core.RequestEvent) error {
			_ = e.App.RunInTransaction(func(tx core.App) error {
				if _, err := tx.DB().NewQuery("UPDATE notes SET title = 'lost'").Execute(); err != nil {
					return err
				}
				return errors.New("no")
			})
			return api.Write(e, http.StatusOK, "all is well")
		})
	}})
	key := newKey()
	status(t, f.send(t, http.MethodPost, notesPath, key, map[string]any{"title": ""}), http.StatusBadRequest)
	status(t, f.send(t, http.MethodPost, notesPath, key, map[string]any{"title": "mended"}), http.StatusOK)
	key = newKey()
	status(t, f.send(t, http.MethodPost, "/api/v1/lab/write", key, nil), http.StatusConflict)
	if f.count(t, "half") != 0 {
		t.Fatal("what a refused request wrote is there")
	}
	broken = false
	first := f.send(t, http.MethodPost, "/api/v1/lab/write", key, nil)
	status(t, first, http.StatusCreated)
	kept(t, first, f.send(t, http.MethodPost, "/api/v1/lab/write", key, nil))
	if f.count(t, "half") != 1 || f.created.Load() != 2 {
		t.Errorf("%d notes, %d hooks", f.count(t, "half"), f.created.Load())
	}
	// A batch fails as a whole.
	status(t, f.send(t, http.MethodPost, "/api/batch", newKey(), batchOf("c", "")), http.StatusBadRequest)
	if f.count(t, "c") != 0 {
		t.Error("a part of the batch is there")
	}
	// A handler cannot keep a half of what it did by hiding an error of its own transaction.
	code(t, f.send(t, http.MethodPost, "/api/v1/lab/swallow", newKey(), nil), api.ErrInternal)
	if f.count(t, "lost") != 0 || f.rows(t) != 2 {
		t.Errorf("%d changed, %d keys", f.count(t, "lost"), f.rows(t))
	}
}

func TestParallel(t *testing.T) {
	f := start(t, setup{bind: func(app core.App) {
		app.OnRecordCreateRequest("notes").BindFunc(func(e *core.RecordRequestEvent) error {
			time.Sleep(20 * time.Millisecond) // so that others come meanwhile
			return e.Next()
		})
	}})
	const clients = 50
	key := newKey()
	answers := make([]apptest.Response, clients)
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() { answers[i] = f.send(t, http.MethodPost, notesPath, key, map[string]any{"title": "p"}) })
	}
	all.Wait()
	var bodies []string
	for _, got := range answers {
		switch got.Status {
		case http.StatusOK:
			bodies = append(bodies, string(got.Body))
		case http.StatusConflict:
			if got.Code() != ErrInFlight.Name || got.Header.Get("Retry-After") != "1" {
				t.Errorf("in flight: %q %s", got.Header.Get("Retry-After"), got.Body)
			}
		default:
			t.Errorf("%d %s", got.Status, got.Body)
		}
	}
	if slices.Sort(bodies); len(bodies) == 0 || len(slices.Compact(bodies)) != 1 || f.count(t, "p") != 1 {
		t.Errorf("%d answers, %d notes", len(bodies), f.count(t, "p"))
	}
	if len(f.keeper.flights.ids) != 0 {
		t.Error("a key is in flight for ever")
	}
}

// Another process that serves the same data has stored the key in the meantime: the unique key decides.
func TestOtherProcess(t *testing.T) {
	var f *fixture
	f = start(t, setup{bind: func(app core.App) {
		app.OnRecordCreateExecute("notes").BindFunc(func(e *core.RecordEvent) error {
			if e.Record.GetString("title") == "race" {
				_, err := e.App.NonconcurrentDB().NewQuery(`INSERT INTO idempotency_keys (id, caller, fingerprint, expires_at, status)
					SELECT {:id}, caller, fingerprint, expires_at, status FROM idempotency_keys LIMIT 1`).
					Bind(dbx.Params{"id": anyFlight(f)}).Execute()
				if err != nil {
					return err
				}
			}
			return e.Next()
		})
	}})
	status(t, f.send(t, http.MethodPost, notesPath, newKey(), map[string]any{"title": "first"}), http.StatusOK)
	got := f.send(t, http.MethodPost, notesPath, newKey(), map[string]any{"title": "race"})
	code(t, got, ErrInFlight)
	if f.count(t, "race") != 0 || f.rows(t) != 1 {
		t.Errorf("%d notes, %d keys", f.count(t, "race"), f.rows(t))
	}
}

func anyFlight(f *fixture) []byte {
	f.keeper.flights.mu.Lock()
	defer f.keeper.flights.mu.Unlock()
	for id := range f.keeper.flights.ids {
		return id[:]
	}
	return nil
}

func TestKeptAnswers(t *testing.T) {
	f := start(t, setup{routes: func(g *router.RouterGroup[*core.RequestEvent]) {
		g.POST("/things", func(e *core.RequestEvent) error {
			h := e.Response.Header()
			h.Set("Location", "/api/v1/lab/things/1")
			h.Set("ETag", `"1"`)
			h.Set("Content-Language", "de")
			if e.Request.URL.Query().Has("secret") {
				h.Set("Cache-Control", "no-store")
			}
			size := 2000
			if e.Request.URL.Query().Has("long") {
				size = maxStored
			}
			return api.Write(e, http.StatusCreated, long(size))
		})
		g.POST("/none", func(e *core.RequestEvent) error { return nil })
	}})
	const path = "/api/v1/lab/things"
	key := newKey()
	first := f.send(t, http.MethodPost, path, key, nil)
	status(t, first, http.StatusCreated)
	kept(t, first, f.send(t, http.MethodPost, path, key, nil))
	if id := first.JSON(t)["requestId"]; id != first.Header.Get("X-Request-Id") {
		t.Errorf("request id %v", id)
	}
	packed := f.Do(t, apptest.Request{Method: http.MethodPost, Path: path, Token: f.ada, Header: map[string]string{Header: key, "Accept-Encoding": "gzip"}})
	if packed.Header.Get("Content-Encoding") != "gzip" || packed.Header.Get(Replayed) != "true" || len(packed.Body) > 500 {
		t.Errorf("compressed: %v, %d bytes", packed.Header, len(packed.Body))
	}
	for _, query := range []string{"?long", "?secret"} {
		key := newKey()
		status(t, f.send(t, http.MethodPost, path+query, key, nil), http.StatusCreated)
		got := f.send(t, http.MethodPost, path+query, key, nil)
		if got.Status != http.StatusCreated || got.Header.Get("Location") != "/api/v1/lab/things/1" || got.Header.Get(Replayed) != "true" ||
			got.JSON(t)["data"] != nil || got.JSON(t)["success"] != true {
			t.Errorf("%s: %d %v %s", query, got.Status, got.Header, got.Body)
		}
	}
	key = newKey()
	first = f.send(t, http.MethodPost, "/api/v1/lab/none", key, nil)
	status(t, first, http.StatusOK)
	kept(t, first, f.send(t, http.MethodPost, "/api/v1/lab/none", key, nil))
	var bodies int
	if err := f.ConcurrentDB().NewQuery("SELECT max(length(body)) FROM idempotency_keys").Row(&bodies); err != nil || bodies > 3000 {
		t.Errorf("%d bytes kept (%v)", bodies, err)
	}
}

// Of a long answer the reference is kept, and the record read again: as the caller may see it now.
func TestLongAnswers(t *testing.T) {
	f := start(t, setup{})
	key, body := newKey(), map[string]any{"title": long(maxStored)}
	first := f.send(t, http.MethodPost, notesPath, key, body)
	status(t, first, http.StatusOK)
	kept(t, first, f.send(t, http.MethodPost, notesPath, key, body))

	batchKey, batch := newKey(), batchOf(long(maxStored), "short")
	whole := f.send(t, http.MethodPost, "/api/batch", batchKey, batch)
	status(t, whole, http.StatusOK)
	kept(t, whole, f.send(t, http.MethodPost, "/api/batch", batchKey, batch))

	id, _ := first.JSON(t)["id"].(string)
	note, err := f.FindRecordById("notes", id)
	if err != nil {
		t.Fatal(err)
	}
	note.Set("owner", "somebody")
	if err := f.Save(note); err != nil {
		t.Fatal(err)
	}
	got := f.send(t, http.MethodPost, notesPath, key, body)
	if got.Status != http.StatusOK || got.JSON(t)["id"] != id || got.JSON(t)["owner"] != nil || len(got.Body) > 200 {
		t.Errorf("somebody else's note: %d %.200s", got.Status, got.Body)
	}
	if err := f.Delete(note); err != nil {
		t.Fatal(err)
	}
	if got := f.send(t, http.MethodPost, notesPath, key, body); got.Status != http.StatusOK || got.JSON(t)["id"] != id {
		t.Errorf("a deleted note: %d %.200s", got.Status, got.Body)
	}
}

// The common way of a hook to make a request atomic puts the transaction's app into the event.
func TestHookWithItsOwnTransaction(t *testing.T) {
	f := start(t, setup{bind: func(app core.App) {
		app.OnRecordCreateRequest("notes").BindFunc(func(e *core.RecordRequestEvent) error {
			outer := e.App
			return e.App.RunInTransaction(func(tx core.App) error {
				e.App = tx
				defer func() { e.App = outer }()
				return e.Next()
			})
		})
	}})
	key := newKey()
	first := f.send(t, http.MethodPost, notesPath, key, map[string]any{"title": "t"})
	if len(first.Body) == 0 {
		t.Fatal("no answer")
	}
	kept(t, first, f.send(t, http.MethodPost, notesPath, key, map[string]any{"title": "t"}))
	status(t, f.send(t, http.MethodPost, notesPath, "", map[string]any{"title": "t"}), http.StatusOK)
}

// A hook that fails after the commit cannot undo it, so the answer stands.
func TestFailureAfterCommit(t *testing.T) {
	f := start(t, setup{bind: func(app core.App) {
		app.OnRecordAfterCreateSuccess("notes").BindFunc(func(*core.RecordEvent) error { return errors.New("too late") })
	}})
	key := newKey()
	first := f.send(t, http.MethodPost, notesPath, key, map[string]any{"title": "late"})
	status(t, first, http.StatusOK)
	kept(t, first, f.send(t, http.MethodPost, notesPath, key, map[string]any{"title": "late"}))
	if f.count(t, "late") != 1 {
		t.Error("not one note")
	}
}

func TestPanic(t *testing.T) {
	f := start(t, setup{bind: func(app core.App) {
		app.OnRecordCreateExecute("notes").BindFunc(func(e *core.RecordEvent) error {
			if err := e.Next(); err != nil || e.Record.GetString("title") != "panic" {
				return err
			}
			panic("of the test")
		})
	}})
	key := newKey()
	for range 2 {
		status(t, f.send(t, http.MethodPost, notesPath, key, map[string]any{"title": "panic"}), http.StatusInternalServerError)
	}
	if f.count(t, "panic") != 0 || f.rows(t) != 0 || len(f.keeper.flights.ids) != 0 || f.keeper.waits.count.Load() != 0 {
		t.Error("something is left")
	}
	status(t, f.send(t, http.MethodPost, notesPath, key, map[string]any{"title": "calm"}), http.StatusOK)
}

func TestAfterCommit(t *testing.T) {
	var order []string
	fail := false
	f := start(t, setup{routes: func(g *router.RouterGroup[*core.RequestEvent]) {
		g.POST("/tell", func(e *core.RequestEvent) error {
			order = nil
			err := e.App.RunInTransaction(func(tx core.App) error {
				AfterCommit(tx, func() { order = append(order, "told") })
				order = append(order, "inner end")
				return nil
			})
			if err != nil {
				return err
			}
			if order = append(order, "handler end"); fail {
				return e.BadRequestError("", nil)
			}
			return api.Write(e, http.StatusOK, nil)
		})
	}})
	for key, want := range map[string]string{"": "inner end,told,handler end", newKey(): "inner end,handler end,told"} {
		status(t, f.send(t, http.MethodPost, "/api/v1/lab/tell", key, nil), http.StatusOK)
		if got := strings.Join(order, ","); got != want {
			t.Errorf("key %q: %s", key, got)
		}
	}
	fail = true
	status(t, f.send(t, http.MethodPost, "/api/v1/lab/tell", newKey(), nil), http.StatusBadRequest)
	if got := strings.Join(order, ","); got != "inner end,handler end" {
		t.Errorf("rolled back: %s", got)
	}
}

func TestTooManyKeys(t *testing.T) {
	f := start(t, setup{cfg: func(c *Config) { c.MaxKeys = 10 }})
	last := ""
	for range 10 {
		last = newKey()
		status(t, f.send(t, http.MethodPost, notesPath, last, map[string]any{"title": "m"}), http.StatusOK)
	}
	got := f.send(t, http.MethodPost, notesPath, newKey(), map[string]any{"title": "m"})
	code(t, got, ErrTooManyKeys)
	if got.Header.Get("Retry-After") == "" {
		t.Error("no Retry-After")
	}
	// Repeats and others are not concerned.
	status(t, f.send(t, http.MethodPost, notesPath, last, map[string]any{"title": "m"}), http.StatusOK)
	status(t, f.sendAs(t, f.ben, http.MethodPost, notesPath, newKey(), map[string]any{"title": "m"}), http.StatusOK)
	f.keeper.now = func() time.Time { return time.Now().Add(25 * time.Hour) }
	status(t, f.send(t, http.MethodPost, notesPath, newKey(), map[string]any{"title": "m"}), http.StatusOK)
}

// API keys are callers of their own.
func TestAPIKeys(t *testing.T) {
	f := start(t, setup{
		deps: Deps{Key: func(e *core.RequestEvent) string { return e.Request.Header.Get("X-Test-Key") }},
		routes: func(g *router.RouterGroup[*core.RequestEvent]) {
			g.POST("/who", func(e *core.RequestEvent) error {
				return api.Write(e, http.StatusOK, e.Request.Header.Get("X-Test-Key"))
			})
		},
	})
	key := newKey()
	as := func(id string) apptest.Response {
		return f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/lab/who", Header: map[string]string{Header: key, "X-Test-Key": id}})
	}
	one, two := as("k1"), as("k2")
	if one.JSON(t)["data"] != "k1" || two.JSON(t)["data"] != "k2" {
		t.Fatalf("%s %s", one.Body, two.Body)
	}
	kept(t, one, as("k1"))
	code(t, as(""), api.ErrUnauthorized)
}

func TestDeletedUserTakesKeysAlong(t *testing.T) {
	f := start(t, setup{})
	key := newKey()
	status(t, f.send(t, http.MethodPost, notesPath, key, map[string]any{"title": "u"}), http.StatusOK)
	status(t, f.sendAs(t, f.ben, http.MethodPost, notesPath, key, map[string]any{"title": "u"}), http.StatusOK)
	ada, err := f.FindAuthRecordByEmail("users", "ada@example.test")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Delete(ada); err != nil {
		t.Fatal(err)
	}
	if f.rows(t) != 1 {
		t.Errorf("%d keys", f.rows(t))
	}
}

func TestPurge(t *testing.T) {
	f := start(t, setup{})
	old := newKey()
	status(t, f.send(t, http.MethodPost, notesPath, old, map[string]any{"title": "old"}), http.StatusOK)
	_, err := f.NonconcurrentDB().NewQuery(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500)
		INSERT INTO idempotency_keys (id, caller, fingerprint, expires_at, status, body)
		SELECT randomblob(32), x'00', x'00', 1000 + i, 200, zeroblob(CASE WHEN i < 40 THEN 262144 ELSE 10 END) FROM n`).Execute()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.keeper.purge(t.Context(), f.App); err != nil || f.rows(t) != 1 {
		t.Fatalf("%d left (%v)", f.rows(t), err)
	}
	// An expired key is as good as new, purged or not.
	f.keeper.now = func() time.Time { return time.Now().Add(25 * time.Hour) }
	got := f.send(t, http.MethodPost, notesPath, old, map[string]any{"title": "new"})
	if got.Status != http.StatusOK || got.Header.Get(Replayed) != "" || f.rows(t) != 1 {
		t.Fatalf("%d %s, %d keys", got.Status, got.Body, f.rows(t))
	}
}

// Long answers of one caller must not slow down the searches of all: see schema.
func TestAnswersAreNotInTheIndex(t *testing.T) {
	f := start(t, setup{})
	var without bool
	if err := f.ConcurrentDB().NewQuery("SELECT wr FROM pragma_table_list WHERE name = 'idempotency_keys'").Row(&without); err != nil || without {
		t.Errorf("without rowid: %v (%v)", without, err)
	}
	var plan struct {
		Detail string `db:"detail"`
	}
	if err := f.ConcurrentDB().NewQuery("EXPLAIN QUERY PLAN SELECT " + columns + " FROM idempotency_keys WHERE id = x'00' AND expires_at > 1").One(&plan); err != nil ||
		!strings.Contains(plan.Detail, "(id=?)") {
		t.Errorf("%s (%v)", plan.Detail, err)
	}
}

func TestConfig(t *testing.T) {
	good := Config{Retention: 24 * time.Hour, MaxKeys: 10000, Lease: time.Minute}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for _, change := range []func(c *Config){
		func(c *Config) { c.Retention = time.Minute }, func(c *Config) { c.Retention = 1000 * time.Hour },
		func(c *Config) { c.MaxKeys = 9 }, func(c *Config) { c.Lease = time.Second }, func(c *Config) { c.Lease = 2 * time.Hour },
	} {
		bad := good
		change(&bad)
		if bad.Validate() == nil {
			t.Errorf("%+v is valid", bad)
		}
	}
}
