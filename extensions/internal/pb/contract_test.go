package pb_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	_ "github.com/pocketbase/pocketbase/migrations"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions/internal/pb"
)

func open(t *testing.T, cfg core.BaseAppConfig) *core.BaseApp {
	t.Helper()
	cfg.DataDir = t.TempDir()
	app := core.NewBaseApp(cfg)
	if err := app.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = app.ClearBootstrap() })
	return app
}

// serve triggers OnServe as apis.Serve does and returns the server's handler.
func serve(t *testing.T, app core.App) http.Handler {
	t.Helper()
	r, err := apis.NewRouter(app)
	if err != nil {
		t.Fatal(err)
	}
	e := &core.ServeEvent{App: app, Router: r, Server: &http.Server{ReadHeaderTimeout: time.Second}}
	err = app.OnServe().Trigger(e, func(e *core.ServeEvent) error {
		mux, err := e.Router.BuildMux()
		e.Server.Handler = mux
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return e.Server.Handler
}

func get(t *testing.T, h http.Handler, path string) *httptest.ResponseRecorder {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w
}

// The store tells the four connections apart by the order of the calls.
func TestDBConnectOrder(t *testing.T) {
	var calls []string
	open(t, core.BaseAppConfig{DBConnect: func(path string) (*dbx.DB, error) {
		calls = append(calls, filepath.Base(path))
		return core.DefaultDBConnect(path)
	}})
	want := []string{"data.db", "data.db", "auxiliary.db", "auxiliary.db"}
	if !slices.Equal(calls, want) {
		t.Fatalf("calls %v, want %v", calls, want)
	}
}

// Of two connections to a file, PocketBase reads through the first and writes through the second.
func TestFirstConnectionReads(t *testing.T) {
	var pools []*dbx.DB
	app := open(t, core.BaseAppConfig{DBConnect: func(path string) (*dbx.DB, error) {
		db, err := core.DefaultDBConnect(path)
		pools = append(pools, db)
		return db, err
	}})
	for i, want := range []dbx.Builder{app.ConcurrentDB(), app.NonconcurrentDB(), app.AuxConcurrentDB(), app.AuxNonconcurrentDB()} {
		if want != dbx.Builder(pools[i]) {
			t.Errorf("connection %d is another one", i)
		}
	}
}

// Handlers of OnServe run by priority, the lowest outermost, and the server's handler is built after all of them.
func TestServeOrder(t *testing.T) {
	app := open(t, core.BaseAppConfig{})
	var order []string
	for _, h := range []struct {
		name     string
		priority int
	}{{"late", 999}, {"first", -9999}, {"middle", 0}} {
		app.OnServe().Bind(&hook.Handler[*core.ServeEvent]{Priority: h.priority, Func: func(e *core.ServeEvent) error {
			order = append(order, h.name+" before")
			if e.Server.Handler != nil {
				t.Errorf("%s: the handler is built already", h.name)
			}
			err := e.Next()
			order = append(order, h.name+" after")
			if e.Server.Handler == nil {
				t.Errorf("%s: no handler after Next", h.name)
			}
			return err
		}})
	}
	serve(t, app)
	want := []string{"first before", "middle before", "late before", "late after", "middle after", "first after"}
	if !slices.Equal(order, want) {
		t.Fatalf("order %v", order)
	}
}

// Middlewares of the root router wrap PocketBase's own routes too, by priority, and one with the id of another
// replaces it.
func TestMiddlewareOrderAndReplacement(t *testing.T) {
	app := open(t, core.BaseAppConfig{})
	var order []string
	note := func(id string, priority int) *hook.Handler[*core.RequestEvent] {
		return &hook.Handler[*core.RequestEvent]{Id: id, Priority: priority, Func: func(e *core.RequestEvent) error {
			order = append(order, id)
			return e.Next()
		}}
	}
	app.OnServe().BindFunc(func(e *core.ServeEvent) error {
		e.Router.Bind(note("last", 5), note("before the token", apis.DefaultLoadAuthTokenMiddlewarePriority-1),
			note(apis.DefaultLoadAuthTokenMiddlewareId, apis.DefaultLoadAuthTokenMiddlewarePriority), note("after the token", apis.DefaultLoadAuthTokenMiddlewarePriority+1))
		return e.Next()
	})
	h := serve(t, app)
	if w := get(t, h, "/api/health"); w.Code != http.StatusOK {
		t.Fatalf("status %d", w.Code)
	}
	want := []string{"before the token", apis.DefaultLoadAuthTokenMiddlewareId, "after the token", "last"}
	if !slices.Equal(order, want) {
		t.Fatalf("order %v, want %v", order, want)
	}
}

// The priorities that our own middlewares are placed between.
func TestPriorities(t *testing.T) {
	for name, pair := range map[string][2]int{
		"activity log": {apis.DefaultActivityLoggerMiddlewarePriority, -1040},
		"token":        {apis.DefaultLoadAuthTokenMiddlewarePriority, -1020},
		"rate limit":   {apis.DefaultRateLimitMiddlewarePriority, -1000},
		"body limit":   {apis.DefaultBodyLimitMiddlewarePriority, -990},
		"CORS":         {apis.DefaultCorsMiddlewarePriority, -1041},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s has priority %d, want %d", name, pair[0], pair[1])
		}
	}
}

// A bad token makes a guest, which the sessions extension turns into 401 below /api/v1.
func TestBadTokenIsAGuest(t *testing.T) {
	app := open(t, core.BaseAppConfig{})
	app.OnServe().BindFunc(func(e *core.ServeEvent) error {
		e.Router.GET("/who", func(e *core.RequestEvent) error {
			if e.Auth != nil {
				t.Error("a bad token signed somebody in")
			}
			return e.NoContent(http.StatusNoContent)
		})
		return e.Next()
	})
	r := httptest.NewRequest(http.MethodGet, "/who", nil)
	r.Header.Set("Authorization", "not a token")
	w := httptest.NewRecorder()
	serve(t, app).ServeHTTP(w, r)
	if w.Code != http.StatusNoContent {
		t.Fatalf("status %d", w.Code)
	}
}

// An error that is returned and not yet written may be written by an outer middleware.
func TestErrorsPassThroughMiddlewares(t *testing.T) {
	app := open(t, core.BaseAppConfig{})
	app.OnServe().BindFunc(func(e *core.ServeEvent) error {
		e.Router.Bind(&hook.Handler[*core.RequestEvent]{Id: "outermost", Priority: -2000, Func: func(e *core.RequestEvent) error {
			if err := e.Next(); err == nil || e.Written() {
				t.Errorf("err %v, written %v", err, e.Written())
			}
			return e.String(http.StatusTeapot, "mine")
		}})
		return e.Next()
	})
	h := serve(t, app)
	for _, path := range []string{"/api/collections/nothing/records", "/api/settings", "/nowhere"} {
		if w := get(t, h, path); w.Code != http.StatusTeapot || w.Body.String() != "mine" {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}

func TestCloseRealtimeEndsStreams(t *testing.T) {
	app := open(t, core.BaseAppConfig{})
	server := httptest.NewServer(serve(t, app))
	defer server.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/api/realtime", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	buf := make([]byte, 512)
	n, err := resp.Body.Read(buf)
	if err != nil || !strings.Contains(string(buf[:n]), "PB_CONNECT") {
		t.Fatalf("first event %q, %v", buf[:n], err)
	}
	pb.CloseRealtime(app)
	for err == nil {
		_, err = resp.Body.Read(buf)
	}
	if ctx.Err() != nil || app.SubscriptionsBroker().TotalClients() != 0 {
		t.Fatalf("the stream did not end: %v, %d clients", err, app.SubscriptionsBroker().TotalClients())
	}
}

// The errors by which the guard tells why a request failed.
func TestReasonsOfFailures(t *testing.T) {
	app := open(t, core.BaseAppConfig{})
	users, err := app.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	users.OTP.Enabled = true
	users.Fields.Add(&core.TextField{Name: "handle", Max: 5})
	users.AddIndex("idx_handle", true, "handle", "handle != ''")
	if err := app.Save(users); err != nil {
		t.Fatal(err)
	}
	ann := core.NewRecord(users)
	ann.SetEmail("ann@example.test")
	ann.SetPassword("long enough")
	ann.Set("handle", "ann")
	bob := core.NewRecord(users)
	bob.SetEmail("bob@example.test")
	bob.SetPassword("long enough")
	otp := core.NewOTP(app)
	otp.SetCollectionRef(users.Id)
	otp.SetPassword("12345678")
	for _, save := range []func() error{
		func() error { return app.Save(ann) }, func() error { return app.Save(bob) },
		func() error { otp.SetRecordRef(ann.Id); return app.Save(otp) },
	} {
		if err := save(); err != nil {
			t.Fatal(err)
		}
	}
	token, err := bob.NewAuthToken()
	if err != nil {
		t.Fatal(err)
	}
	var failure error
	app.OnServe().BindFunc(func(e *core.ServeEvent) error {
		e.Router.BindFunc(func(e *core.RequestEvent) error {
			failure = e.Next()
			return failure
		})
		return e.Next()
	})
	h := serve(t, app)
	fails := func(action, body string) error {
		t.Helper()
		failure = nil
		r := httptest.NewRequest(http.MethodPost, "/api/collections/users/"+action, strings.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", token)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != http.StatusBadRequest || failure == nil {
			t.Fatalf("%s: status %d, %v", action, w.Code, failure)
		}
		return failure
	}
	if !pb.OTPCompared(fails("auth-with-otp", `{"otpId":"`+otp.Id+`","password":"1"}`)) {
		t.Error("a compared code is taken for one that was not")
	}
	if pb.OTPCompared(fails("auth-with-otp", `{"otpId":"nothing","password":"1"}`)) {
		t.Error("a code that does not exist is taken for a compared one")
	}
	sheet := `{"password":"long enough","passwordConfirm":"long enough",`
	for body, want := range map[string][]string{
		`"email":"ann@example.test"}`: {"email"}, `"email":"x@example.test","handle":"ann"}`: {"handle"},
		`"email":"ann@example.test","handle":"longer"}`: nil, `"email":"no mail"}`: nil,
	} {
		if got := pb.NotUnique(fails("records", sheet+body)); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", body, got, want)
		}
	}
	for email, want := range map[string]bool{"ann@example.test": true, "bob@example.test": false, "no mail": false} {
		if got := pb.NewEmailTaken(fails("request-email-change", `{"newEmail":"`+email+`"}`)); got != want {
			t.Errorf("change to %s: taken is %v, want %v", email, got, want)
		}
	}
}

// PocketBase answers a sign-in with the record and what hooks have put into meta, and writes the demand for a second
// factor before it returns apis.ErrMFA.
func TestAuthResponse(t *testing.T) {
	app := open(t, core.BaseAppConfig{})
	users, err := app.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	user := core.NewRecord(users)
	user.SetEmail("ada@example.test")
	user.SetPassword("correct-horse")
	if err := app.Save(user); err != nil {
		t.Fatal(err)
	}
	app.OnRecordAuthRequest().BindFunc(func(e *core.RecordAuthRequestEvent) error {
		e.Meta = map[string]any{"session": map[string]string{"id": "s"}}
		return e.Next()
	})
	app.OnServe().BindFunc(func(e *core.ServeEvent) error {
		e.Router.POST("/in", func(e *core.RequestEvent) error {
			user, err := e.App.FindRecordById("users", user.Id)
			if err != nil {
				return err
			}
			answer, err := pb.AuthResponse(e, user, "own")
			if err != nil {
				return err
			}
			return e.String(http.StatusOK, string(answer.Meta["session"])+string(answer.Record))
		})
		return e.Next()
	})
	h := serve(t, app)
	post := func() *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/in?fields=token", nil))
		return w
	}
	if w := post(); w.Code != http.StatusOK || !strings.HasPrefix(w.Body.String(), `{"id":"s"}{`) || !strings.Contains(w.Body.String(), user.Id) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	users.OTP.Enabled, users.MFA.Enabled = true, true
	if err := app.Save(users); err != nil {
		t.Fatal(err)
	}
	if w := post(); w.Code != http.StatusUnauthorized || !strings.HasPrefix(w.Body.String(), `{"mfaId":"`) {
		t.Errorf("with a second factor: %d %s", w.Code, w.Body)
	}
}
