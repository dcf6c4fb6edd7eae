package idempotency

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

// provider is a payment service on loopback that honours idempotency keys.
type provider struct {
	*httptest.Server
	mu      sync.Mutex
	calls   map[string]int // by path and key
	refuse  int            // status of the next answers to /charge, 0 for success
	reaches func()         // runs in the handler, after the charge was made and before the answer leaves
}

func newProvider(t testing.TB) *provider {
	t.Helper()
	p := &provider{calls: map[string]int{}}
	p.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key := r.Header.Get(Header)
		p.mu.Lock()
		refuse := p.refuse
		if refuse == 0 || r.URL.Path != "/charge" {
			p.calls[r.URL.Path+" "+key]++
		}
		reaches := p.reaches
		p.mu.Unlock()
		if refuse != 0 && r.URL.Path == "/charge" {
			w.WriteHeader(refuse)
			return
		}
		if reaches != nil {
			reaches()
		}
		_, _ = io.WriteString(w, `{"id":"ch_`+key[:8]+`"}`)
	}))
	t.Cleanup(p.Close)
	return p
}

// effects is how many different keys a path was called with, and how often in all.
func (p *provider) effects(path string) (keys, calls int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, n := range p.calls {
		if strings.HasPrefix(name, path+" ") {
			keys++
			calls += n
		}
	}
	return keys, calls
}

func (p *provider) set(refuse int, reaches func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refuse, p.reaches = refuse, reaches
}

var (
	errDeclined = &extensions.Code{Name: "lab.declined", Status: http.StatusPaymentRequired, Title: "The card was declined"}
	errLimit    = &extensions.Code{Name: "lab.limit", Status: http.StatusConflict, Title: "No more orders"}
)

type charge struct {
	ID string `json:"id"`
}

// order is an operation with a local reservation, two calls and a local result. at is called at every place where it may
// be interrupted.
func order(e *core.RequestEvent, base string, at func(place string)) error {
	s, err := StepsOf(e)
	if err != nil {
		return err
	}
	reservation, err := Local(s, "reserve", func(tx core.App) (string, error) {
		defer at("reserving")
		return "r1", saveNote(tx, "reserved")
	})
	if err != nil {
		return err
	}
	at("reserved")
	paid, err := Call(s, "charge", func(ctx context.Context, key string) (charge, error) {
		at("before the charge")
		out, err := post(ctx, base+"/charge", key)
		at("after the charge")
		return out, err
	})
	if err != nil {
		return err
	}
	at("charged")
	_, err = Call(s, "push", func(ctx context.Context, key string) (charge, error) {
		defer at("after the push")
		return post(ctx, base+"/push", key)
	})
	if err != nil {
		return err
	}
	return s.Finish(func(tx core.App) error {
		if err := saveNote(tx, "ordered"); err != nil {
			return err
		}
		AfterCommit(tx, func() { at("finished") })
		at("finishing")
		return api.Write(e, http.StatusCreated, map[string]string{"reservation": reservation, "charge": paid.ID})
	})
}

func post(ctx context.Context, url, key string) (out charge, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, nil)
	if err != nil {
		return out, err
	}
	req.Header.Set(Header, key)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // which repeats nothing by itself
	resp, err := client.Do(req)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusPaymentRequired:
		return out, Final(api.Fail(errDeclined, ""))
	case resp.StatusCode != http.StatusOK:
		return out, fmt.Errorf("charge: status %d", resp.StatusCode)
	}
	return out, json.NewDecoder(resp.Body).Decode(&out)
}

func phasedRoutes(_, route string) Policy {
	return Policy{Phased: strings.HasPrefix(route, "/api/v1/lab/order") || strings.HasPrefix(route, "/lab/")}
}

const orderPath = "/api/v1/lab/order"

// startOrders starts an application with the operation. at may be nil.
func startOrders(t *testing.T, p *provider, at func(place string)) *fixture {
	t.Helper()
	if at == nil {
		at = func(string) {}
	}
	return start(t, setup{deps: Deps{Route: phasedRoutes}, routes: func(g *router.RouterGroup[*core.RequestEvent]) {
		g.POST("/order", func(e *core.RequestEvent) error {
			if e.App.IsTransactional() {
				return errors.New("a transaction is open")
			}
			return order(e, p.URL, at)
		})
		g.POST("/plain", func(e *core.RequestEvent) error { return order(e, p.URL, at) })
	}})
}

