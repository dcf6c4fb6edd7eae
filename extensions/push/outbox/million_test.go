package outbox_test

import (
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/serial"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/push/outbox"
)

const (
	// crowd is how many devices the messages of these tests are for; PUSH_CROWD says another number.
	crowd = 20_000

	// mostPages is how many pages one transaction may write, however many devices there are: those of 500 deliveries and
	// what goes with them.
	mostPages = 120
)

func crowdSize() int {
	if n, err := strconv.Atoi(os.Getenv("PUSH_CROWD")); err == nil {
		return n
	}
	return crowd
}

func (f *fixture) exec(t testing.TB, statement string, p dbx.Params) {
	t.Helper()
	if _, err := f.NonconcurrentDB().NewQuery(statement).Bind(p).Execute(); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// crowded makes a message that is being sent to many devices: its deliveries in a state, and a chunk with its job for each
// 500 of those that wait, due in an hour. With last, one more device has a chunk that is due now.
func (f *fixture) crowded(t testing.TB, devices, state int, last bool) string {
	t.Helper()
	sent := f.send(t, m{"to": m{"topic": "nobody"}, "title": "Hello"})
	f.done(t, sent.ID)
	number, err := serial.Parse(sent.ID)
	if err != nil {
		t.Fatal(err)
	}
	p := dbx.Params{"id": number, "n": devices, "state": state}
	f.exec(t, `UPDATE push_messages SET state = 1, done_at = 0, totals = '' WHERE id = {:id}`, p)
	f.exec(t, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {:n})
		INSERT INTO push_deliveries (message, device, state, platform, at, collection, record)
		SELECT {:id}, printf('d%08d', i), {:state}, 'apns', 1, 'c', printf('r%08d', i) FROM n`, p)
	chunk := func(at, size int, delay time.Duration) {
		t.Helper()
		name := serial.Format(int64(at))
		err := f.RunInTransaction(func(tx core.App) error {
			job, err := f.jobs.Enqueue(tx, "push.chunk", map[string]string{"id": name}, jobs.Options{Delay: delay})
			if err != nil {
				return err
			}
			_, err = tx.NonconcurrentDB().NewQuery(`INSERT INTO push_chunks (id, message, job, due_at, devices, collapse)
				SELECT {:chunk}, {:id}, {:job}, {:due}, json_group_array(device), '' FROM push_deliveries WHERE message = {:id} AND device BETWEEN {:from} AND {:to}`).
				Bind(dbx.Params{
					"id": number, "chunk": at, "job": job, "due": time.Now().Add(delay).UnixMilli(),
					"from": fmt.Sprintf("d%08d", at), "to": fmt.Sprintf("d%08d", at+size-1),
				}).Execute()
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for at := 1; state == 0 && at <= devices; at += 500 {
		chunk(at, 500, time.Hour)
	}
	if last {
		f.exec(t, `UPDATE push_deliveries SET state = 0 WHERE message = {:id} AND device = {:last}`, dbx.Params{"id": number, "last": fmt.Sprintf("d%08d", devices)})
		chunk(devices, 1, 0)
	}
	return sent.ID
}

// watch is what a test sees of the connection that writes.
type watch struct {
	mu       sync.Mutex
	counting map[*dbx.DB]int // statements that count deliveries, by connection
}

func (w *watch) connect(inner core.DBConnectFunc) core.DBConnectFunc {
	w.counting = map[*dbx.DB]int{}
	return func(path string) (*dbx.DB, error) {
		db, err := inner(path)
		if err != nil {
			return nil, err
		}
		db.QueryLogFunc = func(_ context.Context, _ time.Duration, query string, _ *sql.Rows, _ error) {
			if strings.Contains(query, "count(*)") && strings.Contains(query, "push_deliveries") && !strings.Contains(query, "LIMIT") {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.counting[db]++
			}
		}
		return db, nil
	}
}

// counted is how often somebody counted deliveries while all others had to wait.
func (w *watch) counted(f *fixture) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.counting[f.NonconcurrentDB().(*dbx.DB)]
}

// commits reads how many pages each transaction has written from the write-ahead log, and what tells this log from the next.
func commits(t testing.TB, f *fixture) (pages []int, salts string) {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(f.DataDir(), "data.db-wal"))
	if err != nil || len(raw) < 32 {
		return nil, ""
	}
	size := 24 + int(binary.BigEndian.Uint32(raw[8:]))
	salts = string(raw[16:24])
	n := 0
	for at := 32; at+size <= len(raw) && string(raw[at+8:at+16]) == salts; at += size {
		n++
		if binary.BigEndian.Uint32(raw[at+4:]) != 0 { // the last page of a transaction
			pages = append(pages, n)
			n = 0
		}
	}
	return pages, salts
}

// written returns how many pages the transactions write that fn makes happen.
func (f *fixture) written(t testing.TB, fn func()) []int {
	t.Helper()
	reader, err := f.ConcurrentDB().(*dbx.DB).DB().BeginTx(t.Context(), &sql.TxOptions{ReadOnly: true}) // as long as it reads, the log is kept
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = reader.Rollback() }()
	var n int
	if err := reader.QueryRowContext(t.Context(), "SELECT count(*) FROM push_messages").Scan(&n); err != nil {
		t.Fatal(err)
	}
	before, log := commits(t, f)
	fn()
	after, now := commits(t, f)
	if now == log {
		after = after[len(before):]
	}
	if len(after) == 0 {
		t.Fatal("nothing was written")
	}
	return after
}

func (f *fixture) stopped(t testing.TB, what string) {
	t.Helper()
	await(t, what, func() bool {
		return row[int](t, f, "SELECT count(*) FROM jobs_queue WHERE kind IN ('push.end', 'push.chunk')") == 0
	})
}

// However many devices a message is for, no transaction writes more than a portion, and none counts them.
func TestPortions(t *testing.T) {
	var w watch
	f := start(t, options{connect: w.connect})
	n := crowdSize()
	check := func(t *testing.T, pages []int) {
		t.Helper()
		if worst := slices.Max(pages); worst > mostPages {
			t.Errorf("a transaction has written %d pages", worst)
		}
		if n := w.counted(f); n != 0 {
			t.Errorf("deliveries were counted %d times while others waited", n)
		}
		t.Logf("%d transactions of %d pages at most", len(pages), slices.Max(pages))
	}
	// The small message that each begins with is counted at once.
	begin := func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		clear(w.counting)
	}
	t.Run("cancelled", func(t *testing.T) {
		id := f.crowded(t, n, 0, false)
		begin()
		check(t, f.written(t, func() {
			var v outbox.View
			if r := f.operation(t, "push.cancel", m{"id": id}, &v); r.Status != http.StatusOK || v.State != outbox.Cancelled || v.Totals != nil {
				t.Fatalf("%d %s", r.Status, r.Body)
			}
			if v := f.show(t, id); v.Totals.Cancelled != n || v.Totals.Devices != n {
				t.Errorf("at once: %+v", v.Totals)
			}
			f.stopped(t, "the end of what was cancelled")
		}))
		if open := row[int](t, f, "SELECT count(*) FROM push_deliveries WHERE state <> 8") + row[int](t, f, "SELECT count(*) FROM push_chunks"); open != 0 {
			t.Errorf("%d are left", open)
		}
		f.kept(t, id, func(v outbox.Totals) bool { return v.Cancelled == n && v.Devices == n })
	})
	t.Run("sent", func(t *testing.T) {
		id := f.crowded(t, n, 1, true)
		begin()
		check(t, f.written(t, func() { f.done(t, id); f.stopped(t, "the totals") }))
		f.kept(t, id, func(v outbox.Totals) bool { return v.Accepted == n-1 && v.Skipped == 1 && v.Codes["gone"] == 1 })
		// What changes later is counted again, also when nobody was told.
		f.exec(t, `UPDATE push_deliveries SET state = 2, code = 'late' WHERE device = 'd00000001' AND state = 1`, nil)
		f.exec(t, `UPDATE push_messages SET stale = 1 WHERE state = 2 AND totals <> ''`, nil)
		f.sweep(t)
		f.stopped(t, "the totals")
		f.kept(t, id, func(v outbox.Totals) bool { return v.Accepted == n-2 && v.Dead == 1 && v.Codes["late"] == 1 })
	})
	t.Run("old", func(t *testing.T) {
		f.exec(t, `UPDATE push_messages SET done_at = 1`, nil)
		begin()
		check(t, f.written(t, func() { f.sweep(t) }))
		if left := row[int](t, f, "SELECT count(*) FROM push_deliveries"); left != 0 {
			t.Errorf("%d deliveries are left", left)
		}
	})
	if requests := f.apns.Production.Requests(); requests != 0 {
		t.Errorf("%d pushes were sent", requests)
	}
}

// kept checks the totals that are kept with a message.
func (f *fixture) kept(t testing.TB, id string, ok func(outbox.Totals) bool) {
	t.Helper()
	number, err := serial.Parse(id)
	if err != nil {
		t.Fatal(err)
	}
	var totals outbox.Totals
	text := row[string](t, f, fmt.Sprintf("SELECT totals FROM push_messages WHERE id = %d AND stale = 0", number))
	if err := json.Unmarshal([]byte(text), &totals); err != nil || !ok(totals) {
		t.Errorf("%s %v", text, err)
	}
}

// sweep does what is done every few minutes.
func (f *fixture) sweep(t testing.TB) {
	t.Helper()
	id, err := f.jobs.Enqueue(f.App.App, "push.sweep", struct{}{}, jobs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.jobs.Do(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

// A process that dies in the middle of a cancellation leaves nothing that the next one does not end.
func TestCancelCrash(t *testing.T) {
	f := start(t, options{})
	n := crowdSize()
	id := f.crowded(t, n, 0, false)
	if r := f.operation(t, "push.cancel", m{"id": id}, nil); r.Status != http.StatusOK {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	await(t, "a part of the work", func() bool { return row[int](t, f, "SELECT count(*) FROM push_deliveries WHERE state = 8") > 0 })
	dir := t.TempDir()
	err := f.RunInTransaction(func(core.App) error { // the files as they are between two commits
		if left := row[int](t, f, "SELECT count(*) FROM push_deliveries WHERE state = 0"); left == 0 {
			t.Error("it has ended already")
		}
		return os.CopyFS(dir, os.DirFS(f.DataDir()))
	})
	if err != nil {
		t.Fatal(err)
	}
	next := start(t, options{dir: dir})
	next.stopped(t, "the rest of the work")
	if open := row[int](t, next, "SELECT count(*) FROM push_deliveries WHERE state <> 8") + row[int](t, next, "SELECT count(*) FROM push_chunks"); open != 0 {
		t.Errorf("%d are left", open)
	}
	next.kept(t, id, func(v outbox.Totals) bool { return v.Cancelled == n && v.Devices == n })
}

// A chunk that is being sent when its message is cancelled sends what the provider has got already, and no more.
func TestCancelBetweenParcels(t *testing.T) {
	f := start(t, options{})
	user, _ := f.User(t, "many@example.test")
	list := make([]spec, 300)
	for i := range list {
		list[i] = spec{id: fmt.Sprintf("d%04d", i), user: user.Id, token: token("", i+1)}
	}
	f.devices(t, list...)
	f.apns.Production.SetLatency(50 * time.Millisecond)
	sent := f.send(t, m{"to": m{"all": true}, "title": "Hello"})
	await(t, "the first push", func() bool { return f.apns.Production.Requests() > 0 })
	if r := f.operation(t, "push.cancel", m{"id": sent.ID}, nil); r.Status != http.StatusOK {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	await(t, "the end of the chunk", func() bool { // the totals that are kept follow in a minute
		return row[int](t, f, "SELECT count(*) FROM jobs_queue WHERE kind = 'push.chunk'") == 0
	})
	got := f.show(t, sent.ID).Totals
	if requests := f.apns.Production.Requests(); got.Accepted != requests || got.Cancelled != len(list)-requests || requests >= 200 {
		t.Errorf("%+v, %d requests", got, requests)
	}
}

// BenchmarkLock says how long a writer waits at most while a message for PUSH_CROWD devices is cancelled, ends and is
// forgotten.
func BenchmarkLock(b *testing.B) {
	for b.Loop() {
		f := start(b, options{})
		n := crowdSize()
		f.exec(b, `CREATE TABLE others (n INTEGER)`, nil)
		id := f.crowded(b, n, 0, false)
		f.longest(b, "cancel", func() {
			if r := f.operation(b, "push.cancel", m{"id": id}, nil); r.Status != http.StatusOK {
				b.Fatalf("%d %s", r.Status, r.Body)
			}
			f.stopped(b, "the end of what was cancelled")
		})
		id = f.crowded(b, n, 1, true)
		f.longest(b, "end", func() { f.done(b, id); f.stopped(b, "the totals") })
		f.exec(b, `UPDATE push_messages SET done_at = 1`, nil)
		f.longest(b, "forget", func() { f.sweep(b) })
	}
}

// longest reports the longest wait and the 99th percentile of a writer beside fn.
func (f *fixture) longest(b *testing.B, what string, fn func()) {
	b.Helper()
	end, ended := make(chan struct{}), make(chan []time.Duration)
	go func() {
		var waits []time.Duration
		for {
			select {
			case <-end:
				ended <- waits
				return
			default:
			}
			begun := time.Now()
			if _, err := f.NonconcurrentDB().NewQuery(`INSERT INTO others VALUES (1)`).Execute(); err != nil {
				b.Error(err)
			}
			waits = append(waits, time.Since(begun))
			time.Sleep(time.Millisecond)
		}
	}()
	fn()
	close(end)
	waits := <-ended
	slices.Sort(waits)
	b.ReportMetric(float64(waits[len(waits)-1].Microseconds())/1000, what+"-max-ms")
	b.ReportMetric(float64(waits[len(waits)*99/100].Microseconds())/1000, what+"-p99-ms")
}
