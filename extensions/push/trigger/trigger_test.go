package trigger_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/serial"
	"github.com/satchelbase/satchel/extensions/jobs/table"
	"github.com/satchelbase/satchel/extensions/push/message"
	"github.com/satchelbase/satchel/extensions/push/trigger"
)

// three are triggers with an effect of each kind.
func three(f *fixture) []trigger.Trigger {
	input := func(by string) func(c *trigger.Change) (noted, error) {
		return func(c *trigger.Change) (noted, error) {
			if c.Record != nil && c.Record.GetString("title") == "nothing" {
				return noted{}, trigger.ErrNothing
			}
			return noted{Record: c.ID, By: by}, nil
		}
	}
	return []trigger.Trigger{
		{Name: "job", Collection: "notes", If: `title != "settle"`, Do: trigger.Enqueue(f.jobs, "notes.job", input("job"))},
		{Name: "operation", Collection: "notes", If: `title != "settle"`, Do: trigger.Call(f.ops, "notes.note", input("operation"))},
		{Name: "push", Collection: "notes", If: `title != "settle"`, Do: trigger.Send(f.out, func(c *trigger.Change) (message.Message, error) {
			in, err := input("push")(c)
			return message.Message{To: message.To{Topic: "none"}, Title: "A note", Data: map[string]string{"record": in.Record}}, err
		})},
		settled(),
	}
}

func TestEffects(t *testing.T) {
	f, _ := start(t, t.TempDir(), three)
	var want []string
	for i := range 5 {
		want = append(want, f.write(t, fmt.Sprint("note ", i)).Id)
	}
	f.write(t, "nothing")
	f.settle(t)
	slices.Sort(want)
	for _, by := range []string{"job", "operation"} {
		got := f.effects(t, by)
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", by, got, want)
		}
	}
	var sent []string
	must(t, f.ConcurrentDB().NewQuery("SELECT spec ->> '$.data.record' FROM push_messages WHERE key LIKE 'trigger/push/%' ORDER BY 1").Column(&sent))
	if !slices.Equal(sent, want) {
		t.Errorf("messages: %v, want %v", sent, want)
	}
}

func TestEventsAndConditions(t *testing.T) {
	var gone atomic.Int64
	f, _ := start(t, t.TempDir(), func(*fixture) []trigger.Trigger {
		return []trigger.Trigger{
			settled(), leave("created", `title ~ "a"`), leave("updated", `title = "b"`, trigger.Updated),
			leave("both", `title != "settle"`, trigger.Created, trigger.Updated),
			leave("deleted", "", trigger.Deleted), leave("never", `title != ""`, trigger.Deleted),
			{Name: "elsewhere", Collection: "no_such_collection", Do: func(*trigger.Change) error { return errors.New("called") }},
			{Name: "gone", Collection: "notes", On: []trigger.Event{trigger.Deleted}, Do: func(c *trigger.Change) error {
				if c.Record == nil && c.Event == trigger.Deleted {
					gone.Add(1)
				}
				return nil
			}},
		}
	})
	one, other := f.write(t, "a"), f.write(t, "c")
	f.settle(t)
	for _, title := range []string{"b", "d", "b"} {
		one.Set("title", title)
		must(t, f.Save(one))
		f.settle(t)
	}
	must(t, f.Delete(one))
	f.settle(t)
	for by, want := range map[string][]string{
		"created": {one.Id}, "updated": {one.Id, one.Id}, "both": {one.Id, other.Id, one.Id, one.Id, one.Id}, "deleted": {one.Id}, "never": nil,
	} {
		got := f.effects(t, by)
		if by == "both" { // the first two may change places
			slices.Sort(got)
			slices.Sort(want)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", by, got, want)
		}
	}
	if gone.Load() != 1 {
		t.Errorf("%d deletions were seen without a record", gone.Load())
	}

	// What a raw statement writes is seen, too, and what is rolled back is not.
	_, err := f.NonconcurrentDB().NewQuery("INSERT INTO notes (id, title) VALUES ('raw000000000000', 'a')").Execute()
	must(t, err)
	_ = f.RunInTransaction(func(tx core.App) error {
		r := core.NewRecord(one.Collection())
		r.Set("title", "a")
		must(t, tx.Save(r))
		return errors.New("rolled back")
	})
	f.settle(t)
	if got := f.effects(t, "created"); !slices.Equal(got, []string{one.Id, "raw000000000000"}) {
		t.Errorf("created: %v", got)
	}
}

