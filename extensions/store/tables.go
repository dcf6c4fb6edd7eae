package store

import (
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/satchelbase/satchel/extensions/store/statement"
)

// change is what a transaction may have changed so far.
type change struct {
	everything bool
	tables     []string
}

func (c *change) add(st statement.Statement) {
	if st.Verb != statement.Write || st.Script || st.Table == "" {
		c.everything = true
		return
	}
	if !slices.Contains(c.tables, st.Table) {
		c.tables = append(c.tables, st.Table)
	}
}

func (c *change) empty() bool { return !c.everything && len(c.tables) == 0 }

func (c *change) reset() { c.everything, c.tables = false, c.tables[:0] }

// tables counts the commits that may have changed each table.
type tables struct {
	all      atomic.Uint64
	own      sync.Map // lower-case name -> *atomic.Uint64
	triggers bool     // guarded by the gate: a write to one table may change another
	schema   int64    // guarded by the gate: the version of the schema that triggers was found in
}

func (t *tables) count(table string) {
	n, _ := t.own.LoadOrStore(table, new(atomic.Uint64))
	if n, ok := n.(*atomic.Uint64); ok {
		n.Add(1)
	}
}

// of is a number that grows whenever the table's or the common count does.
func (t *tables) of(table string) uint64 {
	sum := t.all.Load()
	if n, ok := t.own.Load(table); ok {
		if n, ok := n.(*atomic.Uint64); ok {
			sum += n.Load()
		}
	}
	return sum
}

// announce makes a commit known: the version changes, and that of every table it may have changed. It comes after the
// commit is visible and before the writer returns. The caller holds the gate.
func (f *file) announce(c *change) {
	if c.everything {
		f.bump()
		return
	}
	if f.tables.triggers {
		f.tables.all.Add(1)
	}
	for _, table := range c.tables {
		f.tables.count(table)
	}
	f.advance()
}

// bump makes known that anything may have changed, the triggers included. The caller holds the gate.
func (f *file) bump() {
	if f.writer != nil {
		f.lookForTriggers()
	}
	f.tables.all.Add(1)
	f.advance()
}

// TableVersion names the state of one table of data.db. It returns another number after any committed write to the table
// than before it, from the moment at which the write returns; so also after statements that were not understood and
// after writes of triggers: as long as there is one that may write to a table that is not quiet, every commit counts for
// every table. Commits of other processes count as well, within a millisecond, or ten while this process
// writes. Take it before the query that is remembered under it. While it cannot be told whether another process has
// written, each call returns a number that never comes again. The tables of [Options.Quiet] have none.
func (s *Store) TableVersion(table string) uint64 {
	if f := s.data.Load(); f != nil {
		known := f.polledWithin(pollEvery)
		if !known {
			_, known = f.version()
		}
		if known || f.polledWithin(pollUnderLoad) {
			return f.tables.of(strings.ToLower(table))
		}
	}
	return math.MaxUint64 - s.unknown.Add(1)
}
