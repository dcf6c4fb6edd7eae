// Package script lets JavaScript hooks declare, do and enqueue jobs.
package script

import (
	"context"
	"encoding/json"
	jsonv2 "encoding/json/v2"
	"fmt"
	"time"

	"github.com/dop251/goja"
	"github.com/pocketbase/pocketbase"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/settings"
)

// Event is a job as a handler in JavaScript sees it.
type Event struct {
	hook.Event

	App     core.App
	ID      string
	Kind    string
	Key     string // for other services that take idempotency keys; the same in every attempt
	Attempt int
	Payload any

	job *jobs.Job
}

// Tags lets handlers say which kind they are for.
func (e *Event) Tags() []string { return []string{e.Kind} }

// Once does a step in a transaction, in all attempts together once. What the function returns is nothing to it, unless
// that is an error.
func (e *Event) Once(step string, fn func(tx core.App) (any, error)) error {
	return e.job.Once(e.App, step, func(tx core.App) error {
		value, err := fn(tx)
		if returned, is := value.(error); is && err == nil {
			return returned
		}
		return err
	})
}

// Progress says how much is done.
func (e *Event) Progress(done, total int64) { e.job.Progress(done, total) }

// SetResult is what the owner gets to see.
func (e *Event) SetResult(value any) error { return e.job.SetResult(value) }

// Snooze is what a handler returns to be called again after a while.
func (e *Event) Snooze(wait string) error {
	d, err := settings.ParseDuration(wait)
	if err != nil {
		return jobs.Permanent(err)
	}
	return jobs.Snooze(d)
}

// Fail is what a handler returns when another attempt would fail, too.
func (e *Event) Fail(why string) error { return jobs.Permanent(fmt.Errorf("%s", why)) }

// Script is what JavaScript hooks get of the queue.
type Script struct {
	jobs     *jobs.Jobs
	handlers hook.Hook[*Event]
}

// New returns it for a queue.
func New(j *jobs.Jobs) *Script { return &Script{jobs: j} }

// Host is the application that JavaScript hooks see: PocketBase's with one more event.
type Host struct {
	core.App

	// RootCmd is that of PocketBase, to which hooks may add commands.
	RootCmd *cobra.Command

	script *Script
}

// Host adds the event onJob to those that JavaScript hooks can bind to.
func (s *Script) Host(app core.App) Host {
	h := Host{App: app, script: s}
	if program, ok := app.(*pocketbase.PocketBase); ok {
		h.RootCmd = program.RootCmd
	}
	return h
}

// OnJob is triggered for each attempt at a job whose kind was declared by $jobs.define.
func (h Host) OnJob(kinds ...string) *hook.TaggedHook[*Event] {
	return hook.NewTaggedHook(&h.script.handlers, kinds...)
}

// declaration is what $jobs.define is given. Times are texts such as "30s" or "7d".
type declaration struct {
	Queue     string `json:"queue"`
	Priority  int    `json:"priority"`
	Attempts  int    `json:"attempts"`
	Timeout   string `json:"timeout"`
	FirstWait string `json:"firstWait"`
	MaxWait   string `json:"maxWait"`
	PerLane   int    `json:"perLane"`
	Cron      string `json:"cron"`
	CatchUp   bool   `json:"catchUp"`
	Sealed    bool   `json:"sealed"`
}

// wish is what $jobs.enqueue is given as options, besides the app and the owner.
type wish struct {
	Delay      string `json:"delay"`
	At         string `json:"at"`
	Expires    string `json:"expires"`
	Priority   int    `json:"priority"`
	Key        string `json:"key"`
	KeyByInput bool   `json:"keyByInput"`
	KeyFor     string `json:"keyFor"`
	Lane       string `json:"lane"`
}

// defineScript declares a kind and binds its handler, which PocketBase runs in a runtime of its own, as other hooks. There
// is an onJob where hooks are loaded, and nowhere else.
const defineScript = `(declare) => (kind, options, handler) => {
	if (typeof onJob !== "function") throw new Error("$jobs.define must be called at the top level of a hook file")
	declare(kind, options || {})
	onJob(handler, kind)
}`

