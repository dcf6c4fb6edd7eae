package sessions

import (
	"time"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
)

const (
	// expiryEvery is how often connections are asked whether the token they were authorized with has expired.
	expiryEvery = 30 * time.Second

	// connectionGrace is how long a connection outlives its token. The app refreshes about when the token expires, and
	// subscribes anew.
	connectionGrace = time.Minute
)

// bindRealtime remembers with which credential a connection was authorized. PocketBase looks at it only then.
func (s *Sessions) bindRealtime(app core.App) {
	app.OnRealtimeSubscribeRequest().BindFunc(func(e *core.RealtimeSubscribeRequestEvent) error {
		if err := e.Next(); err != nil {
			return err
		}
		e.Client.Unset(credentialKey)
		if c := Current(e.RequestEvent); c != nil {
			e.Client.Set(credentialKey, c)
		}
		return nil
	})
}

// dropConnections closes the connections whose session has ended or whose token has expired.
func (s *Sessions) dropConnections() {
	broker := s.app.SubscriptionsBroker()
	for id, client := range broker.Clients() {
		c, _ := client.Get(credentialKey).(*Credential)
		if c == nil || s.stillGood(c) {
			continue
		}
		client.Unset(apis.RealtimeClientAuthKey) // first: a message may be on its way
		broker.Unregister(id)
	}
}

func (s *Sessions) stillGood(c *Credential) bool {
	now := s.now()
	if !c.Expires.IsZero() && now.After(c.Expires.Add(connectionGrace)) {
		return false
	}
	if c.SessionID == "" {
		return true
	}
	l, err := findLogin(s.app.ConcurrentDB(), c.SessionID)
	if err != nil {
		return codeOf(err) != ErrTokenRevoked // a database that does not answer ends no connections
	}
	return l.alive(now)
}
