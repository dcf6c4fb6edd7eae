package live_test

import (
	"fmt"
	"testing"

	"github.com/pocketbase/pocketbase/core"
)

// Those for whom other records come or go because a membership has changed are told to list anew, and nobody else is.
func TestVisibility(t *testing.T) {
	s := start(t)
	ada, adas := s.user("ada")
	eve, eves := s.user("eve")
	first := s.record("teams", map[string]any{"name": "first", "members": []string{ada.Id}})
	second := s.record("teams", map[string]any{"name": "second", "members": []string{eve.Id}})
	for _, team := range []*core.Record{first, second} {
		s.record("cards", map[string]any{"team": team.Id})
	}
	a, e := s.connect(adas), s.connect(eves)
	for _, p := range []*phone{a, e} {
		p.sub("c", map[string]any{"collection": "cards"})
		p.sub("other", map[string]any{"collection": "posts"})
	}
	listsAnew := func(p *phone, others ...*phone) {
		t.Helper()
		if r := p.next("reset"); r.Sub != "c" || r.Reason != "visibility" || r.Cursor == "" {
			t.Fatalf("%+v", r)
		}
		for _, o := range others {
			o.quiet(s)
		}
	}
	// One is gained, one is lost that was never sent.
	s.set(first, map[string]any{"members": []string{ada.Id, eve.Id}})
	listsAnew(e, a)
	s.set(first, map[string]any{"name": "renamed"})
	s.set(second, map[string]any{"members": []string{}})
	listsAnew(e, a)
	s.set(second, map[string]any{"members": []string{ada.Id}})
	listsAnew(a, e)

	// A membership that nobody saw change.
	s.exec(fmt.Sprintf("UPDATE teams SET members = json_array('%s') WHERE id = '%s'", eve.Id, second.Id))
	listsAnew(e)

	// Deleted teams take their cards along, which is told by the cards themselves; those of others stay.
	third := s.record("teams", map[string]any{"members": []string{ada.Id}})
	card := s.record("cards", map[string]any{"team": third.Id})
	if m := a.next("event"); m.ID != card.Id {
		t.Fatalf("%+v", m)
	}
	s.remove(third)
	if m := a.next("event"); m.Action != "delete" || m.ID != card.Id {
		t.Fatalf("%+v", m)
	}
	e.quiet(s)
}

// Somebody who comes back learns that other records have come or gone meanwhile.
func TestVisibilityWhileAway(t *testing.T) {
	s := start(t)
	ada, token := s.user("ada")
	eve, _ := s.user("eve")
	team, other := s.record("teams", nil), s.record("teams", nil)
	s.record("cards", map[string]any{"team": team.Id})
	away := func(change func()) *phone {
		t.Helper()
		p := s.connect(token)
		cursor := p.sub("c", map[string]any{"collection": "cards"}).Cursor
		_ = p.ws.CloseNow()
		change()
		p = s.connect(token)
		p.sub("c", map[string]any{"collection": "cards", "cursor": cursor})
		return p
	}
	away(func() { s.set(other, map[string]any{"members": []string{eve.Id}}) }).quiet(s)
	away(func() { s.set(team, map[string]any{"members": []string{eve.Id}}) }).quiet(s)
	p := away(func() { s.set(team, map[string]any{"members": []string{ada.Id, eve.Id}}) })
	if r := p.next("reset"); r.Reason != "visibility" || r.Sub != "c" {
		t.Errorf("%+v", r)
	}
	p = away(func() {
		cards, err := s.FindCollectionByNameOrId("cards")
		if err != nil {
			t.Fatal(err)
		}
		cards.ListRule = new("")
		s.save(cards)
	})
	if r := p.next("reset"); r.Reason != "visibility" || r.Sub != "c" {
		t.Errorf("%+v", r)
	}
}