// settled asserts that the operation had each of its effects once.
func (f *fixture) settled(t *testing.T, p *provider) {
	t.Helper()
	if reserved, ordered := f.count(t, "reserved"), f.count(t, "ordered"); reserved != 1 || ordered != 1 {
		t.Errorf("%d reservations, %d orders", reserved, ordered)
	}
	charges, _ := p.effects("/charge")
	pushes, _ := p.effects("/push")
	if charges != 1 || pushes != 1 {
		t.Errorf("%d charges, %d pushes", charges, pushes)
	}
}

func TestPhases(t *testing.T) {
	p := newProvider(t)
	f := startOrders(t, p, nil)
	code(t, f.send(t, http.MethodPost, orderPath, "", nil), ErrKeyRequired)
	key := newKey()
	first := f.send(t, http.MethodPost, orderPath, key, nil)
	status(t, first, http.StatusCreated)
	kept(t, first, f.send(t, http.MethodPost, orderPath, key, nil))
	f.settled(t, p)
	if _, calls := p.effects("/charge"); calls != 1 {
		t.Errorf("%d calls", calls)
	}
	code(t, f.send(t, http.MethodPost, orderPath, key, map[string]any{"other": true}), ErrKeyReused)
	if int(f.keeper.live.Load()) != f.rows(t) || f.rows(t) != 1 {
		t.Errorf("%d live of %d", f.keeper.live.Load(), f.rows(t))
	}
	// Another operation is another charge; another user's is, too.
	status(t, f.sendAs(t, f.ben, http.MethodPost, orderPath, key, nil), http.StatusCreated)
	if charges, _ := p.effects("/charge"); charges != 2 {
		t.Errorf("%d charges", charges)
	}
	status(t, f.send(t, http.MethodPost, "/api/v1/lab/plain", newKey(), nil), http.StatusInternalServerError)
}

var places = []string{"reserving", "reserved", "before the charge", "after the charge", "charged", "after the push", "finishing", "finished"}

// A panic at any place leaves an operation that the next attempt finishes.
func TestPhasesPanic(t *testing.T) {
	for _, place := range places {
		t.Run(place, func(t *testing.T) {
			p := newProvider(t)
			armed := true
			f := startOrders(t, p, func(at string) {
				if armed && at == place {
					armed = false
					panic("at " + place)
				}
			})
			key := newKey()
			first := f.send(t, http.MethodPost, orderPath, key, nil)
			if place != "finished" {
				status(t, first, http.StatusInternalServerError)
			}
			second := f.send(t, http.MethodPost, orderPath, key, nil)
			status(t, second, http.StatusCreated)
			if place != "finished" {
				kept(t, second, f.send(t, http.MethodPost, orderPath, key, nil))
			}
			f.settled(t, p)
		})
	}
}

// What the provider does not answer is tried again with the same key, from where it stopped.
func TestPhasesResume(t *testing.T) {
	p := newProvider(t)
	f := startOrders(t, p, nil)
	p.set(http.StatusBadGateway, nil)
	key := newKey()
	for range 2 {
		got := f.send(t, http.MethodPost, orderPath, key, nil)
		code(t, got, ErrUnfinished)
		if got.Header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
	}
	if r := checkUnfinished(t.Context(), f.Host); !strings.HasPrefix(r.Message, "1 operations") {
		t.Errorf("check: %+v", r)
	}
	p.set(0, nil)
	status(t, f.send(t, http.MethodPost, orderPath, key, nil), http.StatusCreated)
	f.settled(t, p)
	if r := checkUnfinished(t.Context(), f.Host); r.Message != "none" {
		t.Errorf("check: %+v", r)
	}
}

// A refusal for good is the end, and repeated without asking again.
func TestPhasesFinal(t *testing.T) {
	p := newProvider(t)
	f := startOrders(t, p, nil)
	p.set(http.StatusPaymentRequired, nil)
	key := newKey()
	first := f.send(t, http.MethodPost, orderPath, key, nil)
	code(t, first, errDeclined)
	p.set(0, nil)
	kept(t, first, f.send(t, http.MethodPost, orderPath, key, nil))
	if charges, _ := p.effects("/charge"); charges != 0 || f.count(t, "ordered") != 0 {
		t.Errorf("%d charges", charges)
	}
}

