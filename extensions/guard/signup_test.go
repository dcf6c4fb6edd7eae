package guard

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

func sheet(email string, more ...string) map[string]any {
	form := map[string]any{"email": email, "password": "long enough", "passwordConfirm": "long enough", "name": "Ann"}
	for i := 0; i+1 < len(more); i += 2 {
		form[more[i]] = more[i+1]
	}
	return form
}

func (w *world) signUpAt(t testing.TB, path string, form any) apptest.Response {
	t.Helper()
	return w.Do(t, apptest.Request{Method: http.MethodPost, Path: path, Body: form})
}

func (w *world) users(t testing.TB) int {
	t.Helper()
	n := 0
	if err := w.DB().Select("count(*)").From("users").Row(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// withHandles gives users a second unique name.
func (w *world) withHandles(t testing.TB) {
	t.Helper()
	w.change(t, func(c *core.Collection) {
		c.Fields.Add(&core.TextField{Name: "handle"})
		c.AddIndex("idx_users_handle", true, "handle", "handle != ''")
	})
	w.ann.Set("handle", "ann") // for the record that the fixture has read before
	if _, err := w.NonconcurrentDB().Update("users", dbx.Params{"handle": "ann"}, dbx.HashExp{"id": w.ann.Id}).Execute(); err != nil {
		t.Fatal(err)
	}
}

var bothPaths = []string{"/api/collections/users/records", "/api/v1/collections/users/records"}

// A taken address is answered like a free one, whatever else is right or wrong with the sign-up.
func TestSignUpAnswersAlike(t *testing.T) {
	for _, path := range bothPaths {
		for _, c := range []struct {
			name   string
			more   []string
			status int
		}{
			{"valid", nil, 200},
			{"visible address", []string{"emailVisibility", "true"}, 200},
			{"own id", []string{"id", "abcdefghijklmno"}, 200},
			{"another free handle", []string{"handle", "eve"}, 200},
			{"taken handle", []string{"handle", "ann"}, 400},
			{"short password", []string{"password", "x", "passwordConfirm", "x"}, 400},
			{"other confirmation", []string{"passwordConfirm", "something else"}, 400},
			{"verified", []string{"verified", "true"}, 400},
			{"malformed id", []string{"id", "x"}, 400},
		} {
			t.Run(path+" "+c.name, func(t *testing.T) {
				w := start(t, nil)
				w.withHandles(t)
				taken := w.signUpAt(t, path, sheet("ann@example.test", c.more...))
				before := w.users(t)
				if before != 1 {
					t.Fatalf("%d accounts after the sign-up with a taken address", before)
				}
				free := w.signUpAt(t, path, sheet("new@example.test", c.more...))
				if taken.Status != c.status || free.Status != c.status {
					t.Fatalf("taken %d %s, free %d %s, want %d", taken.Status, taken.Body, free.Status, free.Body, c.status)
				}
				a, b := w.shape(taken, t), w.shape(free, t)
				if a != b {
					t.Errorf("taken %s\nfree  %s", a, b)
				}
				if got, want := headers(taken), headers(free); !slices.Equal(got, want) {
					t.Errorf("headers %v, want %v", got, want)
				}
			})
		}
	}
}

// shape is the answer with what differs from sign-up to sign-up replaced by its length.
func (w *world) shape(r apptest.Response, t testing.TB) string {
	t.Helper()
	body := r.JSON(t)
	for _, name := range []string{"id", "created", "updated", "requestId"} {
		if v, ok := body[name].(string); ok {
			body[name] = fmt.Sprintf("%d characters", len(v))
		}
	}
	if email, ok := body["email"].(string); ok {
		body["email"] = strings.Contains(email, "@example.test")
	}
	return fmt.Sprint(body)
}

func headers(r apptest.Response) []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(r.Header)), func(name string) bool { return name == "Content-Length" })
}

