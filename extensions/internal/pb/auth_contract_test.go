package pb_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions/internal/pb"
)

// authApp has a user and a route that signs the user in by the method in the path, after prepare.
func authApp(t *testing.T, prepare func(e *core.RequestEvent, user *core.Record) error) (*core.BaseApp, http.Handler, *core.Record) {
	t.Helper()
	app := open(t, core.BaseAppConfig{})
	if err := app.RunAllMigrations(); err != nil {
		t.Fatal(err)
	}
	users, err := app.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	users.MFA.Enabled, users.OTP.Enabled = true, true
	if err := app.Save(users); err != nil {
		t.Fatal(err)
	}
	user := core.NewRecord(users)
	user.SetEmail("ada@example.test")
	user.SetPassword("correct-horse-battery")
	if err := app.Save(user); err != nil {
		t.Fatal(err)
	}
	app.OnServe().BindFunc(func(e *core.ServeEvent) error {
		e.Router.POST("/in/{method}", func(e *core.RequestEvent) error {
			if prepare != nil {
				if err := prepare(e, user); err != nil {
					return err
				}
			}
			return apis.RecordAuthResponse(e, user, e.Request.PathValue("method"), nil)
		})
		return e.Next()
	})
	return app, serve(t, app), user
}

func post(h http.Handler, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, path, strings.NewReader("")))
	return w
}

func mfas(t *testing.T, app core.App) int {
	t.Helper()
	n, err := app.CountRecords(core.CollectionNameMFAs)
	if err != nil {
		t.Fatal(err)
	}
	return int(n)
}

// The multi-factor step comes after every hook of the sign-in, whose order is that of the priorities; it answers with an
// error after it has written, takes the first step's id from the query, refuses the same method twice, and deletes the
// first step once it was used.
func TestMultiFactorStep(t *testing.T) {
	app, h, _ := authApp(t, nil)
	var order []string
	for name, priority := range map[string]int{"gate": -900, "app": 0, "sessions": 999} {
		app.OnRecordAuthRequest().Bind(&hook.Handler[*core.RecordAuthRequestEvent]{Priority: priority, Func: func(e *core.RecordAuthRequestEvent) error {
			order = append(order, name)
			err := e.Next()
			if (e.AuthMethod == core.MFAMethodPassword) != errors.Is(err, apis.ErrMFA) {
				t.Errorf("%s saw %v for %s", name, err, e.AuthMethod)
			}
			return err
		}})
	}
	first := post(h, "/in/password")
	id, ok := strings.CutPrefix(strings.TrimSuffix(first.Body.String(), `"}`), `{"mfaId":"`)
	if first.Code != http.StatusUnauthorized || !ok || !slices.Equal(order, []string{"gate", "app", "sessions"}) {
		t.Fatalf("%d %s, order %v", first.Code, first.Body, order)
	}
	if again := post(h, "/in/again?mfaId=unknown"); again.Code != http.StatusBadRequest {
		t.Errorf("unknown id: %d %s", again.Code, again.Body)
	}
	if second := post(h, "/in/totp?mfaId="+id); second.Code != http.StatusOK || mfas(t, app) != 0 {
		t.Errorf("second step: %d %s", second.Code, second.Body)
	}
}

func TestSatisfyMFA(t *testing.T) {
	var forget func() error
	app, h, _ := authApp(t, func(e *core.RequestEvent, user *core.Record) (err error) {
		forget, err = pb.SatisfyMFA(e, user, "something else")
		return err
	})
	if w := post(h, "/in/passkey?mfaId=unknown"); w.Code != http.StatusOK || mfas(t, app) != 0 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if err := forget(); err != nil {
		t.Error(err)
	}
	// A method that passes without the step leaves the record to forget.
	if w := post(h, "/in/something%20else"); w.Code != http.StatusBadRequest || mfas(t, app) != 1 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if err := forget(); err != nil || mfas(t, app) != 0 {
		t.Errorf("%v, %d left", err, mfas(t, app))
	}
}

// What is bound behind priority 99 runs within the transaction that deletes a record or a collection.
func TestDeletesAreTransactions(t *testing.T) {
	app, _, user := authApp(t, nil)
	stop := errors.New("stop")
	seen := 0
	app.OnRecordDeleteExecute("users").Bind(&hook.Handler[*core.RecordEvent]{Priority: 100, Func: func(e *core.RecordEvent) error {
		seen++
		if err := e.Next(); err != nil || !e.App.IsTransactional() {
			t.Errorf("record: %v, transaction %v", err, e.App.IsTransactional())
		}
		return stop
	}})
	app.OnCollectionDeleteExecute("users").Bind(&hook.Handler[*core.CollectionEvent]{Priority: 100, Func: func(e *core.CollectionEvent) error {
		seen++
		if err := e.Next(); err != nil || !e.App.IsTransactional() {
			t.Errorf("collection: %v, transaction %v", err, e.App.IsTransactional())
		}
		return stop
	}})
	if err := app.Delete(user); !errors.Is(err, stop) {
		t.Error(err)
	}
	if err := app.Delete(user.Collection()); !errors.Is(err, stop) {
		t.Error(err)
	}
	if _, err := app.FindRecordById("users", user.Id); err != nil || seen != 2 {
		t.Errorf("not rolled back: %v, %d hooks ran", err, seen)
	}
}

// Before an update of a record is executed, PocketBase has renewed the token key of a changed password, and the record
// still knows what it was.
func TestTakenOver(t *testing.T) {
	app, _, user := authApp(t, nil)
	user.Collection().MFA.Enabled = false
	if err := app.Save(user.Collection()); err != nil {
		t.Fatal(err)
	}
	var taken []bool
	app.OnRecordUpdateExecute("users").Bind(&hook.Handler[*core.RecordEvent]{Priority: 100, Func: func(e *core.RecordEvent) error {
		taken = append(taken, pb.TakenOver(e.Record))
		return e.Next()
	}})
	for _, change := range []func(r *core.Record){
		func(r *core.Record) { r.Set("name", "Ada") },
		func(r *core.Record) { r.SetPassword("another-long-password") },
		func(r *core.Record) { r.SetVerified(true) },
		func(r *core.Record) { r.SetVerified(false) },
		func(r *core.Record) { r.SetVerified(true); r.SetRandomPassword() },
		func(r *core.Record) { r.SetRandomPassword() },
	} {
		record, err := app.FindRecordById("users", user.Id)
		if err != nil {
			t.Fatal(err)
		}
		change(record)
		if err := app.Save(record); err != nil {
			t.Fatal(err)
		}
	}
	if want := []bool{false, false, false, false, true, false}; !slices.Equal(taken, want) {
		t.Errorf("taken over %v, want %v", taken, want)
	}
}