// The client goes away during the charge, which goes on; its repeat meets an operation in flight, then the answer.
func TestPhasesClientGone(t *testing.T) {
	p := newProvider(t)
	f := startOrders(t, p, nil)
	reached, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	p.set(0, func() {
		once.Do(func() {
			close(reached)
			<-release
		})
	})
	key := newKey()
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, f.URL+orderPath, nil)
		if err == nil {
			req.Header.Set(Header, key)
			req.Header.Set("Authorization", f.ada)
			var resp *http.Response
			if resp, err = (&http.Client{Transport: &http.Transport{}}).Do(req); err == nil {
				_ = resp.Body.Close()
			}
		}
		gone <- err
	}()
	<-reached
	cancel()
	if err := <-gone; err == nil {
		t.Fatal("the first request was answered")
	}
	code(t, f.do(t, key, nil), ErrInFlight)
	close(release)
	got := f.until(t, key)
	status(t, got, http.StatusCreated)
	f.settled(t, p)
	if _, calls := p.effects("/charge"); calls != 1 {
		t.Errorf("%d calls", calls)
	}
}

// do is an attempt at the operation, as the client that was cut off makes it.
func (f *fixture) do(t *testing.T, key string, body any) apptest.Response {
	t.Helper()
	return f.Do(t, apptest.Request{Method: http.MethodPost, Path: orderPath, Token: f.ada, Body: body, Header: map[string]string{Header: key}})
}

// until repeats while the operation is in flight.
func (f *fixture) until(t *testing.T, key string) apptest.Response {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		got := f.do(t, key, nil)
		if got.Status != http.StatusConflict || time.Now().After(end) {
			return got
		}
	}
}

// An attempt that takes longer than its lease has lost the operation to the process that took it over, and changes
// nothing any more.
func TestPhasesLostLease(t *testing.T) {
	p := newProvider(t)
	var f *fixture
	armed := true
	f = startOrders(t, p, func(at string) {
		if armed && at == "charged" {
			armed = false
			if _, err := f.NonconcurrentDB().NewQuery("UPDATE idempotency_keys SET owner = 'another process', lease_until = 0").Execute(); err != nil {
				t.Error(err)
			}
		}
	})
	key := newKey()
	code(t, f.send(t, http.MethodPost, orderPath, key, nil), ErrInFlight)
	if f.count(t, "ordered") != 0 {
		t.Error("an order of the attempt that lost")
	}
	status(t, f.send(t, http.MethodPost, orderPath, key, nil), http.StatusCreated)
	f.settled(t, p)

	// A lease of another process that is not over keeps the next attempt waiting for as long.
	key = newKey()
	p.set(http.StatusBadGateway, nil)
	code(t, f.send(t, http.MethodPost, orderPath, key, nil), ErrUnfinished)
	_, err := f.NonconcurrentDB().NewQuery("UPDATE idempotency_keys SET owner = 'another process', lease_until = " +
		fmt.Sprint(time.Now().Add(40*time.Second).UnixMilli()) + " WHERE status = 0").Execute()
	if err != nil {
		t.Fatal(err)
	}
	got := f.send(t, http.MethodPost, orderPath, key, nil)
	code(t, got, ErrInFlight)
	if after, err := strconv.Atoi(got.Header.Get("Retry-After")); err != nil || after < 10 || after > 40 {
		t.Errorf("Retry-After %s", got.Header.Get("Retry-After"))
	}
}

