package live_test

import (
	"slices"
	"testing"
	"time"
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
