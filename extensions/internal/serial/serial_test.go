package serial

import (
	"slices"
	"sync"
	"testing"
	"time"
)

func TestCounter(t *testing.T) {
	var c Counter
	var mu sync.Mutex
	var all []int64
	var work sync.WaitGroup
	for range 4 {
		work.Go(func() {
			last := int64(0)
			for range 1000 {
				id := c.Next(time.UnixMilli(1_800_000_000_000))
				if id <= last {
					t.Errorf("%d after %d", id, last)
				}
				last = id
				mu.Lock()
				all = append(all, id)
				mu.Unlock()
			}
		})
	}
	work.Wait()
	slices.Sort(all)
	if n := len(slices.Compact(all)); n != 4000 {
		t.Errorf("%d numbers", n)
	}
	if later := c.Next(time.UnixMilli(1_800_000_000_001)); later <= all[len(all)-1] {
		t.Error("a later number is not larger")
	}
}

func TestParse(t *testing.T) {
	if id, err := Parse(Format(1<<62 + 12345)); err != nil || id != 1<<62+12345 {
		t.Errorf("%d %v", id, err)
	}
	for _, bad := range []string{"", "0", "-1", "01", "Z", "1 ", "zzzzzzzzzzzzzzzz"} {
		if id, err := Parse(bad); err != ErrForm { //nolint:errorlint // it is returned as it is
			t.Errorf("%q: %d %v", bad, id, err)
		}
	}
}
