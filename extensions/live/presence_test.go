package live_test

import (
	"slices"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions/live"
	"github.com/satchelbase/satchel/extensions/live/channel"
)

// Others can ask who is connected, and by which sessions.
func TestSessions(t *testing.T) {
	s := start(t)
	ada, token := s.user("ada")
	eve, _ := s.user("eve")
	access, _, id := s.signIn("ada")
	sessions := func(id string) ([]string, bool) { return s.hub.Sessions(ada.Collection().Id, id) }
	first, second := s.connect(token), s.connect(access)
	if list, connected := sessions(ada.Id); !connected || !slices.Equal(list, []string{id}) {
		t.Errorf("sessions %v, %v", list, connected)
	}
	if list, connected := sessions(eve.Id); connected || len(list) > 0 {
		t.Errorf("who is away has the sessions %v, %v", list, connected)
	}
	_ = first.ws.CloseNow()
	_ = second.ws.CloseNow()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		if _, connected := sessions(ada.Id); !connected {
			break
		}
		if time.Now().After(end) {
			t.Fatal("somebody who has left is still connected")
		}
	}
}

// Who acts for a user by a session that may only read says nothing in the user's name.
func TestReadOnlySessionsSayNothing(t *testing.T) {
	all := ""
	s := start(t, func(_ *live.Config, d *live.Deps) {
		d.Channels = []channel.Channel{{Pattern: "room", Join: &all, Publish: &all, Presence: true}}
	})
	s.user("ada")
	access, _, id := s.signIn("ada")
	_, other := s.user("eve")
	s.exec("UPDATE sessions_logins SET read_only = 1 WHERE id = '" + id + "'")
	reader, writer := s.connect(access), s.connect(other)
	join := func(p *phone) {
		p.send(map[string]any{"type": "sub", "sub": "r", "channel": "room"})
		p.next("subbed")
	}
	join(writer)
	join(reader)
	writer.next("presence")
	reader.send(map[string]any{"type": "publish", "sub": "r", "data": "no"})
	reader.next("error")
	reader.send(map[string]any{"type": "presence", "sub": "r", "state": "no"})
	reader.next("error")
	writer.send(map[string]any{"type": "publish", "sub": "r", "data": "yes"})
	if m := reader.next("message"); string(m.Data) != `"yes"` {
		t.Errorf("%s", m.Data)
	}
	writer.quiet(s)
}
