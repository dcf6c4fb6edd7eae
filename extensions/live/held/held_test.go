package held

import (
	"slices"
	"testing"
)

// A record that left and came back is as new as when it came back: forgotten too early, it would never leave again.
func TestWhatComesBackIsNew(t *testing.T) {
	for name, between := range map[string]func(*Set){"": func(*Set) {}, "listed anew": (*Set).Relist} {
		s := &Set{}
		add := func(ids ...string) {
			for _, id := range ids {
				s.Add(id, 1, 3)
			}
		}
		equal := func(want ...string) {
			t.Helper()
			if got := slices.Sorted(slices.Values(s.List())); !slices.Equal(got, want) {
				t.Errorf("%s: holds %v, want %v", name, got, want)
			}
		}
		add("a", "b")
		s.Remove("a")
		add("a")
		between(s)
		equal("a", "b")
		add("c")
		equal("a", "b", "c")
		add("d")
		equal("a", "c", "d")
		between(s)
		add("e")
		equal("c", "d", "e")
	}
}
