// Package bus carries small messages between the parts of the program, and later between its machines: "this cache entry
// is stale", "there is something new to read". It has no settings, tables or routes.
//
// A message is a hint and never the truth: it can be lost, and whoever was not listening does not get it. What a message
// points to is read from the database, and every subscriber must be able to begin from there. Therefore a subscriber that
// is too slow for its buffer is cut off and told so, instead of missing messages without knowing: it begins again.
//
// A Bus serves this process through channels. It is safe for concurrent use.
package bus

import (
	"context"
	"errors"
	"sync"
)

// buffer is how many messages may wait for one subscriber.
const buffer = 256

// Reasons why a subscription has ended.
var (
	// ErrLagged: the subscriber was too slow. It must subscribe again and read the database anew.
	ErrLagged = errors.New("the subscriber has missed messages")

	// ErrClosed: the bus is closed.
	ErrClosed = errors.New("the bus is closed")
)

// Bus publishes and subscribes by topic. Topics are dotted words such as "collections.changed".
type Bus interface {
	// Publish sends data to all who listen to the topic now and waits for nobody. data must not be changed afterwards.
	Publish(ctx context.Context, topic string, data []byte) error

	// Subscribe listens to one topic until the context ends.
	Subscribe(ctx context.Context, topic string) (*Subscription, error)
}

// Subscription receives the messages of one topic in the order of their publication.
type Subscription struct {
	messages chan []byte

	mu  sync.Mutex
	err error
}

// Messages is closed when the subscription ends, after the messages that came before.
func (s *Subscription) Messages() <-chan []byte { return s.messages }

// Err is why the subscription has ended: [ErrLagged], [ErrClosed] or the error of its context; nil while it lasts.
func (s *Subscription) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// send reports whether the subscription goes on.
func (s *Subscription) send(data []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return false
	}
	select {
	case s.messages <- data:
		return true
	default:
		s.err = ErrLagged
		close(s.messages)
		return false
	}
}

func (s *Subscription) end(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
		close(s.messages)
	}
}

// Local is the bus of one process. The zero value is ready.
type Local struct {
	mu     sync.Mutex
	topics map[string]map[*Subscription]struct{}
	closed bool
}

// Publish implements [Bus].
func (b *Local) Publish(ctx context.Context, topic string, data []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return ErrClosed
	}
	for s := range b.topics[topic] {
		if !s.send(data) {
			b.remove(topic, s)
		}
	}
	return nil
}

// Subscribe implements [Bus].
func (b *Local) Subscribe(ctx context.Context, topic string) (*Subscription, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := &Subscription{messages: make(chan []byte, buffer)}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, ErrClosed
	}
	if b.topics == nil {
		b.topics = map[string]map[*Subscription]struct{}{}
	}
	if b.topics[topic] == nil {
		b.topics[topic] = map[*Subscription]struct{}{}
	}
	b.topics[topic][s] = struct{}{}
	context.AfterFunc(ctx, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.remove(topic, s)
		s.end(ctx.Err())
	})
	return s, nil
}

// Close ends all subscriptions and refuses new ones.
func (b *Local) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for _, subscriptions := range b.topics {
		for s := range subscriptions {
			s.end(ErrClosed)
		}
	}
	clear(b.topics)
	return nil
}

func (b *Local) remove(topic string, s *Subscription) {
	delete(b.topics[topic], s)
	if len(b.topics[topic]) == 0 {
		delete(b.topics, topic)
	}
}
