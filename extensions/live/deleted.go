package live

import (
	"sync"

	"github.com/pocketbase/pocketbase/core"
)

// Bounds on the deleted records that are remembered. Those before them are deleted for whoever was sent them.
const (
	maxDeleted      = 4096
	maxDeletedBytes = 8 << 20
)

// graves remembers what records were before they were deleted through the application, so that their rules can be
// evaluated afterwards. It is safe for concurrent use.
type graves struct {
	mu    sync.Mutex
	known map[[2]string]grave
	order [][2]string // oldest first; some are no longer known
	bytes int
}

type grave struct {
	record *core.Record
	size   int
}

// put is called before the record is deleted, and drop if it was not, or is there again.
func (g *graves) put(record *core.Record) {
	was := record.Original()
	size := itemOverhead
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

func (g *graves) drop(collection, id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.remove([2]string{collection, id})
}

func (g *graves) remove(key [2]string) {
	g.bytes -= g.known[key].size
	delete(g.known, key)
}

func (g *graves) find(collection, id string) *core.Record {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.known[[2]string{collection, id}].record
}