// What always fails holds up neither the log nor the others. It is tried again, and set aside in the end, until an operator
// decides.
func TestFailing(t *testing.T) {
	var mended atomic.Bool
	fail := func(with func() error) func(c *trigger.Change) error {
		return func(c *trigger.Change) error {
			must(t, note(c.App, noted{Record: c.ID, By: "failing"})) // is rolled back
			if mended.Load() {
				return nil
			}
			return with()
		}
	}
	notSettle := `title != "settle"`
	f, _ := start(t, t.TempDir(), func(f *fixture) []trigger.Trigger {
		return []trigger.Trigger{
			settled(), leave("good", notSettle),
			{Name: "bad", Collection: "notes", If: notSettle, Do: fail(func() error { return errors.New("it always fails") })},
			{Name: "panics", Collection: "notes", If: notSettle, Do: fail(func() error { panic("at the disco") })},
			{Name: "unknown", Collection: "notes", If: notSettle, Do: trigger.Enqueue(f.jobs, "no.such.kind", func(c *trigger.Change) (string, error) { return c.ID, nil })},
			{Name: "refused", Collection: "notes", If: notSettle, Do: trigger.Send(f.out, func(*trigger.Change) (message.Message, error) {
				return message.Message{Title: "To nobody"}, nil
			})},
			leave("broken", `no_such_field = 1`),
		}
	})
	for range 3 {
		f.write(t, "note")
	}
	f.settle(t)
	if got := f.effects(t, "good"); len(got) != 3 {
		t.Errorf("the good one was done %d times", len(got))
	}
	if n := f.count(t, "effects WHERE by = 'failing'"); n != 0 {
		t.Errorf("%d effects of attempts that failed are left", n)
	}
	var behind int
	must(t, f.ConcurrentDB().NewQuery("SELECT count(*) FROM changes_log WHERE seq > (SELECT seq FROM changes_readers WHERE name = 'push.triggers')").Row(&behind))
	if behind != 0 {
		t.Errorf("the triggers are %d changes behind", behind)
	}

	// A condition that does not fit is dead at once, the others after their attempts.
	dead := func(name string) int {
		return f.count(t, table.Queue+` WHERE kind = 'push.trigger' AND state = 3 AND payload ->> '$.trigger' = '`+name+`'`)
	}
	await(t, "the end of the broken condition", func() bool { return dead("broken") == 4 }) // three notes, and that of settle
	for _, name := range []string{"bad", "panics", "unknown", "refused"} {
		await(t, "the last attempt of "+name, func() bool {
			_, err := f.NonconcurrentDB().NewQuery(`UPDATE ` + table.Queue + ` SET attempt = 19, state = 0, run_at = 0
				WHERE kind = 'push.trigger' AND state = 2 AND payload ->> '$.trigger' = '` + name + `'`).Execute()
			must(t, err)
			must(t, f.jobs.Resume(f.App, "triggers")) // which makes it look
			return dead(name) == 3
		})
	}
	var list struct {
		Trigger, Error string
	}
	must(t, f.ConcurrentDB().NewQuery(`SELECT payload ->> '$.trigger' AS trigger, error FROM `+table.Queue+` WHERE payload ->> '$.trigger' = 'bad' LIMIT 1`).One(&list))
	if list.Error != "trigger bad: it always fails" {
		t.Errorf("the operator sees %+v", list)
	}
	if got := f.check(t, "jobs"); got.Level != extensions.Warn || got.Message != "16 jobs are dead" {
		t.Errorf("the check of jobs: %+v", got)
	}

	// Once it is mended, an operator lets it be done.
	mended.Store(true)
	var ids []int64
	must(t, f.ConcurrentDB().NewQuery(`SELECT id FROM `+table.Queue+` WHERE payload ->> '$.trigger' IN ('bad', 'panics')`).Column(&ids))
	for _, id := range ids {
		must(t, f.jobs.Retry(f.App, serial.Format(id), nil))
	}
	await(t, "what was mended", func() bool { return f.count(t, "effects WHERE by = 'failing'") == 6 })
	await(t, "the end of the jobs", func() bool { return dead("bad")+dead("panics") == 0 })
}

// check runs one of the checks that admins see.
func (f *fixture) check(t testing.TB, name string) extensions.Result {
	t.Helper()
	for _, x := range f.list {
		for _, c := range x.Checks {
			if c.Name == name {
				return c.Run(t.Context(), &extensions.Host{App: f.App})
			}
		}
	}
	t.Fatalf("there is no check %s", name)
	return extensions.Result{}
}

