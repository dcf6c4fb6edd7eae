package console_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/jobs/console"
	"github.com/satchelbase/satchel/extensions/jobs/table"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/settings"
)

const kind = "test.job"

type m = map[string]any

type fixture struct {
	*apptest.App

	jobs    *jobs.Jobs
	x       extensions.Extension
	root    string
	audited []string
}

// start returns an application with a kind whose jobs do work.
func start(t testing.TB, work func(ctx context.Context, job *jobs.Job, n int) error) *fixture {
	t.Helper()
	f := &fixture{jobs: jobs.New(settings.Defaults[jobs.Config]())}
	f.jobs.Add(jobs.Define(jobs.Spec[int]{Kind: kind, Queue: "tests", Work: work}))
	f.x = console.Extend(f.jobs.Extension(jobs.Deps{Vault: secret.Fixed([]byte("root key of the tests"))}), f.jobs)
	ops := operations.New()
	ops.Add(console.Operations(f.jobs))
	f.App = apptest.New(t, api.New(settings.Defaults[api.Config]()), f.x, ops.Extension(operations.Deps{Audit: func(_ core.App, e audit.Entry) error {
		text, err := json.Marshal(e.Details)
		f.audited = append(f.audited, e.Action+" "+e.Outcome+" "+string(text))
		return err
	}}))
	_, f.root = f.Superuser(t)
	return f
}

func dying(context.Context, *jobs.Job, int) error { return jobs.Permanent(errors.New("no")) }

// run runs satchel jobs with arguments and returns what it printed and its failure.
func (f *fixture) run(t testing.TB, args ...string) (string, *cli.Failure) {
	t.Helper()
	c := f.x.Commands(f.Host)[0]
	c.PersistentFlags().Bool("json", false, "")
	var out bytes.Buffer
	c.SetArgs(args)
	c.SetOut(&out)
	c.SilenceErrors, c.SilenceUsage = true, true
	err := c.ExecuteContext(t.Context())
	var failure *cli.Failure
	if err != nil && !errors.As(err, &failure) {
		t.Fatalf("%v: %v", args, err)
	}
	return out.String(), failure
}

