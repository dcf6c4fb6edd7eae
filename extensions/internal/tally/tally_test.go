package tally

import (
	"errors"
	"maps"
	"sync"
	"testing"
	"time"
)

func TestHistogram(t *testing.T) {
	h := NewHistogram(time.Millisecond, time.Second)
	var all sync.WaitGroup
	for _, d := range []time.Duration{-time.Hour, time.Millisecond, time.Millisecond + 1, time.Second, time.Minute} {
		all.Go(func() { h.Observe(d) })
	}
	all.Wait()
	got := h.Read()
	if got.Count != 5 || got.Sum < 61 || got.Sum > 61.01 || !maps.Equal(got.Buckets, map[float64]uint64{.001: 2, 1: 4}) {
		t.Errorf("%+v", got)
	}
}

func TestKept(t *testing.T) {
	var k Kept[int]
	reads := 0
	get := func(err error) int {
		return k.Get(func() (int, error) { reads++; return reads, err })
	}
	first, second := get(nil), get(nil)
	if first != 1 || second != 1 || reads != 1 {
		t.Errorf("%d, then %d, by %d reads", first, second, reads)
	}
	k.until = time.Now()
	if get(errors.New("no")) != 1 || reads != 2 {
		t.Errorf("after an error: %d", reads)
	}
	k.until = time.Now()
	k.Get(func() (int, error) { time.Sleep(100 * time.Millisecond); return 3, nil })
	if rest := time.Until(k.until); rest < time.Second {
		t.Errorf("what takes long is read again after %s", rest)
	}
}
