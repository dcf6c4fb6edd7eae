package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// jobKills is how often the server is killed in the middle of jobs; JOB_KILLS says another number.
	jobKills = 12

	// jobsOfNote is how many jobs each note asks for.
	jobsOfNote = 5

	// inHand bounds the jobs that a process may have done and not written down: the workers, and one transaction of ends.
	inHand = 8 + 250
)

// jobHooks enqueue in the transaction of each note. A job has an effect that knows nothing of repeats, and one that does.
const jobHooks = `
onBootstrap((e) => {
    e.next()
    e.app.db().newQuery("CREATE TABLE IF NOT EXISTS effects_plain (job TEXT)").execute()
    e.app.db().newQuery("CREATE TABLE IF NOT EXISTS effects_once (note TEXT, n INTEGER)").execute()
})

$jobs.define("notes.effect", {}, (e) => {
    e.app.db().newQuery("INSERT INTO effects_plain VALUES ({:job})").bind({ job: e.id }).execute()
    e.once("effect", (tx) => {
        tx.db().newQuery("INSERT INTO effects_once VALUES ({:note}, {:n})").bind({ note: e.payload.note, n: e.payload.n }).execute()
    })
})

onRecordCreateExecute((e) => {
    const outer = e.app
    outer.runInTransaction((tx) => {
        e.app = tx
        e.next()
        for (let n = 0; n < 5; n++) $jobs.enqueue("notes.effect", { note: e.record.id, n: n }, { app: tx })
    })
    e.app = outer
}, "notes")

routerAdd("GET", "/effects", (e) => {
    const count = (query) => {
        const row = new DynamicModel({ n: 0 })
        e.app.db().newQuery("SELECT (" + query + ") AS n").one(row)
        return row.n
    }
    return e.json(200, {
        notes: count("SELECT count(*) FROM notes"),
        queued: count("SELECT count(*) FROM jobs_queue WHERE kind = 'notes.effect'"),
        done: count("SELECT count(*) FROM jobs_history WHERE kind = 'notes.effect' AND outcome = 'succeeded'"),
        plain: count("SELECT count(*) FROM effects_plain"),
        jobs: count("SELECT count(DISTINCT job) FROM effects_plain"),
        once: count("SELECT count(*) FROM effects_once"),
        distinct: count("SELECT count(*) FROM (SELECT DISTINCT note, n FROM effects_once)"),
    })
})
`

// TestKillWhileWorking kills the server in the middle of jobs at moments that nobody has chosen. Every job that a committed
// note has asked for is done, few are done twice, and what a job does once happens once.
func TestKillWhileWorking(t *testing.T) {
	t.Parallel()
	kills := jobKills
	if n, err := strconv.Atoi(os.Getenv("JOB_KILLS")); err == nil {
		kills = n
	}
	dir := t.TempDir()
	write(t, dir, "pb_hooks/main.pb.js", jobHooks)
	s := startIn(t, dir, relaxed("SATCHEL_JOBS_KEEP_MOST=10000000")...)
	owner, token := s.user(t, "worker@example.com")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	writers := make([]*writer, 3)
	problems := make(chan error, len(writers))
	var storm sync.WaitGroup
	for i := range writers {
		w := &writer{server: s, client: &http.Client{Transport: &http.Transport{}}, id: fmt.Sprintf("w%d", i), owner: owner, token: token}
		t.Cleanup(w.client.CloseIdleConnections)
		writers[i] = w
		storm.Go(func() {
			if err := w.run(ctx); err != nil {
				problems <- err
			}
		})
	}
	for range kills {
		time.Sleep(time.Duration(rand.IntN(150)) * time.Millisecond) // where it strikes is the test's only dice
		s.kill()
		s.up(t)
	}
	cancel()
	storm.Wait()
	close(problems)
	for err := range problems {
		t.Error(err)
	}
	notes := 0
	for _, w := range writers {
		notes += w.notes
	}
	var got map[string]int
	for end := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if got = s.effects(t); got["queued"] == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the jobs do not come to an end: %v", got)
		}
	}
	want := notes * jobsOfNote
	if got["notes"] != notes || got["done"] != want || got["jobs"] != want {
		t.Errorf("%d notes were answered, so %d jobs must be done: %v", notes, want, got)
	}
	if got["once"] != want || got["distinct"] != want {
		t.Errorf("effects that happen once: %v, want %d", got, want)
	}
	twice := got["plain"] - got["jobs"]
	if twice > kills*inHand {
		t.Errorf("%d attempts too many in %d kills", twice, kills)
	}
	t.Logf("%d kills, %d jobs done, %d attempts repeated", kills, got["done"], twice)
}