// The rehearsal is taken back on Satchel's own connections too, and within a transaction of a caller.
func TestRehearsalOnOwnStore(t *testing.T) {
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := settings.Defaults[Config]()
	w := &world{App: apptest.Open(t, db.Connect, api.New(settings.Defaults[api.Config]()), store.New(db), New(cfg, Deps{}))}
	w.addAnn(t)
	w.withHandles(t)
	for range 3 {
		wantStatus(t, w.signUpAt(t, bothPaths[1], sheet("ann@example.test", "handle", "eve")), http.StatusOK, "")
		wantStatus(t, w.signUpAt(t, bothPaths[1], sheet("ann@example.test", "handle", "ann")), http.StatusBadRequest, "api.validation_failed")
	}
	if n := w.users(t); n != 1 {
		t.Fatalf("%d accounts", n)
	}
	eve := core.NewRecord(w.ann.Collection())
	eve.SetEmail("eve@example.test")
	eve.SetPassword("long enough")
	errEnd := errors.New("end")
	err = w.RunInTransaction(func(tx core.App) error {
		if err := tx.Save(eve); err != nil {
			return err
		}
		draft := core.NewRecord(w.ann.Collection())
		draft.Id = core.GenerateDefaultRandomId()
		draft.SetEmail("ann@example.test")
		draft.SetPassword("long enough")
		draft.RefreshTokenKey()
		if err := rehearse(tx, draft); err != nil {
			return err
		}
		n := 0
		if err := tx.DB().Select("count(*)").From("users").Row(&n); err != nil || n != 2 {
			t.Errorf("%d accounts within the transaction (%v)", n, err)
		}
		return errEnd
	})
	if !errors.Is(err, errEnd) || w.users(t) != 1 {
		t.Errorf("%v, %d accounts", err, w.users(t))
	}
}

// One mail an hour goes to the owner, none to anybody else.
func TestOwnerIsTold(t *testing.T) {
	w := start(t, nil)
	for range 3 {
		wantStatus(t, w.signUpAt(t, bothPaths[1], sheet("ann@example.test")), http.StatusOK, "")
	}
	wantStatus(t, w.signUpAt(t, bothPaths[1], sheet("new@example.test")), http.StatusOK, "")
	if _, err := w.NonconcurrentDB().NewQuery("UPDATE {{guard_notices}} SET [[sent]] = [[sent]] - 3600").Execute(); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, w.signUpAt(t, bothPaths[0], sheet("ann@example.test")), http.StatusOK, "")
	got := w.mailbox(t, 2)
	want := "ann@example.test: You already have an account at " + w.Settings().Meta.AppName
	if !slices.Equal(got, []string{want, want}) {
		t.Errorf("mails %q", got)
	}
	if n := w.count(event{actionHidden, "hidden", "ann@example.test"}); n != 4 {
		t.Errorf("%d entries about 4 sign-ups", n)
	}
}

// Both sign-ups hash one password and run the hooks before the insert; a hook of the app sees the truth.
func TestSignUpDoesTheSameWork(t *testing.T) {
	w := start(t, nil)
	var hashed, validated, failed atomic.Int64
	w.OnRecordCreateRequest("users").BindFunc(func(e *core.RecordRequestEvent) error {
		if e.Record.GetString("password:hash") != "" {
			hashed.Add(1)
		}
		err := e.Next()
		if err != nil {
			failed.Add(1)
		}
		return err
	})
	w.OnRecordValidate("users").BindFunc(func(e *core.RecordEvent) error {
		validated.Add(1)
		return e.Next()
	})
	for i, email := range []string{"ann@example.test", "new@example.test"} {
		wantStatus(t, w.signUpAt(t, bothPaths[0], sheet(email)), http.StatusOK, "")
		if n := int64(i + 1); hashed.Load() != n || validated.Load() != n || failed.Load() != 1 {
			t.Errorf("%s: %d hashes, %d validations, %d failures", email, hashed.Load(), validated.Load(), failed.Load())
		}
	}
}

