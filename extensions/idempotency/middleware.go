package idempotency

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/pb"
)

// retryInFlight is when a request with the same key may come again.
const retryInFlight = time.Second

var (
	// errRefused rolls back what a handler has done before it answered with an error.
	errRefused = errors.New("the answer is an error")

	// errTaken: another process has stored the key in the meantime.
	errTaken = errors.New("the key was stored by another process")

	errNested = errors.New("a transaction of the handler has failed, but the handler answered that all is well; return its error")
)

func newKeeper(cfg Config, deps Deps) *keeper {
	return &keeper{cfg: cfg, deps: deps, logger: slog.New(slog.DiscardHandler), now: time.Now, owner: rand.Text()}
}

// serve is the middleware. A request without a key costs two look-ups.
func (k *keeper) serve(e *core.RequestEvent) error {
	if !writes(e.Request.Method) {
		return e.Next()
	}
	values := e.Request.Header[Header]
	if values == nil && k.deps.Route == nil {
		return e.Next()
	}
	route := routeOf(e.Request)
	if takesNoPart(route) {
		return e.Next()
	}
	var policy Policy
	if k.deps.Route != nil {
		policy = k.deps.Route(e.Request.Method, route)
	}
	switch {
	case policy.Off:
		return e.Next()
	case values == nil && (policy.Required || policy.Phased):
		return api.Fail(ErrKeyRequired, "send an Idempotency-Key that stays the same when the request is repeated")
	case values == nil:
		return e.Next()
	}
	return k.keyed(e, policy, values)
}

// request is one request with a key.
type request struct {
	*keeper
	event       *core.RequestEvent
	id          [sha256.Size]byte
	caller      caller
	fingerprint []byte
	route       string
	batch       bool
}

func (k *keeper) keyed(e *core.RequestEvent, policy Policy, values []string) error {
	key, err := parseKey(values)
	if err != nil {
		return err
	}
	who := k.caller(e)
	if who.guest && !policy.Guests {
		p := api.Fail(api.ErrUnauthorized, "an Idempotency-Key needs a caller who is signed in")
		p.Header = http.Header{"Www-Authenticate": {"Bearer"}}
		return p
	}
	if who.guest && !isStrong(key) {
		return api.Fail(ErrKeyInvalid, "without a token a key needs 128 random bits, such as 32 hexadecimal digits or a UUID")
	}
	sum, err := fingerprint(e, key)
	if err != nil {
		return err
	}
	route := routeOf(e.Request)
	r := &request{
		keeper: k, event: e, id: who.lookup(key), caller: who, fingerprint: sum, route: e.Request.Method + " " + route, batch: route == "/api/batch",
	}
	reply, err := r.alone(policy)
	if err != nil {
		return err
	}
	return reply()
}

// alone answers while no other request has the key, but for sending the answer: a client that has it may repeat at once.
func (r *request) alone(policy Policy) (reply func() error, err error) {
	if !r.flights.take(r.id) {
		return nil, r.inFlight(retryInFlight)
	}
	defer r.flights.land(r.id)
	return r.answer(policy)
}

func (k *keeper) inFlight(after time.Duration) error {
	k.conflicts.Add(1)
	return &api.Problem{Code: ErrInFlight, Detail: "repeat the request a little later", RetryAfter: max(after, retryInFlight)}
}

// answer repeats what is kept, or has the request answered for the first time.
func (r *request) answer(policy Policy) (reply func() error, err error) {
	db := r.event.App.ConcurrentDB()
	kept, err := find(db, r.id, r.now())
	if err != nil {
		return nil, err
	}
	if kept == nil {
		may, err := r.mayAdd(db, r.caller.counted)
		if err != nil {
			return nil, err
		}
		if !may {
			return nil, &api.Problem{
				Code: ErrTooManyKeys, Detail: fmt.Sprintf("a caller may have %d keys within %s", r.cfg.MaxKeys, r.cfg.Retention), RetryAfter: time.Hour,
			}
		}
		if before := r.deps.Before; before != nil {
			if err := before(r.event); err != nil {
				return nil, err
			}
		}
		if policy.Phased {
			return r.phased(nil)
		}
		return r.once()
	}
	if !kept.sameRequest(r.fingerprint) {
		r.conflicts.Add(1)
		return nil, api.Fail(ErrKeyReused, "a new request needs a new key; a repeat must be the same request")
	}
	if kept.Status != 0 {
		return func() error { return r.replay(kept) }, nil
	}
	if !policy.Phased {
		return nil, fmt.Errorf("resume %s: the route has no phases any more", r.route)
	}
	return r.phased(kept)
}

// once has the request handled in one transaction with the row that keeps its answer, and answers after the commit.
func (r *request) once() (reply func() error, err error) {
	e := r.event
	out := e.Response
	buffer := pb.NewBuffer(out.Header(), maxAnswer)
	err = r.transaction(func(tx core.App) error {
		e.Response = buffer
		defer func() { e.Response = out }()
		if err := e.Next(); err != nil {
			return err
		}
		if buffer.Status() >= http.StatusBadRequest {
			return errRefused
		}
		stored, err := insert(tx, r.finished(buffer, true), r.now())
		if err == nil && !stored {
			return errTaken
		}
		return err
	})
	switch {
	case errors.Is(err, errTaken):
		return nil, r.inFlight(retryInFlight)
	case err != nil && !errors.Is(err, errRefused):
		return nil, err
	case err == nil:
		r.live.Add(1)
	}
	return func() error { return send(e, buffer) }, nil
}

// transaction runs fn in a transaction of which e.App is a part, too. It returns nil if and only if that was committed
// for good. A hook that waited for itself makes it fail, whatever became of the hook's error.
func (r *request) transaction(fn func(tx core.App) error) error {
	e := r.event
	app := e.App
	committed, hook := false, ""
	err := app.RunInTransaction(func(tx core.App) (err error) {
		pb.AfterCommit(tx, func() { committed = true })
		leave := r.waits.enter(r.batch)
		inner, failed := pb.Enclose(tx)
		e.App = inner
		defer func() {
			e.App = app
			if hook = leave(); hook != "" {
				err = ErrHookOuterApp
			}
		}()
		if err = fn(inner); err == nil && failed() {
			return errNested
		}
		return err
	})
	about := []any{slog.String("route", r.route), slog.String("requestId", api.RequestOf(e.Request.Context()).ID)}
	if hook != "" {
		r.logger.Error("a hook writes through another app than its event's, inside the transaction of its own request", append(about,
			slog.String("hook", hook), slog.String("path", e.Request.URL.Path), slog.String("fix", "use e.app (in Go e.App) of the hook's event for reads and writes"))...)
		return api.Fail(ErrHookOuterApp, "").Because(err)
	}
	if committed && err != nil {
		r.logger.Warn("a hook failed after the commit of a request", append(about, slog.Any("error", err))...)
		return nil
	}
	return err
}

// send answers with what was held back. The headers are there already.
func send(e *core.RequestEvent, buffer *pb.Buffer) error {
	if !buffer.Written() {
		return nil
	}
	e.Response.WriteHeader(buffer.Status())
	_, err := e.Response.Write(buffer.Body())
	return err
}