func (s *server) effects(t *testing.T) map[string]int {
	t.Helper()
	answer := s.do(t, request{Path: "/effects"})
	answer.assertStatus(t, http.StatusOK)
	out := map[string]int{}
	for name, n := range answer.json(t) {
		number, _ := n.(float64)
		out[name] = int(number)
	}
	return out
}

// JavaScript hooks enqueue and do jobs, and operators look after them, on the command line and by operations.
func TestJobs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "pb_hooks/main.pb.js", `
$jobs.define("js.work", { queue: "js", attempts: 2, firstWait: "1ms", maxWait: "1ms" }, (e) => {
    switch (e.payload.do) {
        case "nap":
            if (e.attempt == 1 && !$app.store().get("napped")) {
                $app.store().set("napped", true)
                return e.snooze("1ms")
            }
            break
        case "fail": return e.fail("never " + e.kind)
        case "throw": throw new Error("attempt " + e.attempt)
    }
    e.progress(1, 2)
    e.setResult({ twice: e.payload.n * 2, key: e.key })
})

routerAdd("POST", "/enqueue", (e) => {
    const body = e.requestInfo().body
    return e.json(200, { id: $jobs.enqueue("js.work", body.payload, body.options) })
})
`)
	s := startIn(t, dir, relaxed()...)
	root := s.superuser(t)
	enqueue := func(payload, options map[string]any) response {
		return s.do(t, request{Method: http.MethodPost, Path: "/enqueue", JSON: map[string]any{"payload": payload, "options": options}})
	}
	show := func(id string) response {
		return s.do(t, request{Path: "/api/v1/operations/jobs.show?id=" + id, Token: root})
	}
	await := func(id, want string) {
		t.Helper()
		var got response
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			if got = show(id); strings.Contains(string(got.Body), want) {
				return
			}
		}
		t.Fatalf("%s is not in %s", want, got.Body)
	}
	made := func(r response) string {
		t.Helper()
		r.assertStatus(t, http.StatusOK)
		return r.text(t, "id")
	}
	done := made(enqueue(map[string]any{"n": 21}, nil))
	await(done, `"result":{"key":"job-`+done+`","twice":42}`)
	await(made(enqueue(map[string]any{"do": "nap", "n": 1}, nil)), `"state":"succeeded","attempts":1`)
	await(made(enqueue(map[string]any{"do": "throw"}, nil)), `"error":"Error: attempt 2`)
	dead := made(enqueue(map[string]any{"do": "fail"}, map[string]any{"key": "k"}))
	await(dead, `"error":"never js.work"`)
	for _, wrong := range []map[string]any{{"delay": "soon"}, {"prority": 1}, {"at": "tomorrow"}} {
		if got := enqueue(map[string]any{}, wrong); got.Status == http.StatusOK {
			t.Errorf("%v: enqueued", wrong)
		}
	}
	later := made(enqueue(map[string]any{"n": 1}, map[string]any{"delay": "1h", "priority": 1, "lane": "x"}))

	data := filepath.Join(dir, "pb_data")
	run := func(want string, args ...string) {
		t.Helper()
		got := command(t, dir, s.settings, append([]string{"jobs", "--dir", data}, args...)...)
		if out := got.stdout + got.stderr; !strings.Contains(out, want) {
			t.Errorf("jobs %v: exit code %d, %q is not in\n%s", args, got.exit, want, out)
		}
	}
	run(dead, "list", "--state", "dead")
	run(`"error": "never js.work"`, "show", dead)
	run("js", "queues")
	run("is paused", "pause", "js")
	run("is due now", "retry", dead, "--payload", `{"n":4}`)
	await(dead, `"state":"ready"`)
	run("is resumed", "resume", "js")
	await(dead, `"twice":8`)
	run("cancelled", "cancel", later)
	await(later, `"state":"cancelled"`)
	run("there is no such job", "show", "nonsense")

	_, token := s.user(t, "user@example.com")
	for _, who := range []string{"", token} {
		if got := s.do(t, request{Path: "/api/v1/operations/jobs.list", Token: who}); got.Status != http.StatusUnauthorized && got.Status != http.StatusForbidden {
			t.Errorf("users list jobs: %d", got.Status)
		}
	}
	list := s.do(t, request{Path: "/api/v1/operations/jobs.list?state=succeeded&kind=js.work&limit=2", Token: root})
	if data, _ := list.json(t)["data"].(map[string]any); len(data["jobs"].([]any)) != 2 || data["next"] == "" {
		t.Errorf("list: %s", list.Body)
	}
}

