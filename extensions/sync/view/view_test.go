package view

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"
)

func FuzzCursor(f *testing.F) {
	f.Add(Cursor{Epoch: "e", Nonce: "n", Run: 77, At: 3}.String())
	f.Add("a.b.zz.9999999999999999999999")
	f.Fuzz(func(t *testing.T, text string) {
		c, ok := ParseCursor(text)
		if ok && c.String() != text {
			t.Errorf("%q became %q", text, c.String())
		}
		if !ok && c != (Cursor{}) {
			t.Errorf("%q is no cursor and became %+v", text, c)
		}
	})
}

// A stored view is a cache: whatever it has become, the device is served.
func FuzzStored(f *testing.F) {
	w := newWorld()
	w.put("a", note{Owner: "u1"})
	w.put("b", note{Owner: "u1"})
	first := w.pull("d", "u1", Cursor{}, 1, "")
	f.Add(w.store.kept["d"].State, w.store.kept["d"].Runs[first.Cursor.Run].Fixed, w.store.kept["d"].Runs[first.Cursor.Run].Moving)
	f.Add([]byte{1}, []byte{1, 0, 0, 0xff}, []byte{})
	f.Fuzz(func(t *testing.T, state, fixed, moving []byte) {
		w := newWorld()
		w.put("a", note{Owner: "u1"})
		w.store.kept["d"] = Stored{State: state, Runs: map[int64]StoredRun{5: {Fixed: fixed, Moving: moving}}}
		d, err := w.engine.Open(context.Background(), "d")
		if err != nil {
			t.Fatal(err)
		}
		page, err := d.Pull(context.Background(), sight{w, "u1"}, Request{Collections: []string{"notes"}, Limit: 5, Bytes: 100})
		d.Close()
		if err != nil || len(page.Deltas) != 1 || page.Deltas[0].Upserts[0].ID != "a" {
			t.Errorf("%+v, %v", page, err)
		}
	})
}

func TestForgedPositionsAreUnknown(t *testing.T) {
	w := newWorld()
	for id := range strings.SplitSeq("abcdefgh", "") {
		w.put(id, note{Owner: "u1"})
	}
	first := w.pull("d", "u1", Cursor{}, 2, "")
	ahead := first.Cursor
	ahead.At = 8
	if a := w.pull("d", "u1", ahead, 2, ""); !a.Reset {
		t.Errorf("a position that was never given out is continued: %+v", a)
	}
	if a := w.pull("d", "u1", first.Cursor, 2, ""); a.Reset || len(a.Upserts) != 2 {
		t.Errorf("the true one is not: %+v", a)
	}
	if a := w.pull("d", "u2", first.Cursor, 2, ""); len(a.Upserts) != 0 {
		t.Errorf("another user sees %v", a.Upserts)
	}
}

func TestPagesEndByBytes(t *testing.T) {
	w := newWorld()
	for id := range strings.SplitSeq("abcdefgh", "") {
		w.put(id, note{Owner: "u1", Body: strings.Repeat("x", 1000)})
	}
	d, err := w.engine.Open(t.Context(), "d")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var sizes []int
	for q := (Request{Collections: []string{"notes"}, Limit: 100, Bytes: 2500}); ; {
		page, err := d.Pull(t.Context(), sight{w, "u1"}, q)
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, len(page.Deltas[0].Upserts))
		if q.Cursor = page.Cursor; !page.More {
			break
		}
	}
	if len(sizes) != 4 || sizes[0] != 2 {
		t.Errorf("pages of %v rows", sizes)
	}
	d.engine.store = &memory{kept: map[string]Stored{}, nonce: 1}
	page, err := d.Pull(t.Context(), sight{w, "u1"}, Request{Collections: []string{"notes"}, Limit: 100, Bytes: 10})
	if err != nil || len(page.Deltas[0].Upserts) != 1 {
		t.Errorf("a row that is larger than a page: %+v %v", page, err)
	}
}

// A client that pulls until there is no more has all that there was when it asked for the last page.
func TestNoMoreMeansUpToDate(t *testing.T) {
	w := newWorld()
	for id := range strings.SplitSeq("abcd", "") {
		w.put(id, note{Owner: "u1"})
	}
	first := w.pull("d", "u1", Cursor{}, 3, "")
	w.put("e", note{Owner: "u1"})
	second := w.pull("d", "u1", first.Cursor, 3, "")
	if !second.More {
		t.Errorf("the end of what was begun before: %+v", second)
	}
	third := w.pull("d", "u1", second.Cursor, 3, "")
	if third.More || len(third.Upserts) != 1 || third.Check.Count != 5 {
		t.Errorf("the last page: %+v", third)
	}
}

// A client may push as many rows at once as a request has room for.
func TestManyPushedRows(t *testing.T) {
	ids := make([]string, 50_000)
	for i := range ids {
		ids[i] = fmt.Sprintf("id%013d", i)
	}
	began := time.Now()
	if list := union(union(nil, ids), ids); len(list) != len(ids) {
		t.Errorf("%d ids", len(list))
	}
	if took := time.Since(began); took > 3*time.Second { // by hundreds of milliseconds, or by minutes
		t.Errorf("it took %v", took)
	}
}