// A trigger that is new begins at the present, whatever the others have yet to see; one that was there before misses
// nothing that happens while no server runs.
func TestNewTriggers(t *testing.T) {
	dir := t.TempDir()
	with := func(names ...string) declare {
		return func(*fixture) []trigger.Trigger {
			list := []trigger.Trigger{}
			for _, name := range names {
				list = append(list, leave(name, `title != "settle"`))
			}
			if len(names) > 0 {
				list = append(list, settled())
			}
			return list
		}
	}
	f, stop := start(t, dir, with("old"))
	first := f.write(t, "one").Id
	f.settle(t)
	f.waits.Store(true) // nobody follows, as when no server runs
	await(t, "the follower to rest", func() bool {
		before := f.count(t, "effects")
		f.write(t, "settle")
		return f.count(t, "effects") == before
	})
	second := f.write(t, "two").Id
	stop()

	f, stop = start(t, dir, with("old", "new"))
	third := f.write(t, "three").Id
	f.settle(t)
	if got := f.effects(t, "old"); len(got) < 3 || !slices.Contains(got, first) || !slices.Contains(got, second) || !slices.Contains(got, third) {
		t.Errorf("old: %v", got)
	}
	if got := f.effects(t, "new"); !slices.Equal(got, []string{third}) {
		t.Errorf("new: %v, want %s alone", got, third)
	}
	stop()

	// While it is not declared it sees nothing, and it begins again like a new one, also when there was none at all.
	f, stop = start(t, dir, with())
	f.write(t, "four")
	stop()
	f, _ = start(t, dir, with("new"))
	fifth := f.write(t, "five").Id
	f.settle(t)
	if got := f.effects(t, "new"); !slices.Equal(got, []string{third, fifth}) {
		t.Errorf("new, again: %v, want %v", got, []string{third, fifth})
	}
}

// When the data has gone back in time, or the log has lost what follows the position, the triggers go on at the present.
func TestResets(t *testing.T) {
	for name, harm := range map[string]func(f *fixture) error{
		"restored": func(f *fixture) error {
			_, err := f.log.BeginEpoch()
			return err
		},
		"truncated": func(f *fixture) error {
			return f.RunInTransaction(func(tx core.App) error {
				_, err := tx.NonconcurrentDB().NewQuery("UPDATE changes_state SET log_floor = (SELECT max(seq) - 1 FROM changes_log)").Execute()
				return err
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			all := func(*fixture) []trigger.Trigger {
				return []trigger.Trigger{settled(), leave("note", `title != "settle"`)}
			}
			f, stop := start(t, dir, all)
			seen := f.write(t, "seen").Id
			f.settle(t)
			stop()
			f, stop = start(t, dir, func(f *fixture) []trigger.Trigger {
				f.waits.Store(true)
				return all(f)
			})
			f.write(t, "missed")
			f.write(t, "missed")
			must(t, harm(f))
			stop()
			f, _ = start(t, dir, all)
			await(t, "the present", func() bool {
				return f.count(t, "changes_readers r, changes_state s WHERE r.name = 'push.triggers' AND r.epoch = s.epoch AND r.seq >= s.log_floor") == 1
			})
			f.settle(t)
			later := f.write(t, "later").Id
			f.settle(t)
			if got := f.effects(t, "note"); !slices.Equal(got, []string{seen, later}) {
				t.Errorf("%v, want %v", got, []string{seen, later})
			}
		})
	}
}

func TestMistakes(t *testing.T) {
	do := func(*trigger.Change) error { return nil }
	for name, list := range map[string][]trigger.Trigger{
		"no name":       {{Collection: "notes", Do: do}},
		"no collection": {{Name: "a", Do: do}},
		"no effect":     {{Name: "a", Collection: "notes"}},
		"event":         {{Name: "a", Collection: "notes", On: []trigger.Event{"create"}, Do: do}},
		"twice":         {{Name: "a", Collection: "notes", Do: do}, {Name: "a", Collection: "users", Do: do}},
	} {
		if f := prepare(t, t.TempDir(), t.Output(), func(*fixture) []trigger.Trigger { return list }); f.problem == nil {
			t.Errorf("%s: it starts", name)
			must(t, f.ClearBootstrap())
		}
	}
}

func TestCheck(t *testing.T) {
	for name, c := range map[string]struct {
		list []trigger.Trigger
		want extensions.Level
		text string
	}{
		"none":      {nil, extensions.Skip, "none"},
		"good":      {[]trigger.Trigger{settled(), {Name: "b", Collection: "demo_none", Do: func(*trigger.Change) error { return nil }}}, extensions.OK, "2 triggers, 1 of them"},
		"condition": {[]trigger.Trigger{leave("a", "nothing = 1")}, extensions.Fail, "condition of trigger a"},
		"unseen":    {[]trigger.Trigger{{Name: "a", Collection: core.CollectionNameSuperusers, Do: func(*trigger.Change) error { return nil }}}, extensions.Fail, "not recorded"},
	} {
		f, stop := start(t, t.TempDir(), func(*fixture) []trigger.Trigger { return c.list })
		if got := f.check(t, "push triggers"); got.Level != c.want || !strings.Contains(got.Message, c.text) {
			t.Errorf("%s: %+v", name, got)
		}
		stop()
	}
}
