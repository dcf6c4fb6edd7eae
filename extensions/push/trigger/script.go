package trigger

import (
	"encoding/json"
	jsonv2 "encoding/json/v2"
	"errors"
	"fmt"

	"github.com/dop251/goja"

	"github.com/satchelbase/satchel/extensions/jobs"
)

// Script collects the triggers that JavaScript hooks declare while they are loaded.
type Script struct {
	jobs *jobs.Jobs
	list []Trigger
}

// NewScript returns it for a queue.
func NewScript(queue *jobs.Jobs) *Script { return &Script{jobs: queue} }

// Triggers are those that were declared.
func (s *Script) Triggers() []Trigger { return s.list }

// declaration is what $triggers.on is given.
type declaration struct {
	Name    string  `json:"name"`
	On      []Event `json:"on"`
	If      string  `json:"if"`
	Enqueue string  `json:"enqueue"`
}

// seen is what the job is given.
type seen struct {
	Trigger    string `json:"trigger"`
	Event      Event  `json:"event"`
	Collection string `json:"collection"`
	Record     string `json:"record"`
	Key        string `json:"key"`
}

// onScript declares a trigger where hooks are loaded, and nowhere else.
const onScript = `(declare) => (collection, options) => {
	if (typeof onBootstrap !== "function") throw new Error("$triggers.on must be called at the top level of a hook file")
	declare(collection, options || {})
}`

// Globals gives a JavaScript runtime $triggers.
//
//	$triggers.on("orders", { on: ["created", "updated"], if: "total > 100", enqueue: "orders.confirm" })
//
// The job, which $jobs.define declares, is given { trigger, event, collection, record, key }.
func (s *Script) Globals(vm *goja.Runtime) error {
	prepared, err := vm.RunString(onScript)
	if err != nil {
		return fmt.Errorf("prepare $triggers.on: %w", err)
	}
	bind, ok := goja.AssertFunction(prepared)
	if !ok {
		return fmt.Errorf("prepare $triggers.on: it is %s", prepared)
	}
	on, err := bind(goja.Undefined(), vm.ToValue(s.declare))
	if err != nil {
		return fmt.Errorf("prepare $triggers.on: %w", err)
	}
	object := vm.NewObject()
	if err := object.Set("on", on); err != nil {
		return fmt.Errorf("set $triggers.on: %w", err)
	}
	return vm.Set("$triggers", object)
}

// declare is what $triggers.on does in Go.
func (s *Script) declare(collection string, options map[string]any) error {
	raw, err := json.Marshal(options)
	if err != nil {
		return fmt.Errorf("options of a trigger: %w", err)
	}
	var d declaration
	if err := jsonv2.Unmarshal(raw, &d, jsonv2.RejectUnknownMembers(true)); err != nil {
		return fmt.Errorf("options of a trigger: %w", err)
	}
	if d.Enqueue == "" {
		return errors.New("options of a trigger: enqueue must be the kind of a job")
	}
	if d.Name == "" {
		d.Name = collection + "." + d.Enqueue
	}
	one := Trigger{Name: d.Name, Collection: collection, On: d.On, If: d.If, Do: Enqueue(s.jobs, d.Enqueue, func(c *Change) (seen, error) {
		return seen{d.Name, c.Event, collection, c.ID, c.Key}, nil
	})}
	if err := one.mistake(); err != nil {
		return err
	}
	s.list = append(s.list, one)
	return nil
}
