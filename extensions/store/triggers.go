package store

import (
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"regexp"
	"strings"
	"sync"

	"github.com/satchelbase/satchel/extensions/store/statement"
)

// lookForTriggers finds out whether a write to one table may change another that has a version. The caller holds the
// gate and there is a writer.
func (f *file) lookForTriggers() {
	ctx := context.Background()
	schema, err := f.writer.number(ctx, "PRAGMA schema_version")
	if err == nil && schema == f.tables.schema {
		return
	}
	spreads := false
	if err == nil {
		err = f.writer.texts(ctx, "SELECT sql FROM sqlite_schema WHERE type = 'trigger'", func(text string) {
			spreads = spreads || !f.options.contained(text)
		})
	}
	f.tables.triggers, f.tables.schema = err != nil || spreads, schema
	if err != nil {
		f.tables.schema = 0 // look again
	}
}

// beginning is the word before the body of a trigger.
var beginning = regexp.MustCompile(`(?i)\bBEGIN\b`)

// contained reports whether the trigger writes to quiet tables at most. Each statement of its body begins behind a
// semicolon or the BEGIN, so looking at what follows every one of these, whatever it is, misses none; what is not
// understood does not count as contained.
func (o Options) contained(trigger string) bool {
	at := beginning.FindAllStringIndex(trigger, -1)
	if len(at) != 1 {
		return false
	}
	parts := strings.Split(strings.TrimRight(trigger[at[0][1]:], "; \t\r\n"), ";")
	last := len(parts) - 1
	if !strings.EqualFold(strings.TrimSpace(parts[last]), "END") {
		return false
	}
	for _, text := range parts[:last] {
		st := statement.Parse(text)
		if st.Verb != statement.Read && (st.Verb != statement.Write || !o.quiet(st.Table)) {
			return false
		}
	}
	return true
}

// texts calls fn with the first column of each row.
func (c *connection) texts(ctx context.Context, query string, fn func(text string)) (err error) {
	r, p, err := c.query(ctx, query, statement.Statement{Verb: statement.Read}, nil)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, r.Close())
		if p != nil {
			p.busy = false
		}
	}()
	row := make([]driver.Value, len(r.Columns()))
	for {
		if err := r.Next(row); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		text, _ := row[0].(string)
		fn(text)
	}
}

// notify is a list of functions that are called when the version grows.
type notify struct {
	mu   sync.RWMutex
	list []func()
}

func (n *notify) add(fn func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.list = append(n.list, fn)
}

func (n *notify) call() {
	n.mu.RLock()
	defer n.mu.RUnlock()
	for _, fn := range n.list {
		fn()
	}
}
