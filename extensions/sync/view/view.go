// Package view knows what every device holds, so that a device is told exactly what it must change: rows that it may see
// and does not have or has in an older state, and rows that it holds and may no longer see, whatever the reason. It does
// not know where rows come from, who may see them, or how devices speak: those are its [Source] and its callers.
//
// A device holds runs. A run is a plan for one stretch of the way: the set of rows that the device held when the run was
// made (have), the rows that it must hear of (queue, in the order of their numbers), and the horizon that it is then at.
// A cursor is a run and a position in its queue. Every position of the kept runs stays valid, because clients come back
// with older ones: an answer was lost, or the app died between storing rows and cursor. What a row is for the viewer is
// decided when it is served, so a run never shows anything that is no longer allowed.
//
// What the device may or may not have got to know is kept apart as late: rows that it pushed itself, rows that were served
// from a cursor that it then did not use, rows that were served twice with different outcomes. They are queued again in
// the next run, whether they have changed or not.
//
// The next run is made in one of two ways. By the set: compare all that is visible now with what is held. That is always
// right and is the definition. By the delta: look only at rows that have changed; right as long as nothing but the rows
// themselves decides who sees them, which the source knows.
//
// All of this is a cache: when it is lost, its devices start over.
package view

import (
	"context"
	"errors"

	"github.com/RoaringBitmap/roaring/v2/roaring64"
)

// Set is a set of numbers of rows.
type Set = roaring64.Bitmap

// ErrGone reports a collection that is not there, or not one whose changes are recorded.
var ErrGone = errors.New("the collection cannot be synced")

// Position is what the source is at.
type Position struct {
	Epoch string // the data may have gone back in time when it differs
	Seq   int64  // number of the last change
	Floor int64  // deletions with lower numbers may be forgotten
}

// Collection is what the source says of a collection.
type Collection struct {
	Name string
	Key  string // another one means another collection, even under the same name

	Schema string // names the state of the fields: when it changes, all rows are sent again
}

// Head is the state of a row. Its number never stands for another row.
type Head struct {
	Number  uint64
	ID      string
	Version int64
	Deleted bool
}

// Row is a row as the viewer sees it.
type Row struct {
	Head
	Body []byte
}

// Source is one viewer's sight of the data. What a method returns is at least as new as the position that Now returned
// before; the heads up to it are complete.
type Source interface {
	Now(ctx context.Context) (Position, error)

	// Collection returns ErrGone when there is nothing to be had.
	Collection(ctx context.Context, name string) (Collection, error)

	// Exact reports whether, since the number, a row can only have appeared to or vanished from the viewer by a change of
	// that row itself: neither the rule has changed nor anything else that it reads.
	Exact(ctx context.Context, c Collection, after int64) (bool, error)

	// Visible calls fn for each row that the viewer sees.
	Visible(ctx context.Context, c Collection, fn func(number uint64, version int64)) error

	// Changed returns the rows with a higher version than after, deleted ones too, by version, at most limit of them.
	Changed(ctx context.Context, c Collection, after int64, limit int) ([]Head, error)

	// Rows returns those of the rows that the viewer sees.
	Rows(ctx context.Context, c Collection, numbers []uint64) ([]Row, error)

	// Names returns the ids of rows, deleted ones too, and Numbers the numbers of ids; what is not known is left out.
	Names(ctx context.Context, c Collection, numbers []uint64) (map[uint64]string, error)
	Numbers(ctx context.Context, c Collection, ids []string) (map[string]uint64, error)
}

// Store keeps devices. The blobs belong to the store once given. Save must have happened when it returns, as far as the
// process is concerned; that the power fails is for the store to notice, see [Store.Nonce].
type Store interface {
	// Nonce names the file: another one means that it is not the one from before.
	Nonce() string
	Load(ctx context.Context, device string) (Stored, error)
	Save(ctx context.Context, device string, changed Stored, removed []int64) error
}

// Stored is a device in the form in which it is kept. To Save, parts that are nil have not changed.
type Stored struct {
	State []byte
	Runs  map[int64]StoredRun
}

// StoredRun is one run: what never changes, and what does.
type StoredRun struct{ Fixed, Moving []byte }

// Request is what a device asks for.
type Request struct {
	Cursor      Cursor // the zero value starts over
	Collections []string
	Limit       int    // most rows; must be positive
	Bytes       int    // most bytes of rows, but for the first one; must be positive
	Schema      string // names what the client keeps of rows: another one makes all rows be sent again
}

// Delta is what has become of one collection.
type Delta struct {
	Name    string
	Key     string
	Upserts []Row
	Removes []string
}

// Check is what the device must hold after the last page: how many rows, and the exclusive or of their ids' FNV-1a hashes
// of 32 bits.
type Check struct {
	Count uint64
	XOR   uint32
}

// Page is an answer.
type Page struct {
	Deltas []Delta
	Cursor Cursor
	More   bool

	// Reset names collections whose snapshot begins with this page: rows that it does not mention until More is false are
	// not there.
	Reset []string
	Gone  []string         // collections that were asked for and are not there
	Check map[string]Check // only when More is false
}

// Empty reports whether the page brings nothing.
func (p *Page) Empty() bool { return len(p.Deltas) == 0 && len(p.Reset) == 0 && len(p.Gone) == 0 }
