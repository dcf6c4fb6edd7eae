package outbound_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
)

// call makes one and tells whether it was let through.
func call(b *outbound.Breakers, key string, well bool) bool {
	done, _ := b.Allow(key)
	if done == nil {
		return false
	}
	if well {
		done(nil)
	} else {
		done(errors.New("down"))
	}
	return true
}

func TestBreaker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := outbound.NewBreakers(0)
		for i := range 10 {
			if !call(b, "down", false) {
				t.Fatalf("refused after %d failures", i)
			}
		}
		if done, wait := b.Allow("down"); done != nil || wait != 30*time.Second {
			t.Errorf("after ten failures: passed %v, wait %v", done != nil, wait)
		}
		for range 30 {
			if done, _ := b.Allow("hasty"); done == nil {
				t.Fatal("callers that gave up count as failures")
			} else {
				done(context.Canceled)
			}
		}
		if !call(b, "other", true) {
			t.Error("another host is refused")
		}
		time.Sleep(10 * time.Second)
		if done, wait := b.Allow("down"); done != nil || wait != 20*time.Second {
			t.Errorf("10 s later: passed %v, wait %v", done != nil, wait)
		}
		time.Sleep(21 * time.Second)
		probe, _ := b.Allow("down")
		if probe == nil {
			t.Fatal("no call may try")
		}
		if second, _ := b.Allow("down"); second != nil {
			t.Error("two calls may try at once")
		}
		probe(nil)
		if !call(b, "down", true) {
			t.Error("the host is well and refused")
		}
	})
}

func TestBreakerShare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := outbound.NewBreakers(time.Minute)
		for i := range 20 {
			if !call(b, "half", i%2 == 0) {
				t.Fatalf("refused after %d calls", i)
			}
		}
		if call(b, "half", true) {
			t.Error("half of twenty calls failed and the next passes")
		}
		for i := range 40 { // more failures than successes, but never in one window
			time.Sleep(30 * time.Second)
			if !call(b, "rare", i%3 == 0) {
				t.Fatalf("refused for old failures, call %d", i)
			}
		}
	})
}

// A call that ended without an answer after the longest time counts.
func TestBreakerSlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := outbound.NewBreakers(0)
		for range 10 {
			done, _ := b.Allow("slow")
			if done == nil {
				t.Fatal("refused too early")
			}
			time.Sleep(outbound.Timeout)
			done(context.DeadlineExceeded)
		}
		if call(b, "slow", true) {
			t.Error("a host that does not answer is called on")
		}
	})
}

// Hosts that clients make up must not fill the memory, nor close a breaker that is open.
func TestBreakersAreBounded(t *testing.T) {
	b := outbound.NewBreakers(time.Hour)
	for range 10 {
		call(b, "down", false)
	}
	for i := range 10_000 {
		call(b, fmt.Sprint(i), true)
	}
	if call(b, "down", true) {
		t.Error("the open breaker was forgotten")
	}
	if n := outbound.Kept(b); n > 4096 {
		t.Errorf("%d breakers are kept", n)
	}
}
