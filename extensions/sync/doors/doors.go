// Package doors lets stock clients of WatermelonDB and RxDB sync, each by its own protocol:
//
//	GET, POST /api/v1/sync/watermelon           pullChanges and pushChanges of synchronize()
//	GET, POST /api/v1/sync/rxdb/{collection}    the pull and the push handler of replicateRxCollection()
//
// Both are adapters of package sync: the same views, rules, transactions and policies, and answers in the form that the
// client expects instead of the usual envelope. Errors are problems as everywhere. See docs/clients for how to connect a
// client.
//
// It has no settings and no tables. What it remembers for a while is in memory: changes that could not be judged, and
// documents that wait for the record that they refer to; after a restart they wait anew.
package doors

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/sync"
	"github.com/satchelbase/satchel/extensions/sync/push"
	"github.com/satchelbase/satchel/extensions/sync/sight"
	"github.com/satchelbase/satchel/extensions/sync/view"
)

// Codes of the answers.
var (
	ErrPullFirst  = &extensions.Code{Name: "sync.pull_required", Status: http.StatusConflict, Title: "Records have changed since the last pull: pull, and push again"}
	ErrCheckpoint = &extensions.Code{Name: "sync.checkpoint_unknown", Status: http.StatusGone, Title: "The checkpoint cannot be continued: start over without one"}
	ErrParent     = &extensions.Code{Name: "sync.parent_missing", Status: http.StatusServiceUnavailable, Title: "A record that a document refers to is not there yet: push again"}
)

// maxPush bounds the body of a push. A stock client sends all that it has at once and cannot split it.
const maxPush = 16 << 20

// maxRows and maxID bound what is in it.
const (
	maxRows = 50_000
	maxID   = 128
)

// readSize is how many records are read at a time.
const readSize = 500

// doors is the feature. It is safe for concurrent use.
type doors struct {
	sync    *sync.Sync
	whole   chan struct{} // slots for pulls of everything in one answer
	waiting *waiting
	now     func() time.Time
	rxBytes int // where a page ends
	faults  faults
}

// faults are ways to get it wrong that tests of convergence must notice.
type faults struct {
	merge     bool // watermelon: rows that have changed since the pull are merged
	lastWrite bool // rxdb: the later of two writes to a field wins
	noGhost   bool // rxdb: a document of another version than its base is believed
}

// wholes is how many devices may be told everything in one answer at the same time.
const wholes = 2

// Open returns the extension of s with the routes of the doors.
func Open(s *sync.Sync) extensions.Extension { return open(s).extend(s.Extension()) }

func open(s *sync.Sync) *doors {
	return &doors{sync: s, whole: make(chan struct{}, wholes), waiting: newWaiting(), now: time.Now, rxBytes: rxBytes}
}

func (d *doors) extend(x extensions.Extension) extensions.Extension {
	routes := x.Routes
	x.Codes = append(slices.Clone(x.Codes), ErrPullFirst, ErrCheckpoint, ErrParent)
	x.Routes = func(g *router.RouterGroup[*core.RequestEvent]) {
		routes(g)
		g.GET("/watermelon", d.melonPull)
		g.POST("/watermelon", d.melonPush).Bind(apis.BodyLimit(maxPush))
		g.GET("/rxdb/{collection}", d.rxPull)
		g.POST("/rxdb/{collection}", d.rxPush).Bind(apis.BodyLimit(maxPush))
	}
	return x
}

// visit is one request of a device, which is locked until close.
type visit struct {
	*core.RequestEvent
	ctx    context.Context
	caller sync.Caller
	src    *sight.Sight
	device *view.Device
	now    view.Position
}

// enter identifies the caller and locks its device for one way of syncing.
func (d *doors) enter(e *core.RequestEvent, channel string, names ...string) (*visit, error) {
	v := &visit{RequestEvent: e, ctx: e.Request.Context()}
	var err error
	if v.caller, err = d.sync.Caller(e); err != nil {
		return nil, err
	}
	if err := d.sync.Supported(e, names...); err != nil {
		return nil, err
	}
	if v.src, err = d.sync.Source(e); err != nil {
		return nil, err
	}
	if v.device, err = d.sync.Engine().Open(v.ctx, v.caller.Key(channel)); err != nil {
		return nil, err
	}
	if v.now, err = v.src.Now(v.ctx); err != nil {
		v.close()
		return nil, err
	}
	return v, nil
}

func (v *visit) close() { v.device.Close() }

// records reads records as they are stored, whoever may see them.
func (v *visit) records(c *core.Collection, ids []string) (map[string]*core.Record, error) {
	out := make(map[string]*core.Record, len(ids))
	for chunk := range slices.Chunk(ids, readSize) {
		found, err := v.App.FindRecordsByIds(c.Name, chunk)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", c.Name, err)
		}
		for _, r := range found {
			out[r.Id] = r
		}
	}
	return out, nil
}

// cid names a change by its content and by the state of the data that it meets: the same request repeated at once is
// recognised, and the same edit made once more later is another change.
func (v *visit) cid(c push.Change, base string) (string, error) {
	raw, err := json.Marshal(c)
	if err != nil {
		return "", fmt.Errorf("name change: %w", err)
	}
	sum := sha256.Sum256(append(raw, base+"/"+v.now.Epoch+"/"+strconv.FormatInt(v.now.Seq, 10)...))
	return hex.EncodeToString(sum[:20]), nil
}

// answer writes the body that the client's protocol asks for.
func answer(e *core.RequestEvent, body []byte) error {
	h := e.Response.Header()
	h.Set("Cache-Control", "no-store")
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	e.Response.WriteHeader(http.StatusOK)
	_, err := e.Response.Write(body)
	return err
}

// key names a record of the caller for what waits.
func (v *visit) key(collection, id string) string {
	return v.caller.Device + "/" + collection + "/" + id
}

// mustWait reports whether a push has to come again because of a change that could not be judged. A change that fails
// for a while although the database works is given up: stock clients send nothing else until it succeeds.
func (d *doors) mustWait(v *visit, c push.Change, r push.Result) bool {
	key := v.key(c.Collection, c.ID)
	if r.Status != push.Retry {
		d.waiting.done(key)
		return false
	}
	return r.Outage || d.waiting.wait(key, nil, d.now())
}

// again is the answer when the server could not judge: nothing may be taken for done.
func again() error { return &api.Problem{Code: push.ErrAgain, RetryAfter: time.Second} }