// Globals gives a JavaScript runtime $jobs.
//
//	$jobs.define(kind, options, (e) => { … })
//	$jobs.enqueue(kind, payload, options)
//
// Enqueue takes part in the transaction of $app, which within a hook is e.app, or of options.app.
func (s *Script) Globals(vm *goja.Runtime) error {
	object := vm.NewObject()
	define, err := vm.RunString(defineScript)
	if err != nil {
		return fmt.Errorf("prepare $jobs.define: %w", err)
	}
	make, ok := goja.AssertFunction(define)
	if !ok {
		return fmt.Errorf("prepare $jobs.define: it is %s", define)
	}
	defined, err := make(goja.Undefined(), vm.ToValue(s.declare))
	if err != nil {
		return fmt.Errorf("prepare $jobs.define: %w", err)
	}
	if err := object.Set("define", defined); err != nil {
		return fmt.Errorf("set $jobs.define: %w", err)
	}
	err = object.Set("enqueue", func(kind string, payload any, options map[string]any) (string, error) {
		app, known := options["app"].(core.App)
		if !known {
			if app, known = vm.Get("$app").Export().(core.App); !known {
				return "", fmt.Errorf("$jobs.enqueue has no application")
			}
		}
		owner, _ := options["owner"].(*core.Record)
		o, err := parseWish(options)
		if err != nil {
			return "", err
		}
		o.Owner = jobs.OwnerOf(owner)
		return s.jobs.Enqueue(app, kind, payload, o)
	})
	if err != nil {
		return fmt.Errorf("set $jobs.enqueue: %w", err)
	}
	return vm.Set("$jobs", object)
}

func parseWish(options map[string]any) (jobs.Options, error) {
	plain := map[string]any{}
	for name, value := range options {
		if name != "app" && name != "owner" {
			plain[name] = value
		}
	}
	var w wish
	if err := reread(plain, &w); err != nil {
		return jobs.Options{}, err
	}
	o := jobs.Options{Priority: w.Priority, Key: w.Key, KeyByInput: w.KeyByInput, Lane: w.Lane}
	var err error
	if err = readDurations([]string{w.Delay, w.KeyFor}, &o.Delay, &o.KeyFor); err != nil {
		return o, fmt.Errorf("options of a job: %w", err)
	}
	for i, text := range []string{w.At, w.Expires} {
		if text == "" {
			continue
		}
		if *[]*time.Time{&o.At, &o.Expires}[i], err = time.Parse(time.RFC3339, text); err != nil {
			return o, fmt.Errorf("options of a job: %w", err)
		}
	}
	return o, nil
}

// readDurations reads the texts that are not empty, each into its place.
func readDurations(texts []string, into ...*time.Duration) (err error) {
	for i, text := range texts {
		if text == "" {
			continue
		}
		if *into[i], err = settings.ParseDuration(text); err != nil {
			return err
		}
	}
	return nil
}

// reread reads what a script has given into a struct, and refuses what that has not.
func reread(from, into any) error {
	raw, err := json.Marshal(from)
	if err == nil {
		err = jsonv2.Unmarshal(raw, into, jsonv2.RejectUnknownMembers(true))
	}
	if err != nil {
		return fmt.Errorf("options of a job: %w", err)
	}
	return nil
}

// declare is what $jobs.define does in Go.
func (s *Script) declare(kind string, options map[string]any) error {
	var d declaration
	if err := reread(options, &d); err != nil {
		return err
	}
	spec := jobs.Spec[any]{
		Kind: kind, Queue: d.Queue, Priority: d.Priority, Attempts: d.Attempts, PerLane: d.PerLane, Cron: d.Cron, CatchUp: d.CatchUp, Sealed: d.Sealed,
		Work: func(_ context.Context, job *jobs.Job, in any) error {
			return s.handlers.Trigger(&Event{App: s.jobs.App(), ID: job.ID, Kind: job.Kind, Key: job.Key(), Attempt: job.Attempt, Payload: in, job: job})
		},
	}
	if err := readDurations([]string{d.Timeout, d.FirstWait, d.MaxWait}, &spec.Timeout, &spec.FirstWait, &spec.LongestWait); err != nil {
		return fmt.Errorf("job kind %s: %w", kind, err)
	}
	return s.jobs.TryAdd(jobs.Define(spec))
}
