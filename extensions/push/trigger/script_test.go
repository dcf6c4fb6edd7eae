package trigger_test

import (
	"slices"
	"testing"

	"github.com/dop251/goja"

	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/push/trigger"
	"github.com/satchelbase/satchel/extensions/settings"
)

func TestScript(t *testing.T) {
	s := trigger.NewScript(jobs.New(settings.Defaults[jobs.Config]()))
	load, handler := goja.New(), goja.New()
	for _, vm := range []*goja.Runtime{load, handler} {
		must(t, s.Globals(vm))
	}
	must(t, load.Set("onBootstrap", func() {}))
	for _, wrong := range []string{
		`$triggers.on("notes")`, `$triggers.on("notes", {})`, `$triggers.on("notes", { enqueue: "" })`, `$triggers.on("", { enqueue: "a" })`,
		`$triggers.on("notes", { enqueue: "a", on: ["create"] })`, `$triggers.on("notes", { enqueue: "a", on: "created" })`,
		`$triggers.on("notes", { enqueue: "a", when: "b" })`, `$triggers.on("notes", { enqueue: "a", name: "a b" })`,
	} {
		if _, err := load.RunString(wrong); err == nil {
			t.Errorf("%s: no error", wrong)
		}
	}
	if _, err := handler.RunString(`$triggers.on("notes", { enqueue: "a" })`); err == nil {
		t.Error("a trigger can be declared in a handler")
	}
	_, err := load.RunString(`
		$triggers.on("notes", { enqueue: "notes:work" })
		$triggers.on("notes", { name: "again", on: ["updated", "deleted"], if: "title != ''", enqueue: "notes:work" })
	`)
	must(t, err)
	list := s.Triggers()
	if len(list) != 2 || list[0].Name != "notes.notes:work" || list[1].Name != "again" || list[1].If != "title != ''" ||
		!slices.Equal(list[1].On, []trigger.Event{trigger.Updated, trigger.Deleted}) {
		t.Errorf("%+v", list)
	}
}