// A hook in JavaScript declares a trigger: the job is asked for once for each change that fulfils the condition.
func TestTriggers(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write(t, dir, "pb_hooks/main.pb.js", `
$triggers.on("notes", { on: ["created", "updated"], if: 'title ~ "urgent"', enqueue: "notes.tell" })
$triggers.on("notes", { name: "notes.gone", on: ["deleted"], enqueue: "notes.tell" })

$jobs.define("notes.tell", {}, (e) => {
    e.once("count", (tx) => tx.db().newQuery("INSERT INTO told VALUES ({:event}, {:record}, {:key})").bind(e.payload).execute())
})

onBootstrap((e) => {
    e.next()
    e.app.db().newQuery("CREATE TABLE IF NOT EXISTS told (event TEXT, record TEXT, key TEXT UNIQUE)").execute()
})

routerAdd("GET", "/told", (e) => {
    const rows = arrayOf(new DynamicModel({ event: "", record: "" }))
    e.app.db().newQuery("SELECT event, record FROM told ORDER BY rowid").all(rows)
    return e.json(200, { told: rows.map((r) => r.event + " " + r.record).join(", ") })
})
`)
	s := startIn(t, dir, relaxed()...)
	owner, token := s.user(t, "told@example.com")
	note := func(method, id, title string) string {
		t.Helper()
		answer := s.do(t, request{Method: method, Path: strings.TrimSuffix("/api/collections/notes/records/"+id, "/"), Token: token, JSON: map[string]any{"owner": owner, "title": title}})
		if answer.Status >= 300 {
			t.Fatalf("%s: %d %s", method, answer.Status, answer.Body)
		}
		if id != "" {
			return id
		}
		return answer.text(t, "id")
	}
	want := ""
	told := func(more string) {
		t.Helper()
		want += more
		got := ""
		eventually(t, "a job after "+more, 30*time.Second, func() bool {
			got = s.do(t, request{Path: "/told"}).text(t, "told")
			return len(got) >= len(want)
		})
		if got != want {
			t.Fatalf("told: %s, want %s", got, want)
		}
	}
	note(http.MethodPost, "", "one for later")
	urgent := note(http.MethodPost, "", "an urgent one")
	told("created " + urgent)
	s.kill()
	s.up(t)
	note(http.MethodPatch, urgent, "it is urgent")
	told(", updated " + urgent)
	note(http.MethodPatch, urgent, "never mind")
	note(http.MethodDelete, urgent, "")
	told(", deleted " + urgent)
}