// operation calls one and returns data.
func (f *fixture) operation(t testing.TB, name string, in, out any) apptest.Response {
	t.Helper()
	r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/operations/" + name, Token: f.root, Body: in})
	if r.Status == http.StatusOK {
		if err := json.Unmarshal(r.Body, &struct{ Data any }{out}); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func (f *fixture) enqueue(t testing.TB, n int, o jobs.Options) string {
	t.Helper()
	id, err := f.jobs.Enqueue(f.App.App, kind, n, o)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (f *fixture) await(t testing.TB, id string, want jobs.State) jobs.Status {
	t.Helper()
	var s jobs.Status
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		var err error
		if s, err = f.jobs.Get(f.App.App, id); err != nil {
			t.Fatal(err)
		}
		if s.State == want {
			return s
		}
	}
	t.Fatalf("the job is %s (%s), not %s", s.State, s.Err, want)
	return s
}

// Queues that there are not cannot be paused: a mistake in the name is no success.
func TestUnknownQueue(t *testing.T) {
	f := start(t, dying)
	for _, verb := range []string{"pause", "resume"} {
		_, failed := f.run(t, verb, "test")
		if failed == nil || failed.Exit != cli.ExitUsage || failed.What != "there is no such queue" || failed.Why != "the queues are tests" {
			t.Errorf("%s: %+v", verb, failed)
		}
		r := f.operation(t, "jobs."+verb, m{"queue": "test"}, nil)
		if r.Status != http.StatusNotFound || r.Code() != "jobs.queue_unknown" || !strings.Contains(string(r.Body), "the queues are tests") {
			t.Errorf("%s: %d %s", verb, r.Status, r.Body)
		}
	}
	for _, args := range [][]string{{"pause", "tests"}, {"pause", "tests"}, {"resume", "tests"}, {"resume", "tests"}} {
		if out, failed := f.run(t, args...); failed != nil || !strings.Contains(out, "The queue tests is "+args[0]+"d.") {
			t.Errorf("%v: %s %+v", args, out, failed)
		}
	}
	// A queue of an earlier release, with jobs that wait for their kind, is one.
	if _, err := f.NonconcurrentDB().NewQuery(`INSERT INTO ` + table.Queue + ` (id, queue, kind, state, priority, run_at, expires_at, max_attempts, unique_key,
		lane, owner_collection, owner, request, payload, sealed, created_at) VALUES (1, 'old', 'old.kind', 4, 5, 1, 0, 1, '', '', '', '', '', '1', 0, 1)`).Execute(); err != nil {
		t.Fatal(err)
	}
	if out, failed := f.run(t, "pause", "old"); failed != nil {
		t.Errorf("%s %+v", out, failed)
	}
	if _, failed := f.run(t, "pause", "test"); failed == nil || failed.Why != "the queues are old, tests" {
		t.Errorf("%+v", failed)
	}
}

// A dead job that nobody wants is cancelled, and what it was given is gone.
func TestDeleteDead(t *testing.T) {
	f := start(t, dying)
	first, second := f.enqueue(t, 1, jobs.Options{}), f.enqueue(t, 2, jobs.Options{})
	f.await(t, first, jobs.Dead)
	f.await(t, second, jobs.Dead)
	if out, failed := f.run(t, "cancel", first); failed != nil || !strings.Contains(out, first) {
		t.Errorf("%s %+v", out, failed)
	}
	var v table.View
	if r := f.operation(t, "jobs.cancel", m{"id": second}, &v); r.Status != http.StatusOK || v.State != jobs.Cancelled || v.Error != "no" || string(v.Payload) != "null" {
		t.Errorf("%d %s", r.Status, r.Body)
	}
	if s := f.await(t, first, jobs.Cancelled); s.Err != "no" {
		t.Errorf("%+v", s)
	}
	if n := f.count(t, table.Queue); n != 0 {
		t.Errorf("%d jobs are left", n)
	}
	if _, failed := f.run(t, "cancel", first); failed == nil || failed.Exit != cli.ExitError {
		t.Errorf("twice: %+v", failed)
	}
	if r := f.operation(t, "jobs.cancel", m{"id": second}, nil); r.Code() != "jobs.ended" {
		t.Errorf("twice: %d %s", r.Status, r.Body)
	}
	if !slices.Contains(f.audited, `jobs.cancel success {"id":"`+second+`"}`) {
		t.Errorf("audited %v", f.audited)
	}
}

func (f *fixture) count(t testing.TB, from string) (n int) {
	t.Helper()
	if err := f.ConcurrentDB().NewQuery("SELECT count(*) FROM " + from).Row(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// After an outage the dead jobs of a kind are begun again, as many as the operator says.
func TestRetryDead(t *testing.T) {
	f := start(t, dying)
	if err := f.jobs.Pause(f.App.App, "tests"); err != nil {
		t.Fatal(err)
	}
	const dead = 1203
	inputs := make([]any, dead)
	for i := range inputs {
		inputs[i] = i
	}
	ids, err := f.jobs.EnqueueAll(f.App.App, kind, inputs, jobs.Options{Expires: time.Now().Add(-time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	exec := func(statement string) {
		t.Helper()
		if _, err := f.NonconcurrentDB().NewQuery(statement).Execute(); err != nil {
			t.Fatal(err)
		}
	}
	exec(`UPDATE ` + table.Queue + ` SET state = 3, attempt = 9, finished_at = id`)
	exec(fmt.Sprintf(`UPDATE %s SET unique_key = 'twice' WHERE id IN (SELECT id FROM %[1]s ORDER BY id LIMIT 2)`, table.Queue))
	exec(fmt.Sprintf(`UPDATE %s SET unique_key = 'taken' WHERE id = (SELECT max(id) FROM %[1]s)`, table.Queue))
	alive := f.enqueue(t, 1, jobs.Options{Key: "taken"})

	for _, args := range [][]string{
		{"retry"},
		{"retry", "--kind", kind},
		{"retry", "--state", "dead"},
		{"retry", "--kind", kind, "--state", "ready"},
		{"retry", "--kind", kind, "--state", "dead", "--payload", "1"},
		{"retry", "--kind", kind, "--state", "dead", "--limit", "0"},
		{"retry", ids[0], "--kind", kind, "--state", "dead"},
	} {
		if _, failed := f.run(t, args...); failed == nil || failed.Exit != cli.ExitUsage {
			t.Errorf("%v: %+v", args, failed)
		}
	}
	if _, failed := f.run(t, "retry", "--kind", "other", "--state", "dead"); failed == nil || failed.Exit != cli.ExitError {
		t.Errorf("%+v", failed)
	}
	var r table.Revived
	if got := f.operation(t, "jobs.retryDead", m{"kind": kind, "limit": 3}, &r); got.Status != http.StatusOK || r.Retried != 2 || r.Dead != dead-2 || r.Blocked != 2 {
		t.Errorf("%d %s", got.Status, got.Body)
	}
	if !slices.Contains(f.audited, `jobs.retryDead success {"kind":"test.job","retried":2}`) {
		t.Errorf("audited %v", f.audited)
	}
	if got := f.operation(t, "jobs.retryDead", m{"kind": kind, "limit": 1001}, nil); got.Status != http.StatusBadRequest {
		t.Errorf("%d %s", got.Status, got.Body)
	}
	out, failed := f.run(t, "retry", "--kind", kind, "--state", "dead", "--limit", "700")
	if failed != nil || out != "700 jobs of the kind test.job are due now, and 501 are dead still, 2 of these because another job has their key.\n" {
		t.Errorf("%q %+v", out, failed)
	}
	if n := f.count(t, table.Queue+" WHERE state = 0 AND attempt = 0 AND expires_at = 0"); n != 703 { // with the one that was alive
		t.Errorf("%d jobs are due", n)
	}
	out, failed = f.run(t, "retry", "--kind", kind, "--state", "dead", "--json")
	if failed != nil || out != `{"retried":499,"dead":2,"blocked":2}`+"\n" {
		t.Errorf("%q %+v", out, failed)
	}
	if out, failed := f.run(t, "retry", "--kind", kind, "--state", "dead"); failed != nil || !strings.HasPrefix(out, "0 jobs") {
		t.Errorf("%q %+v", out, failed)
	}
	if out, failed := f.run(t, "retry", ids[dead-1]); failed == nil || failed.Why != jobs.ErrKeyTaken.Title {
		t.Errorf("%q %+v", out, failed)
	}
	// They are begun: the server was told.
	if err := f.jobs.Resume(f.App.App, "tests"); err != nil {
		t.Fatal(err)
	}
	f.await(t, ids[5], jobs.Dead)
	f.await(t, alive, jobs.Dead)
}
