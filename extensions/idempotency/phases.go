package idempotency

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/pb"
)

const (
	stepsKey = "satchelIdempotencySteps"

	// Recovery points are small: ids and amounts, not documents.
	maxPoints     = 32
	maxPointBytes = 16 << 10

	// leaseMargin is what a call must leave of the lease to store its result.
	leaseMargin = 6 // a sixth
)

// errLost: another attempt has taken the operation over, because this one took longer than its lease.
var errLost = errors.New("another attempt has taken the operation over")

// Steps is one attempt at an operation that calls other services: payment, push, AI. Get it by [StepsOf] in the handler of
// a route that is [Policy.Phased], and take the steps in a fixed order by [Local], [Call] and [Steps.Finish]. Each
// finished step is a recovery point, stored with its result; an attempt with the same key runs the handler again, in which
// finished steps return their results without being taken again. Between steps no transaction is open.
//
// What becomes of an attempt that fails: if no step has been finished and no call been made, nothing is kept. Otherwise the
// operation stays begun, and the next attempt goes on where it stopped; the client gets 503 idempotency.unfinished for an
// error of a call. An answer, or an error with a 4xx status of its own or marked by [Final], is the end once a call was
// made: it is kept whatever its status, and repeated.
//
// Steps is for the goroutine of the request.
type Steps struct {
	r      *request
	row    *row
	points map[string]json.RawMessage
	stored bool // the row is in the table
	done   bool // with its answer

	failure error // of Finish: what was answered is not so

	out    http.ResponseWriter
	buffer *pb.Buffer
}

// StepsOf returns the steps of a request to a phased route. An error means that the route is not one.
func StepsOf(e *core.RequestEvent) (*Steps, error) {
	if s, ok := e.Get(stepsKey).(*Steps); ok {
		return s, nil
	}
	return nil, fmt.Errorf("%s is no phased route", e.Request.Pattern)
}

// Resumed reports that an earlier attempt has begun the operation: who may call it and with what was judged then.
func (s *Steps) Resumed() bool { return s.stored }

// Local takes the step point within this database: what fn writes through tx and the result are committed together. fn is
// called once and never again after it has succeeded.
func Local[T any](s *Steps, point string, fn func(tx core.App) (T, error)) (T, error) {
	out, done, err := known[T](s, point)
	if done || err != nil {
		return out, err
	}
	err = s.r.transaction(func(tx core.App) error {
		if out, err = fn(tx); err != nil {
			return err
		}
		return s.reach(tx, point, out)
	})
	if err != nil {
		delete(s.points, point)
		return out, err
	}
	s.begun()
	return out, nil
}

// Call takes the step point at another service. fn gets a key for that service, the same for every attempt of this
// operation at this step, so that a call whose answer got lost is not carried out twice; it is a UUID in form. The
// context ends before the lease does, but not with the connection of the client. That a call is made is stored before it.
//
// An error of fn leaves the step open for the next attempt, unless it is marked by [Final].
func Call[T any](s *Steps, point string, fn func(ctx context.Context, key string) (T, error)) (T, error) {
	out, done, err := known[T](s, point)
	if done || err != nil {
		return out, err
	}
	before := s.row.Called
	s.row.Called = true
	if err := s.write(s.save); err != nil {
		s.row.Called = before
		return out, err
	}
	s.begun()
	lease := s.r.cfg.Lease
	ctx, cancel := context.WithTimeout(context.WithoutCancel(s.r.event.Request.Context()), lease-lease/leaseMargin)
	defer cancel()
	if out, err = fn(ctx, s.key(point)); err != nil {
		if _, final := errors.AsType[*finalError](err); final {
			return out, err
		}
		return out, &api.Problem{
			Code: ErrUnfinished, Detail: "repeat the request with the same key", RetryAfter: retryInFlight, Cause: fmt.Errorf("call %s: %w", point, err),
		}
	}
	// If this fails, the point stays known: it is tried once more when the attempt ends.
	return out, s.write(func(tx core.App) error { return s.reach(tx, point, out) })
}

