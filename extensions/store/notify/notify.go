// Package notify tells those who asked that something has happened, without a lock.
package notify

import "sync/atomic"

// List is a list of functions. It is safe for concurrent use; the zero value is empty.
type List struct{ list atomic.Pointer[[]func()] }

// Add puts a function on the list.
func (n *List) Add(fn func()) {
	for {
		old := n.list.Load()
		list := []func(){fn}
		if old != nil {
			list = append(list, *old...)
		}
		if n.list.CompareAndSwap(old, &list) {
			return
		}
	}
}

// Call calls all of them.
func (n *List) Call() {
	if list := n.list.Load(); list != nil {
		for _, fn := range *list {
			fn()
		}
	}
}
