package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
)

func subscribe(ctx context.Context, t *testing.T, b Bus, topic string) *Subscription {
	t.Helper()
	s, err := b.Subscribe(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func publish(t *testing.T, b Bus, topic, text string) {
	t.Helper()
	if err := b.Publish(t.Context(), topic, []byte(text)); err != nil {
		t.Fatal(err)
	}
}

func TestTopics(t *testing.T) {
	b := &Local{}
	one, two, other := subscribe(t.Context(), t, b, "a"), subscribe(t.Context(), t, b, "a"), subscribe(t.Context(), t, b, "b")
	publish(t, b, "a", "1")
	publish(t, b, "a", "2")
	publish(t, b, "nobody", "3")
	for _, s := range []*Subscription{one, two} {
		if first, second := string(<-s.Messages()), string(<-s.Messages()); first != "1" || second != "2" {
			t.Errorf("%s, %s", first, second)
		}
	}
	select {
	case m := <-other.Messages():
		t.Errorf("%s came to the wrong topic", m)
	default:
	}
}

func TestSlowSubscriberIsTold(t *testing.T) {
	b := &Local{}
	slow, fast := subscribe(t.Context(), t, b, "a"), subscribe(t.Context(), t, b, "a")
	for i := range buffer + 1 {
		publish(t, b, "a", fmt.Sprint(i))
		<-fast.Messages()
	}
	n := 0
	for range slow.Messages() {
		n++
	}
	if n != buffer || !errors.Is(slow.Err(), ErrLagged) || fast.Err() != nil {
		t.Errorf("%d messages, %v, %v", n, slow.Err(), fast.Err())
	}
	publish(t, b, "a", "on")
	if got := string(<-fast.Messages()); got != "on" {
		t.Errorf("%s", got)
	}
}

func TestContextEndsASubscription(t *testing.T) {
	b := &Local{}
	ctx, cancel := context.WithCancel(t.Context())
	s := subscribe(ctx, t, b, "a")
	publish(t, b, "a", "before")
	cancel()
	if got := string(<-s.Messages()); got != "before" {
		t.Errorf("%q", got)
	}
	if _, more := <-s.Messages(); more || !errors.Is(s.Err(), context.Canceled) {
		t.Errorf("%v, %v", more, s.Err())
	}
	if len(b.topics) != 0 {
		t.Error("the topic is still held")
	}
	if err := b.Publish(ctx, "a", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	if _, err := b.Subscribe(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

func TestClose(t *testing.T) {
	b := &Local{}
	s := subscribe(t.Context(), t, b, "a")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, more := <-s.Messages(); more || !errors.Is(s.Err(), ErrClosed) {
		t.Errorf("%v, %v", more, s.Err())
	}
	if err := b.Publish(t.Context(), "a", nil); !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
	if _, err := b.Subscribe(t.Context(), "a"); !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
}

// Publishing, lagging, cancelling and closing at the same time must not send on a closed channel nor deadlock.
func TestEverythingAtOnce(t *testing.T) {
	b := &Local{}
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			for range 50 {
				ctx, cancel := context.WithCancel(context.Background())
				s, err := b.Subscribe(ctx, "a")
				for n := 0; err == nil && n < 2*buffer; n++ {
					err = b.Publish(ctx, "a", nil)
					if i%2 == 0 {
						<-s.Messages()
					}
				}
				cancel()
			}
		})
	}
	all.Wait()
	_ = b.Close()
}
