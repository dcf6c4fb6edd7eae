package api

import (
	"context"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/pb"
)

// drainer lets requests in flight finish when the program is told to stop. PocketBase cancels them at once and waits
// for one second; here the server stops accepting, streams end so that their clients reconnect elsewhere or later, and
// everything else gets the drain time.
type drainer struct {
	timeout time.Duration

	mu       sync.Mutex
	server   *http.Server
	draining bool
}

// own gives the server a context that outlives PocketBase's, which ends the moment the listener closes.
func (d *drainer) own(s *http.Server) {
	if s == nil {
		return
	}
	d.mu.Lock()
	d.server = s
	d.mu.Unlock()
	s.BaseContext = func(net.Listener) context.Context { return context.Background() }
}

func (d *drainer) bind(app core.App) {
	app.OnTerminate().Bind(&hook.Handler[*core.TerminateEvent]{
		Id: "satchelDrain", Priority: drainPriority,
		Func: func(e *core.TerminateEvent) error {
			d.drain(e.App)
			return e.Next()
		},
	})
	app.OnRealtimeConnectRequest().BindFunc(func(e *core.RealtimeConnectRequestEvent) error {
		if d.isDraining() {
			return &Problem{Code: ErrUnavailable, Detail: "the server is stopping", RetryAfter: time.Second}
		}
		return e.Next()
	})
}

func (d *drainer) isDraining() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.draining
}

// check takes a stopping server out of a load balancer before its listener closes.
func (d *drainer) check(context.Context, *extensions.Host) extensions.Result {
	if d.isDraining() {
		return extensions.Result{Level: extensions.Fail, Message: "the server is stopping", Next: "send requests elsewhere"}
	}
	return extensions.Result{Level: extensions.OK, Message: "accepting requests"}
}

func (d *drainer) drain(app core.App) {
	d.mu.Lock()
	server := d.server
	d.draining = server != nil
	d.mu.Unlock()
	if server == nil {
		return
	}
	pb.CloseRealtime(app)
	ctx, cancel := context.WithTimeout(context.Background(), d.timeout)
	defer cancel()
	// What has not finished by then is cut by PocketBase's own shutdown.
	_ = server.Shutdown(ctx)
}