// How an attempt ends is what decides about the next one.
func TestPhasesEnds(t *testing.T) {
	var handler func(e *core.RequestEvent, s *Steps) error
	f := start(t, setup{deps: Deps{Route: phasedRoutes}, routes: func(g *router.RouterGroup[*core.RequestEvent]) {
		g.POST("/order", func(e *core.RequestEvent) error {
			s, err := StepsOf(e)
			if err != nil {
				return err
			}
			return handler(e, s)
		})
	}})
	call := func(s *Steps) error {
		_, err := Call(s, "c", func(context.Context, string) (int, error) { return 1, nil })
		return err
	}
	calling := func(end func(e *core.RequestEvent, s *Steps) error) func(e *core.RequestEvent, s *Steps) error {
		return func(e *core.RequestEvent, s *Steps) error {
			if err := call(s); err != nil {
				return err
			}
			return end(e, s)
		}
	}
	limit := func(*core.RequestEvent, *Steps) error { return api.Fail(errLimit, "") }
	broken := func(*core.RequestEvent, *Steps) error { return errors.New("broken") }
	for name, c := range map[string]struct {
		handler func(e *core.RequestEvent, s *Steps) error
		status  int
		replay  bool // the answer is kept
		row     bool // something is
	}{
		"an error before any step":             {handler: limit, status: 409},
		"an answer without steps":              {handler: func(e *core.RequestEvent, _ *Steps) error { return api.Write(e, 200, 1) }, status: 200, replay: true, row: true},
		"an answer that is an error, no steps": {handler: func(e *core.RequestEvent, _ *Steps) error { return e.JSON(400, 1) }, status: 400},
		"a refusal after a call":               {handler: calling(limit), status: 409, replay: true, row: true},
		"a fault after a call":                 {handler: calling(broken), status: 500, row: true},
		"a fault that is final":                {handler: calling(func(*core.RequestEvent, *Steps) error { return Final(errors.New("broken")) }), status: 500, replay: true, row: true},
		"an answer that is an error, after a call": {
			handler: calling(func(e *core.RequestEvent, _ *Steps) error { return e.JSON(503, 1) }), status: 503, replay: true, row: true,
		},
		"too many requests, after a call": {
			handler: calling(func(*core.RequestEvent, *Steps) error { return api.Fail(api.ErrTooManyRequests, "") }), status: 429, row: true,
		},
		"a refusal in Finish": {
			handler: calling(func(_ *core.RequestEvent, s *Steps) error {
				return s.Finish(func(tx core.App) error { return errors.Join(saveNote(tx, "half"), api.Fail(errLimit, "")) })
			}), status: 409, replay: true, row: true,
		},
		"an error answered in Finish": {
			handler: calling(func(e *core.RequestEvent, s *Steps) error {
				return s.Finish(func(tx core.App) error { return errors.Join(saveNote(tx, "half"), e.JSON(418, 1)) })
			}), status: 418, replay: true, row: true,
		},
		"an error of Finish that is swallowed": {
			handler: calling(func(e *core.RequestEvent, s *Steps) error {
				_ = s.Finish(func(tx core.App) error { return errors.Join(saveNote(tx, "half"), errors.New("broken")) })
				return api.Write(e, 200, "all is well")
			}), status: 500, row: true,
		},
		"an error after Finish": {
			handler: calling(func(e *core.RequestEvent, s *Steps) error {
				return errors.Join(s.Finish(func(core.App) error { return api.Write(e, 200, 1) }), errors.New("late"))
			}), status: 200, replay: true, row: true,
		},
		"a step after Finish": {
			handler: func(e *core.RequestEvent, s *Steps) error {
				return errors.Join(s.Finish(func(core.App) error { return api.Write(e, 200, 1) }), call(s))
			}, status: 200, replay: true, row: true,
		},
		"a result that is too large": {
			handler: func(_ *core.RequestEvent, s *Steps) error {
				_, err := Local(s, "l", func(tx core.App) (string, error) { return long(maxPointBytes + 10), saveNote(tx, "half") })
				return err
			}, status: 500,
		},
		"too many steps": {
			handler: func(_ *core.RequestEvent, s *Steps) error {
				for i := range maxPoints + 1 {
					if _, err := Local(s, fmt.Sprint(i), func(core.App) (int, error) { return i, nil }); err != nil {
						return err
					}
				}
				return nil
			}, status: 500, row: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			handler = c.handler
			key, before := newKey(), f.rows(t)
			first := f.send(t, http.MethodPost, orderPath, key, nil)
			status(t, first, c.status)
			if got := f.rows(t) > before; got != c.row {
				t.Errorf("a row is left: %v", got)
			}
			again := f.send(t, http.MethodPost, orderPath, key, nil)
			if got := again.Header.Get(Replayed) == "true"; got != c.replay || again.Status != c.status {
				t.Errorf("the next attempt: %d, replayed %v", again.Status, got)
			}
			if c.replay && !slices.Equal(first.Body, again.Body) {
				t.Errorf("%s\n%s", first.Body, again.Body)
			}
			if f.count(t, "half") != 0 {
				t.Error("what was rolled back is there")
			}
		})
	}
}

// An operation that is never finished is told of when it expires.
func TestPurgeTellsOfUnfinished(t *testing.T) {
	p := newProvider(t)
	f := startOrders(t, p, nil)
	p.set(http.StatusBadGateway, nil)
	code(t, f.send(t, http.MethodPost, orderPath, newKey(), nil), ErrUnfinished)
	var log strings.Builder
	f.keeper.logger = newLogger(&log)
	f.keeper.now = func() time.Time { return time.Now().Add(25 * time.Hour) }
	if err := f.keeper.purge(t.Context(), f.App); err != nil || f.rows(t) != 0 {
		t.Fatalf("%d left (%v)", f.rows(t), err)
	}
	if !strings.Contains(log.String(), "POST "+orderPath) {
		t.Errorf("the log: %s", log.String())
	}
}