// A sign-up that was not real must not show in the next sign-in, if the collection asks for a verified address.
func TestSignInAfterSignUpTellsNothing(t *testing.T) {
	w := start(t, nil)
	w.change(t, func(c *core.Collection) { *c.AuthRule = "verified = true" })
	var answers []string
	for _, email := range []string{"ann@example.test", "new@example.test"} {
		wantStatus(t, w.signUpAt(t, bothPaths[0], sheet(email)), http.StatusOK, "")
		r := w.Do(t, apptest.Request{
			Method: http.MethodPost, Path: "/api/collections/users/auth-with-password",
			Body: map[string]any{"identity": email, "password": "long enough"},
		})
		answers = append(answers, fmt.Sprint(r.Status, string(r.Body)))
	}
	if answers[0] != answers[1] {
		t.Errorf("taken %s, free %s", answers[0], answers[1])
	}
}

func TestSignUpInBatch(t *testing.T) {
	for _, method := range []string{"POST", "PUT"} {
		w := start(t, nil)
		var answers []string
		for _, email := range []string{"ann@example.test", "new@example.test"} {
			r := w.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/batch", Body: map[string]any{"requests": []any{
				map[string]any{"method": method, "url": "/api/collections/users/records", "body": sheet(email)},
			}}})
			answers = append(answers, fmt.Sprint(r.Status, string(r.Body)))
			if r.Header.Get("Cache-Control") != "no-store" {
				t.Error("the answer may be stored")
			}
		}
		if answers[0] != answers[1] || !strings.HasPrefix(answers[0], "400") || !strings.Contains(answers[0], "outside of a batch") || w.users(t) != 1 {
			t.Errorf("%s: taken %s, free %s", method, answers[0], answers[1])
		}
	}
}

// Those who manage accounts get PocketBase's own answer.
func TestManagersAreTold(t *testing.T) {
	w := start(t, nil)
	_, root := w.Superuser(t)
	_, bob := w.User(t, "bob@example.test")
	ask := func(token string) apptest.Response {
		return w.Do(t, apptest.Request{Method: http.MethodPost, Path: bothPaths[1], Token: token, Body: sheet("ann@example.test")})
	}
	wantStatus(t, ask(root), http.StatusBadRequest, "api.validation_failed")
	wantStatus(t, ask(bob), http.StatusOK, "")
	w.change(t, func(c *core.Collection) { c.ManageRule = new("@request.auth.name = 'boss'") })
	wantStatus(t, ask(bob), http.StatusBadRequest, "api.validation_failed")
}

func TestTell(t *testing.T) {
	w := start(t, func(c *Config) { c.EmailTaken = Tell })
	r := w.signUpAt(t, bothPaths[1], sheet("ann@example.test"))
	wantStatus(t, r, http.StatusConflict, "sessions.email_taken")
	r = w.signUpAt(t, bothPaths[0], sheet("ann@example.test"))
	if r.Status != http.StatusBadRequest || !strings.Contains(string(r.Body), "validation_not_unique") {
		t.Errorf("the stock address answers %d %s", r.Status, r.Body)
	}
	r = w.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/batch", Body: map[string]any{"requests": []any{
		map[string]any{"method": "POST", "url": "/api/collections/users/records", "body": sheet("new@example.test")},
	}}})
	wantStatus(t, r, http.StatusOK, "")
}

func TestChangeOfEmail(t *testing.T) {
	w := start(t, nil)
	_, token := w.User(t, "bob@example.test")
	ask := func(email string) apptest.Response {
		return w.Do(t, apptest.Request{
			Method: http.MethodPost, Path: "/api/v1/collections/users/request-email-change", Token: token, Body: map[string]any{"newEmail": email},
		})
	}
	// The mailer of a free address is slow; nobody waits for it.
	release := make(chan struct{})
	w.OnMailerRecordEmailChangeSend().BindFunc(func(e *core.MailerRecordEvent) error {
		<-release
		return e.Next()
	})
	taken, free := ask("ann@example.test"), ask("new@example.test")
	wantStatus(t, taken, http.StatusNoContent, "")
	wantStatus(t, free, http.StatusNoContent, "")
	if got, want := headers(taken), headers(free); !slices.Equal(got, want) {
		t.Errorf("headers %v, want %v", got, want)
	}
	close(release)
	got := w.mailbox(t, 2)
	if !strings.HasPrefix(got[0], "ann@example.test: You already have") || !strings.HasPrefix(got[1], "new@example.test: ") {
		t.Errorf("mails %q", got)
	}
	wantStatus(t, ask("bob@example.test"), http.StatusBadRequest, "api.validation_failed")
	wantStatus(t, ask("no mail"), http.StatusBadRequest, "api.validation_failed")
	wantStatus(t, ask("ann@example.test"), http.StatusNoContent, "")

	rows := 0
	if err := w.DB().Select("count(*)").From(noticesTable).Row(&rows); err != nil || rows != 2 {
		t.Errorf("%d rows for two addresses (%v)", rows, err)
	}
}

