package live

// Sessions returns the sessions with which an account is connected now, and whether it is at all: a connection by a token
// without a session counts, too. A connection is gone some seconds after its phone.
func (h *Hub) Sessions(collection, id string) (sessions []string, connected bool) {
	h.mu.RLock()
	defer h.mu.RUnlock()
	conns := h.users[collection+"/"+id]
	for c := range conns {
		if who := c.Who.Load(); who != nil && who.Session != "" {
			sessions = append(sessions, who.Session)
		}
	}
	return sessions, len(conns) > 0
}
