package doors

import (
	"fmt"
	"testing"
	"time"
)

// However much waits, a document that has just come is waited for: it would be refused otherwise, and be lost on the device.
func TestOthersCannotFillTheQueue(t *testing.T) {
	w, now := newWaiting(), time.Now()
	for i := range 2 * maxWaiting {
		w.wait(fmt.Sprint("theirs", i), []string{"x"}, now)
		w.refuse(fmt.Sprint("refused", i), now)
	}
	if !w.wait("mine", []string{"parent"}, now) {
		t.Error("nobody waits for the document")
	}
	w.refuse("parent", now)
	if w.wait("mine", []string{"parent"}, now) {
		t.Error("the document waits for what was refused")
	}
	if len(w.since) > maxWaiting || len(w.refused) > maxWaiting {
		t.Errorf("%d and %d are remembered", len(w.since), len(w.refused))
	}
}

// A change that could not be judged at once, and then was, is waited for when the same record cannot be judged another day.
func TestWaitingBeginsAnew(t *testing.T) {
	w, now := newWaiting(), time.Now()
	if !w.wait("a", nil, now) || w.wait("a", nil, now.Add(patience)) {
		t.Error("it waits for as long as that takes")
	}
	w.done("a")
	if !w.wait("a", nil, now.Add(time.Hour)) {
		t.Error("it is given up at once")
	}
}
