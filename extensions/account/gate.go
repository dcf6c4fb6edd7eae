package account

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions/api"
)

const (
	// gatePriority is right after the middlewares that tell who calls (-1021 to -1019).
	gatePriority = -1018

	// gateEvery is how late this process learns what another one has scheduled.
	gateEvery = time.Second
)

// gate keeps accounts that are going to be deleted from doing anything but cancelling that. Requests of others cost one
// look at a number, or in a map while there are such accounts.
type gate struct {
	count   atomic.Int64
	mu      sync.RWMutex
	pending map[key]struct{}
}

func (g *gate) add(k key) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.pending == nil {
		g.pending = map[key]struct{}{}
	}
	g.pending[k] = struct{}{}
	g.count.Store(int64(len(g.pending)))
}

func (g *gate) remove(k key) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.pending, k)
	g.count.Store(int64(len(g.pending)))
}

func (g *gate) replace(pending map[key]struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.pending = pending
	g.count.Store(int64(len(pending)))
}

func (g *gate) holds(k key) bool {
	if g.count.Load() == 0 {
		return false
	}
	g.mu.RLock()
	defer g.mu.RUnlock()
	_, pending := g.pending[k]
	return pending
}

func (g *gate) middleware() *hook.Handler[*core.RequestEvent] {
	return &hook.Handler[*core.RequestEvent]{Id: "satchelAccountGate", Priority: gatePriority, Func: func(e *core.RequestEvent) error {
		if e.Auth == nil || !g.holds(keyOf(e.Auth)) || open(e.Request.URL.Path) {
			return e.Next()
		}
		return api.Fail(ErrPending, "POST "+api.Prefix+"/operations/account.cancelDeletion keeps it")
	}}
}

// open lists what somebody whose account is going to be deleted still needs: to sign in and out, to ask how things are, to
// take the data along and to cancel.
func open(path string) bool {
	if !strings.HasPrefix(path, "/api/") {
		return true
	}
	for _, prefix := range []string{"/operations/account.", "/account/", "/jobs/", "/auth/", "/health"} {
		if strings.HasPrefix(path, api.Prefix+prefix) {
			return true
		}
	}
	rest, found := strings.CutPrefix(path, "/api/collections/")
	_, action, _ := strings.Cut(rest, "/")
	return found && slices.ContainsFunc([]string{"auth-", "request-", "confirm-"}, func(p string) bool { return strings.HasPrefix(action, p) })
}

// reload reads which accounts are going to be deleted.
func (a *Accounts) reload() error {
	var rows []deletion
	if err := a.app.ConcurrentDB().Select("collection", "record").From(deletionsTable).All(&rows); err != nil {
		return fmt.Errorf("read deletions: %w", err)
	}
	pending := make(map[key]struct{}, len(rows))
	for _, d := range rows {
		pending[key{d.Collection, d.Record}] = struct{}{}
	}
	a.gate.replace(pending)
	return nil
}
