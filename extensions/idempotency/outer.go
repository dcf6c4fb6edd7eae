package idempotency

import (
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/satchelbase/satchel/extensions/internal/pb"
)

// waits finds writers that wait for the transaction of their own request. Handlers and hooks run on the goroutine of the
// request, JavaScript too, so a writer below the function that has the transaction open waits for its own return. The
// requests of a batch run on a goroutine that the request's waits for; only for those is anything noted beforehand.
type waits struct {
	// count is how many entries byID has.
	count atomic.Int32
	mu    sync.Mutex

	// byID has, by goroutine, the hook that waited for itself; empty for a batch in which none has.
	byID map[string]string
}

// enter is called by the goroutine that has opened a transaction. The function that it returns must be called before the
// end of it; it names the hook that waited for itself, empty if none did.
func (w *waits) enter(batch bool) (leave func() (hook string)) {
	if batch {
		w.put(ownID(), "")
	}
	return w.leave
}

func (w *waits) leave() string {
	if w.count.Load() == 0 {
		return ""
	}
	id := ownID()
	w.mu.Lock()
	defer w.mu.Unlock()
	hook, ok := w.byID[id]
	if ok {
		delete(w.byID, id)
		w.count.Add(-1)
	}
	return hook
}

func (w *waits) put(id, hook string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.byID == nil {
		w.byID = map[string]string{}
	}
	before, ok := w.byID[id]
	if !ok {
		w.count.Add(1)
	}
	if before == "" {
		w.byID[id] = hook
	}
}

// suspect is asked by a writer that has waited for a while, on its goroutine.
func (w *waits) suspect() error {
	hook, inside := culprit()
	if inside {
		w.put(ownID(), hook)
		return ErrHookOuterApp
	}
	if w.count.Load() == 0 {
		return nil
	}
	id, ok := pb.BatchOf(ownStack())
	if !ok {
		return nil
	}
	w.mu.Lock()
	_, ok = w.byID[id]
	w.mu.Unlock()
	if !ok {
		return nil
	}
	w.put(id, hook)
	return ErrHookOuterApp
}

// maxStack bounds the copy of a stack. Its last line, which names the parent, is needed.
const maxStack = 1 << 20

func ownStack() string {
	for size := 64 << 10; ; size *= 2 {
		buffer := make([]byte, size)
		if n := runtime.Stack(buffer, false); n < size || size >= maxStack {
			return string(buffer[:n])
		}
	}
}

// ownID is the number in the first line of the stack, "goroutine 7 [running]:".
func ownID() string {
	var head [64]byte
	id, _, _ := strings.Cut(strings.TrimPrefix(string(head[:runtime.Stack(head[:], false)]), "goroutine "), " ")
	return id
}

const (
	pocketbase = "github.com/pocketbase/"
	features   = "github.com/satchelbase/satchel/extensions/"
)

// inTransaction is the function of [request.transaction] that runs while the transaction is open. A test fails if the
// compiler names it otherwise.
const inTransaction = features + "idempotency.(*request).transaction.func1"

// maxFrames is more than hooks within hooks have.
const maxFrames = 4096

// culprit names the hook whose writer waits, and reports whether this goroutine is inside of a request's transaction. The
// hook is the first function from within that belongs to nobody else. JavaScript has no frames of its own; there it is
// the event, which PocketBase's functions tell.
func culprit() (hook string, inside bool) {
	pcs := make([]uintptr, maxFrames)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)])
	feature, script := "", false
	for more := true; more && !inside; {
		var frame runtime.Frame
		frame, more = frames.Next()
		name := frame.Function
		switch {
		case name == inTransaction:
			inside = true
		case hook != "":
		case strings.HasPrefix(name, "github.com/dop251/goja."):
			script = true
		case script:
			if event := pb.EventOf(name); event != "" {
				hook = "JavaScript, " + event
			}
		case strings.HasPrefix(name, features) && !strings.HasPrefix(name[len(features):], "store"):
			if feature == "" {
				feature = place(frame)
			}
		case !foreign(name):
			hook = place(frame)
		}
	}
	switch {
	case hook != "":
	case script:
		hook = "JavaScript, a route or middleware"
	case feature != "":
		hook = feature
	default:
		hook = "unknown"
	}
	return hook, inside
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
