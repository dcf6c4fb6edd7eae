package operations_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/idempotency"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/settings"
)

// shop is a payment service: it charges once for each key, and can lose its answer.
type shop struct {
	*httptest.Server
	mu      sync.Mutex
	charges map[string]int
	lose    bool
}

func newShop(t testing.TB) *shop {
	s := &shop{charges: map[string]int{}}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.charges[r.Header.Get("Idempotency-Key")]++
		if s.lose {
			w.WriteHeader(http.StatusBadGateway)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// pay orders, charges and notes the charge.
func pay(s *shop) operations.Operation {
	return operations.Define(operations.Spec[order, receipt]{
		Name: "probe.pay", Summary: "Pay for something", Audit: []string{"item"},
		Callers: operations.Callers{Rule: "name != 'banned'"}, Limit: operations.Limit{Count: 2, Per: 1e12},
		Steps: func(c *operations.Call, steps *idempotency.Steps, in order) (receipt, error) {
			if _, err := idempotency.Local(steps, "reserved", func(tx core.App) (string, error) {
				inner := *c
				inner.App = tx
				_, err := place(&inner, in)
				return in.Item, err
			}); err != nil {
				return receipt{}, err
			}
			_, err := idempotency.Call(steps, "charged", func(ctx context.Context, key string) (bool, error) {
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL, nil)
				if err != nil {
					return false, err
				}
				req.Header.Set("Idempotency-Key", key)
				res, err := http.DefaultClient.Do(req)
				if err != nil {
					return false, err
				}
				defer func() { _ = res.Body.Close() }()
				if res.StatusCode != http.StatusOK {
					return false, errors.New(res.Status)
				}
				return true, nil
			})
			return receipt{Item: in.Item}, err
		},
	})
}

func startKeyed(t testing.TB, list ...operations.Operation) *apptest.App {
	ops := set()
	ops.Add(list)
	l := log()
	return apptest.New(t, api.New(settings.Defaults[api.Config]()), audit.New(audit.Config{}, l, nil), collection(),
		ops.Extension(operations.Deps{Audit: l.Append}),
		idempotency.New(settings.Defaults[idempotency.Config](), idempotency.Deps{Route: ops.Policy, Before: ops.Prepare}))
}

func TestSteps(t *testing.T) {
	s := newShop(t)
	app := startKeyed(t, pay(s))
	user, token := app.User(t, "ann@example.test")
	r := call("pay", map[string]any{"item": "tea"})
	r.Token = token
	if got := app.Do(t, r); got.Status != 400 || got.Code() != "idempotency.key_required" {
		t.Fatalf("without a key: %d %s", got.Status, got.Body)
	}
	r.Header["Idempotency-Key"] = "one-payment-and-no-more"
	s.lose = true
	if got := app.Do(t, r); got.Status != 503 || got.Code() != "idempotency.unfinished" {
		t.Fatalf("the answer is lost: %d %s", got.Status, got.Body)
	}
	// What was begun goes on, though the caller may not begin it any more and has used up the limit.
	user.Set("name", "banned")
	if err := app.Save(user); err != nil {
		t.Fatal(err)
	}
	other := r
	other.Header = map[string]string{"Idempotency-Key": "another-payment-then"}
	for _, want := range []int{403, 429} {
		if got := app.Do(t, other); got.Status != want {
			t.Errorf("another: %d %s", got.Status, got.Body)
		}
	}
	s.lose = false
	done := app.Do(t, r)
	again := app.Do(t, r)
	if done.Status != 200 || string(again.Body) != string(done.Body) || again.Header.Get("Idempotency-Replayed") != "true" {
		t.Fatalf("%d %s\n%d %s", done.Status, done.Body, again.Status, again.Body)
	}
	if len(s.charges) != 1 {
		t.Errorf("charges: %v", s.charges)
	}
	items(t, app, 1)
	got := entries(t, app)
	if strings.Count(got, "probe.pay success") != 1 || strings.Count(got, "probe.pay failure") != 1 || strings.Count(got, "probe.pay denied") != 1 {
		t.Errorf("audit:\n%s", got)
	}
}

// A repeat gets the first answer, and what failed leaves its entry although everything else is rolled back.
func TestKeys(t *testing.T) {
	app := startKeyed(t)
	_, token := app.User(t, "ann@example.test")
	r := call("order", map[string]any{"item": "tea"}, "Idempotency-Key", "a-pot-of-tea-please")
	r.Token = token
	first, again := app.Do(t, r), app.Do(t, r)
	if first.Status != 200 || string(first.Body) != string(again.Body) || again.Header.Get("Idempotency-Replayed") != "true" {
		t.Fatalf("%d %s\n%d %s", first.Status, first.Body, again.Status, again.Body)
	}
	items(t, app, 1)
	r = call("order", map[string]any{"item": "closed"}, "Idempotency-Key", "a-shop-that-is-closed")
	r.Token = token
	if got := app.Do(t, r); got.Status != 409 {
		t.Errorf("%d %s", got.Status, got.Body)
	}
	items(t, app, 1)
	want := `probe.order success user items {"after":"tea","item":"tea"}` + "\n" + `probe.order failure user items {"after":"closed","error":"probe.closed","item":"closed"}`
	if got := entries(t, app); got != want {
		t.Errorf("audit:\n%s", got)
	}
}

// A request that is wrong in itself is refused while somebody else holds the only writer.
func TestMistakesDoNotWait(t *testing.T) {
	app := startKeyed(t)
	_, token := app.User(t, "ann@example.test")
	r := call("order", map[string]any{"item": 1}, "Idempotency-Key", "not-an-item-at-all-0")
	r.Token = token
	err := app.RunInTransaction(func(tx core.App) error {
		if _, err := tx.DB().NewQuery("DELETE FROM items").Execute(); err != nil {
			return err
		}
		if got := app.Do(t, r); got.Status != 400 || got.Code() != "api.validation_failed" {
			t.Errorf("%d %s", got.Status, got.Body)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
