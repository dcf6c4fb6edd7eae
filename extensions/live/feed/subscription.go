package feed

import (
	"slices"

	"github.com/satchelbase/satchel/extensions/live/held"
	"github.com/satchelbase/satchel/extensions/live/judge"
	"github.com/satchelbase/satchel/extensions/live/watch"
)

// Sub is one subscription of a connection to a collection or a record.
//
// It is either live, then the hub sends what happens, or pending, then its connection reads the log by itself from where
// the subscription stands until it has reached the hub.
type Sub struct {
	Name string // what the client calls it; the whole topic in the stock contract
	watch.Watch

	conn *Conn // set by Add

	// The connection's lock guards these.
	At    int64  // pending: everything up to here was sent; live: what is not after it was sent before
	group *group // where the hub finds it, nil while it is pending
	ended bool
	told  bool // a reset waits for the client to read it

	toldTo int64 // what others have changed up to here was compared and told as a reset

	// Only the pump uses these while the subscription is pending, and whoever makes it so.
	doubt  bool         // what the client holds must be looked at before the subscription is live
	claim  bool         // so must what it says that it holds, before it is sent anything that could drive that out
	was    groupKey     // where it was live last
	missed judge.Shifts // what its rules read has changed while it was pending

	owed []*judge.Shifts // what was to be compared when it ceased to be live; the hub's lock guards these

	redefined bool // its rules may have changed while it was pending

	held held.Set
}

// Hold believes for the time being that the client holds records. It is told of those that it may not see.
func (s *Sub) Hold(ids []string, limit int) {
	for _, id := range ids {
		s.held.Add(id, s.At, max(limit, len(ids)))
	}
	s.doubt, s.claim = len(ids) > 0, len(ids) > 0
}

// owe remembers what is still to be compared for a class. The hub's lock and that of the
// connection are held.
func (s *Sub) owe(k *judge.Class) {
	if k == nil {
		return
	}
	for _, shifts := range slices.Concat(k.Comparing, k.Shifted) {
		if shifts.Seq > s.toldTo && !slices.Contains(s.owed, shifts) {
			s.owed = append(s.owed, shifts)
		}
	}
}
