package judge

import (
	"sync"

	"github.com/pocketbase/pocketbase/core"
)

// Bounds on the deleted records that are remembered. Those before them are deleted for whoever was sent them.
const (
	maxDeleted      = 4096
	maxDeletedBytes = 8 << 20
	recordOverhead  = 200 // about what a record takes beside its texts
)

// Graves remembers what records were before they were deleted through the application, so that their rules can be
// evaluated afterwards. The zero value is ready; it is safe for concurrent use.
type Graves struct {
	mu    sync.Mutex
	known map[[2]string]grave
	order [][2]string // oldest first; some are no longer known
	bytes int
}

type grave struct {
	record *core.Record
	size   int
}

// Put is called before the record is deleted, and Drop if it was not, or is there again.
func (g *Graves) Put(record *core.Record) {
	was := record.Original()
	size := recordOverhead
	for _, f := range was.Collection().Fields {
		size += len(was.GetString(f.GetName()))
	}
	if size > maxDeletedBytes/8 {
		return
	}
	key := [2]string{was.Collection().Id, was.Id}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.known == nil {
		g.known = map[[2]string]grave{}
	}
	g.remove(key)
	g.known[key] = grave{was, size}
	g.bytes += size
	g.order = append(g.order, key)
	for len(g.order) > maxDeleted || g.bytes > maxDeletedBytes {
		g.remove(g.order[0])
		g.order = g.order[1:]
	}
}

// Keep is called before a record is updated or deleted, to remember what it was first; one that is remembered already stays.
func (g *Graves) Keep(record *core.Record) {
	if g.Find(record.Collection().Id, record.Id) == nil {
		g.Put(record)
	}
}

// Take finds a record and forgets it.
func (g *Graves) Take(collection, id string) *core.Record {
	g.mu.Lock()
	defer g.mu.Unlock()
	key := [2]string{collection, id}
	record := g.known[key].record
	g.remove(key)
	return record
}

// Drop forgets a record.
func (g *Graves) Drop(collection, id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.remove([2]string{collection, id})
}

func (g *Graves) remove(key [2]string) {
	g.bytes -= g.known[key].size
	delete(g.known, key)
}

// Find returns what a record was, nil if that is not known.
func (g *Graves) Find(collection, id string) *core.Record {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.known[[2]string{collection, id}].record
}
