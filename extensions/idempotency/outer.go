package idempotency

import (
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/satchelbase/satchel/extensions/internal/pb"
)

// holders knows the goroutines that have the transaction of a request open. Handlers and hooks run on the goroutine of
// their request, JavaScript too; the requests of a batch on one that it waits for. So a writer that waits on one of these
// waits for itself: only its own return can end the transaction.
type holders struct {
	count atomic.Int32
	mu    sync.Mutex
	byID  map[string]*holding
}

// holding is one open transaction.
type holding struct {
	request, target string
	name            atomic.Pointer[string] // of the hook that waited for itself
}

func (h *holding) hook() string {
	if name := h.name.Load(); name != nil {
		return *name
	}
	return ""
}

// enter notes that this goroutine opens a transaction; the function that it returns must be called before the end of it.
func (h *holders) enter(held *holding) (leave func()) {
	var head [64]byte
	id := goroutine(string(head[:runtime.Stack(head[:], false)]))
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.byID == nil {
		h.byID = map[string]*holding{}
	}
	h.byID[id] = held
	h.count.Add(1)
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.byID, id)
		h.count.Add(-1)
	}
}

// suspect is asked by a writer that has waited for a while.
func (h *holders) suspect() error {
	if h.count.Load() == 0 {
		return nil
	}
	stack := ownStack()
	held := h.find(goroutine(stack))
	if held == nil {
		if waiting, ok := pb.BatchOf(stack); ok {
			held = h.find(waiting)
		}
	}
	if held == nil {
		return nil
	}
	name := culprit(held.target)
	held.name.CompareAndSwap(nil, &name)
	return ErrHookOuterApp
}

func (h *holders) find(id string) *holding {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.byID[id]
}

// maxStack bounds the copy of a stack. Its last line, which names the parent, is needed.
const maxStack = 4 << 20

func ownStack() string {
	for size := 64 << 10; ; size *= 2 {
		buffer := make([]byte, size)
		if n := runtime.Stack(buffer, false); n < size || size >= maxStack {
			return string(buffer[:n])
		}
	}
}

// goroutine is the id in the first line of a stack, "goroutine 7 [running]:".
func goroutine(stack string) string {
	id, _, _ := strings.Cut(strings.TrimPrefix(stack, "goroutine "), " ")
	return id
}

const (
	pocketbase = "github.com/pocketbase/"
	features   = "github.com/satchelbase/satchel/extensions/"
)

// culprit names the hook that waits: the first function from within that belongs to nobody else. JavaScript has no frames
// of its own; there it is the event, which PocketBase's functions tell.
func culprit(target string) string {
	pcs := make([]uintptr, 512)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	feature, script := "", false
	for {
		frame, more := frames.Next()
		name := frame.Function
		event := ""
		if script {
			event = pb.EventOf(name)
		}
		switch {
		case strings.HasSuffix(name, "idempotency.(*request).transaction.func1"):
			more = false // what is outside of the transaction is no hook in it
		case strings.HasPrefix(name, "github.com/dop251/goja."):
			script = true
		case event != "":
			return "JavaScript, " + event + " of " + target
		case script:
		case strings.HasPrefix(name, features) && !strings.HasPrefix(name[len(features):], "store"):
			if feature == "" {
				feature = place(frame)
			}
		case !foreign(name):
			return place(frame)
		}
		if !more {
			break
		}
	}
	switch {
	case script:
		return "JavaScript, a route or middleware of " + target
	case feature != "":
		return feature
	}
	return "a hook of " + target
}

func place(frame runtime.Frame) string {
	return frame.Function + " (" + frame.File + ":" + strconv.Itoa(frame.Line) + ")"
}

// foreign reports functions of the standard library, of PocketBase and of the database.
func foreign(function string) bool {
	first, _, _ := strings.Cut(function, "/")
	if first == function { // a package without a path: main, or one of the standard library
		return !strings.HasPrefix(function, "main.")
	}
	return !strings.Contains(first, ".") || strings.HasPrefix(function, pocketbase) || strings.HasPrefix(function, features) ||
		strings.HasPrefix(function, "modernc.org/") || strings.HasPrefix(function, "github.com/mattn/")
}