// The other mails to an account are asked for with the same answer and the same headers.
func TestRequestsAnswerAlike(t *testing.T) {
	for _, action := range []string{"request-password-reset", "request-verification", "request-otp"} {
		w := startWithCodes(t, nil)
		var got []string
		for _, email := range []string{"ann@example.test", "nobody@example.test"} {
			r := w.post(t, "192.0.2.1", "", action, map[string]any{"email": email})
			got = append(got, fmt.Sprint(r.Status, len(r.Body), headers(r)))
		}
		if got[0] != got[1] {
			t.Errorf("%s: known %s, unknown %s", action, got[0], got[1])
		}
	}
}

// A request for a code writes one row and hashes one code, whether the account exists or not.
func TestRequestForCodeDoesTheSameWork(t *testing.T) {
	w := startWithCodes(t, nil)
	rows := func() (n int) {
		for _, table := range []string{core.CollectionNameOTPs, codesTable} {
			m := 0
			if err := w.DB().Select("count(*)").From(table).Row(&m); err != nil {
				t.Fatal(err)
			}
			n += m
		}
		return n
	}
	for i, email := range []string{"ann@example.test", "nobody@example.test"} {
		wantStatus(t, w.post(t, "192.0.2.1", "", "request-otp", map[string]any{"email": email}), http.StatusOK, "")
		if rows() != i+1 {
			t.Errorf("%s: %d rows", email, rows())
		}
	}
}

func TestNothingIsStored(t *testing.T) {
	w := start(t, nil)
	for _, path := range []string{"/api/collections/users/", "/api/v1/collections/users/", "/api/collections/nothing/"} {
		for _, action := range []string{
			"auth-with-password", "auth-with-oauth2", "auth-with-otp", "auth-refresh", "request-otp", "request-password-reset",
			"request-verification", "request-email-change", "confirm-password-reset", "confirm-verification", "confirm-email-change", "impersonate/x",
		} {
			r := w.Do(t, apptest.Request{Method: http.MethodPost, Path: path + action, Body: `{}`})
			if r.Status < 400 || r.Header.Get("Cache-Control") != "no-store" {
				t.Errorf("%s%s: %d, Cache-Control %q", path, action, r.Status, r.Header.Get("Cache-Control"))
			}
		}
	}
	for _, r := range []apptest.Request{
		{Method: http.MethodPost, Path: bothPaths[0], Body: sheet("one@example.test")},
		{Method: http.MethodPost, Path: bothPaths[1], Body: sheet("two@example.test")},
		{Method: http.MethodPost, Path: bothPaths[0], Body: `{"email":1}`},
		{Method: http.MethodPost, Path: bothPaths[1], Body: sheet("ann@example.test")},
		{Method: http.MethodPatch, Path: bothPaths[0] + "/x", Body: `{}`},
		{Method: http.MethodPost, Path: "/api/collections/users/auth-with-password", Body: map[string]any{"identity": "ann@example.test", "password": apptest.Password}},
		{Path: "/api/oauth2-redirect?state=x"},
	} {
		if got := w.Do(t, r); got.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("%s %s: %d, Cache-Control %q", r.Method, r.Path, got.Status, got.Header.Get("Cache-Control"))
		}
	}
}