// Finish ends the operation: what fn writes through tx, and the answer that it gives by the request's event, are committed
// together, and the answer leaves afterwards.
func (s *Steps) Finish(fn func(tx core.App) error) error {
	err := s.r.transaction(func(tx core.App) error {
		if err := fn(tx); err != nil {
			return err
		}
		if s.buffer.Status() >= http.StatusBadRequest {
			return errRefused
		}
		return s.conclude(tx, true)
	})
	if err == nil {
		s.begun()
		s.done = true
	}
	if errors.Is(err, errRefused) {
		return nil // the answer decides
	}
	s.failure = err
	return err
}

// Final marks an error of a call, or of the handler, as the end of the operation: the payment was declined, and to ask
// again would be another operation.
func Final(err error) error {
	if err == nil {
		return nil
	}
	return &finalError{err}
}

type finalError struct{ error }

func (f *finalError) Unwrap() error { return f.error }

// known returns the result of a step that was finished before.
func known[T any](s *Steps, point string) (out T, done bool, err error) {
	if s.done {
		return out, false, fmt.Errorf("step %s comes after the end of the operation", point)
	}
	raw, done := s.points[point]
	if !done {
		if len(s.points) >= maxPoints {
			return out, false, fmt.Errorf("step %s: an operation has at most %d steps", point, maxPoints)
		}
		return out, false, nil
	}
	if err := json.Unmarshal(raw, &out); err != nil {
		return out, false, fmt.Errorf("read result of step %s: %w", point, err)
	}
	return out, true, nil
}

// key is drawn from a number that the operation got when it began, so that the same idempotency key, once expired, is
// another key for the service.
func (s *Steps) key(point string) string {
	h := sha256.New()
	_, _ = h.Write(s.row.Nonce)
	_, _ = h.Write([]byte(point))
	sum := h.Sum(nil)[:16]
	sum[6] = sum[6]&0x0f | 0x80 // version 8 of RFC 9562: made by a rule of one's own
	sum[8] = sum[8]&0x3f | 0x80
	text := hex.EncodeToString(sum)
	return text[:8] + "-" + text[8:12] + "-" + text[12:16] + "-" + text[16:20] + "-" + text[20:]
}

// reach stores the result of a step.
func (s *Steps) reach(tx core.App, point string, result any) error {
	raw, err := json.Marshal(result)
	if err != nil {
		return fmt.Errorf("marshal result of step %s: %w", point, err)
	}
	if len(raw) > maxPointBytes {
		return fmt.Errorf("result of step %s: %d bytes are more than %d", point, len(raw), maxPointBytes)
	}
	s.points[point] = raw
	return s.save(tx)
}

// save writes the row with the points that are known, and renews the lease.
func (s *Steps) save(tx core.App) error { return s.saveUntil(tx, s.r.now().Add(s.r.cfg.Lease)) }

func (s *Steps) saveUntil(tx core.App, lease time.Time) error {
	points, err := json.Marshal(s.points)
	if err != nil {
		return fmt.Errorf("marshal recovery points: %w", err)
	}
	s.row.Points = string(points)
	s.row.LeaseUntil = lease.UnixMilli()
	s.row.ExpiresAt = s.r.now().Add(s.r.cfg.Retention).UnixMilli()
	return s.put(tx, s.row)
}

func (s *Steps) put(tx core.App, r *row) error {
	store := insert
	if s.stored {
		store = update
	}
	ok, err := store(tx, r, s.r.now())
	if err == nil && !ok {
		return errLost
	}
	return err
}

// begun notes that the row is in the table now.
func (s *Steps) begun() {
	if !s.stored {
		s.stored = true
		s.r.live.Add(1)
	}
}

// conclude stores the answer in the buffer as the operation's.
func (s *Steps) conclude(tx core.App, private bool) error {
	last := s.r.finished(s.buffer, private)
	last.Owner, last.Called, last.Nonce = s.row.Owner, s.row.Called, s.row.Nonce
	return s.put(tx, last)
}

// write runs fn in a transaction of the operation's own, which no handler takes part in.
func (s *Steps) write(fn func(tx core.App) error) error { return s.r.event.App.RunInTransaction(fn) }

