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
	restart  chan struct{} // closed when a restart has failed; nil while there is none
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
			if e.IsRestart {
				defer d.restarts()()
			} else {
				d.awaitRestart()
			}
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

// restarts notes that another program is to take this one's place, as after a restore. The returned function ends that.
func (d *drainer) restarts() (failed func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	over := make(chan struct{})
	d.restart = over
	return func() { close(over) }
}

// awaitRestart holds up the end of the program while it is being replaced: the command "serve" returns as soon as the
// listener is closed, and would win the race against the replacement. It returns when that has failed, otherwise never.
func (d *drainer) awaitRestart() {
	d.mu.Lock()
	restart := d.restart
	d.mu.Unlock()
	if restart != nil {
		<-restart
	}
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
