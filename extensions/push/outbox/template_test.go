package outbox_test

import (
	"maps"
	"net/http"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/push"
	"github.com/satchelbase/satchel/extensions/push/console"
	"github.com/satchelbase/satchel/extensions/push/message"
	"github.com/satchelbase/satchel/extensions/push/outbox"
	"github.com/satchelbase/satchel/extensions/push/template"
)

// A message has the texts that its template had when it was asked for, and says which these were.
func TestTemplates(t *testing.T) {
	f := start(t, options{deps: func(d *push.Deps) {
		d.Templates = []message.Template{{Name: "meetings.moved", Texts: template.Texts{"default": {Title: "Declared: {time}"}}}}
	}})
	ada, _ := f.user(t, "ada")
	ask := func(more m) m {
		in := m{"to": m{"users": []string{ada}}, "template": "meetings.moved", "values": m{"time": "15:00"}, "key": "first"}
		maps.Copy(in, more)
		return in
	}
	later := time.Now().Add(time.Hour).UTC().Format(time.RFC3339)
	first := f.send(t, ask(m{"sendAt": later}))
	save := func(version int, title string) {
		t.Helper()
		r := f.operation(t, "push.template.save", m{"name": "meetings.moved", "version": version, "texts": m{"default": m{"title": title}}}, nil)
		if r.Status != http.StatusOK {
			t.Fatalf("save: %d %s", r.Status, r.Body)
		}
	}
	save(0, "Saved: {time}")
	var shown console.Preview
	f.operation(t, "push.preview", m{"template": "meetings.moved", "values": m{"time": "16:00"}}, &shown)
	if shown.Title != "Saved: 16:00" || shown.Version != 1 {
		t.Errorf("preview %+v", shown)
	}
	if again := f.send(t, ask(m{"sendAt": later})); !again.Duplicate || again.ID != first.ID {
		t.Errorf("the same message with another wording: %+v", again)
	}
	own := m{"to": m{"users": []string{ada}}, "template": "own", "key": "own", "sendAt": later}
	f.operation(t, "push.template.save", m{"name": "own", "version": 0, "texts": m{"default": m{"title": "Own"}}}, nil)
	sentOwn := f.send(t, own)
	f.operation(t, "push.template.remove", m{"name": "own", "version": 1}, nil)
	if again := f.send(t, own); !again.Duplicate || again.ID != sentOwn.ID {
		t.Errorf("the same message without its template: %+v", again)
	}
	f.operation(t, "push.cancel", m{"id": sentOwn.ID}, nil)
	second := f.send(t, ask(m{"key": "second"}))
	save(1, "Again: {time}")
	f.done(t, second.ID)
	f.hurry(t, "push.fanout")
	f.done(t, first.ID)

	var titles []string
	for _, a := range f.box.List("apns") {
		titles = append(titles, a.Title)
	}
	if len(titles) != 2 || titles[0] == titles[1] || titles[0] != "Declared: 15:00" && titles[1] != "Declared: 15:00" || titles[0] != "Saved: 15:00" && titles[1] != "Saved: 15:00" {
		t.Errorf("sent %q", titles)
	}
	for id, version := range map[string]int{first.ID: 0, second.ID: 1} {
		if v := f.show(t, id); v.Template != "meetings.moved" || v.Version != version {
			t.Errorf("%s was sent with %s %d, not %d", id, v.Template, v.Version, version)
		}
	}
	f.send(t, m{"to": m{"users": []string{ada}}, "title": "without"})
	for query, want := range map[string]int{"": 4, "?template=meetings.moved": 2} {
		var page outbox.Page
		decode(t, f.get(t, "push.messages"+query), &page)
		if len(page.Messages) != want {
			t.Errorf("%s: %d messages", query, len(page.Messages))
		}
	}
	if r := f.operation(t, "push.send", ask(m{"template": "other", "key": ""}), nil); r.Status != http.StatusBadRequest {
		t.Errorf("no such template: %d %s", r.Status, r.Body)
	}
}

// The columns that were added later can be dropped and added again.
func TestColumns(t *testing.T) {
	f := start(t, options{})
	later := outbox.Migrations()[1]
	for _, change := range []func(app core.App) error{later.Down, later.Up} {
		if err := f.RunInTransaction(change); err != nil {
			t.Error(err)
		}
	}
	if v := f.show(t, f.send(t, m{"to": m{"all": true}, "title": "Hello"}).ID); v.Template != "" || v.Version != 0 {
		t.Errorf("%+v", v)
	}
}