// phased runs the handler of a phased route, from the start or on from the recovery point of kept.
func (r *request) phased(kept *row) (reply func() error, err error) {
	e := r.event
	s := &Steps{r: r, row: kept, points: map[string]json.RawMessage{}, out: e.Response}
	if err := s.begin(); err != nil {
		return nil, err
	}
	s.buffer = pb.NewBuffer(s.out.Header(), maxAnswer)
	e.Response = s.buffer
	e.Set(stepsKey, s)
	ended := false
	defer func() {
		e.Response = s.out
		e.Set(stepsKey, nil)
		if !ended { // a panic
			s.leave()
		}
	}()
	err = s.end(e.Next())
	ended = true
	e.Response = s.out
	if errors.Is(err, errLost) {
		return nil, r.inFlight(retryInFlight)
	}
	if err != nil {
		return nil, err
	}
	return func() error { return send(e, s.buffer) }, nil
}

// begin makes a new row, or takes over one that nobody has.
func (s *Steps) begin() error {
	r := s.r
	now := r.now()
	if s.row == nil {
		s.row = &row{
			ID: r.id[:], Caller: r.caller.counted, Fingerprint: r.fingerprint, Owner: r.owner, Nonce: []byte(rand.Text()), Route: r.route,
			Request: api.RequestOf(r.event.Request.Context()).ID,
		}
		return nil
	}
	if err := json.Unmarshal([]byte(s.row.Points), &s.points); err != nil {
		return fmt.Errorf("read recovery points: %w", err)
	}
	s.stored = true
	s.row.Owner, s.row.LeaseUntil = r.owner, now.Add(r.cfg.Lease).UnixMilli()
	mine, err := claim(r.event.App, s.row, now)
	if err != nil {
		return err
	}
	if !mine {
		current, err := find(r.event.App.ConcurrentDB(), r.id, now)
		if err != nil {
			return err
		}
		wait := retryInFlight
		if current != nil && current.LeaseUntil > now.UnixMilli() {
			wait = min(time.UnixMilli(current.LeaseUntil).Sub(now), r.cfg.Lease)
		}
		return r.inFlight(wait)
	}
	return nil
}

// end decides what is kept of the attempt, and returns the error to answer with, nil for what is in the buffer.
func (s *Steps) end(failed error) error {
	if s.done {
		return nil // an error after Finish has nothing to say any more
	}
	if failed == nil {
		failed = s.failure
	}
	terminal := failed == nil && (s.row.Called || s.buffer.Status() < http.StatusBadRequest)
	if failed != nil && s.row.Called && s.isFinal(failed) {
		s.buffer = pb.NewBuffer(s.out.Header(), maxAnswer)
		s.r.event.Response = s.buffer
		if err := api.WriteError(s.r.event, failed); err != nil {
			return err
		}
		terminal, failed = true, nil
	}
	if !terminal {
		s.leave()
		return failed
	}
	if err := s.write(func(tx core.App) error { return s.conclude(tx, s.buffer.Status() < http.StatusBadRequest) }); err != nil {
		s.leave()
		return err
	}
	s.begun()
	s.done = true
	return nil
}

// isFinal reports errors that a further attempt would meet again: those with a 4xx status that the handler chose, but for
// those that ask to come again, and what is marked.
func (s *Steps) isFinal(err error) bool {
	if _, marked := errors.AsType[*finalError](err); marked {
		return true
	}
	if errors.Is(err, errLost) || s.r.deps.Unavailable != nil && s.r.deps.Unavailable(err) {
		return false
	}
	var status int
	if code, ok := errors.AsType[*extensions.Code](err); ok {
		status = code.Status
	} else if stock, ok := errors.AsType[*router.ApiError](err); ok {
		status = stock.Status
	}
	switch status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return false
	}
	return status >= http.StatusBadRequest && status < http.StatusInternalServerError
}

// leave gives the operation to the next attempt. One that has done nothing is forgotten.
func (s *Steps) leave() {
	if !s.stored {
		return
	}
	var err error
	if !s.row.Called && len(s.points) == 0 {
		var removed bool
		if removed, err = remove(s.r.event.App, s.row); removed {
			s.r.live.Add(-1)
		}
	} else {
		err = s.write(func(tx core.App) error { return s.saveUntil(tx, time.UnixMilli(0)) })
	}
	if err != nil && !errors.Is(err, errLost) {
		s.r.logger.Warn("the lease of an operation was not given back; the next attempt waits until it is over",
			"route", s.r.route, "requestId", s.row.Request, "error", err)
	}
}
