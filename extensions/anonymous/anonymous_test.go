package anonymous

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/authcache"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/sessions"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

const (
	signInPath  = "/api/v1/auth/anonymous"
	upgradePath = "/api/v1/auth/upgrade"
	notesPath   = "/api/v1/collections/notes/records"
	email       = "ada@example.test"
)

// fixture is an application whose users need no address, and a collection of notes that belong to their owners.
type fixture struct {
	*apptest.App
	accounts *accounts
}

// start returns the application; change may be nil.
func start(t testing.TB, change func(c *Config)) *fixture {
	t.Helper()
	cfg := settings.Defaults[Config]()
	cfg.Collections = []string{"users"}
	if change != nil {
		change(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	vault := secret.Fixed([]byte("root key of the tests"))
	log := audit.NewLog(vault)
	sess := sessions.New(settings.Defaults[sessions.Config](), sessions.Deps{Vault: vault, Audit: log.Append, Version: db.TableVersion})
	cache := settings.Defaults[authcache.Config]()
	a := &accounts{cfg: cfg, sessions: sess, record: log.Append, now: time.Now}
	f := &fixture{accounts: a, App: apptest.Open(t, db.Connect, api.New(settings.Defaults[api.Config]()), store.New(db), audit.New(audit.Config{}, log, nil),
		authcache.New(cache, authcache.NewCache(cache, db.TableVersion, sess.Verify)), sess.Extension(), a.extension())}
	f.users(t, func(c *core.Collection) { c.Fields.GetByName("email").(*core.EmailField).Required = false })
	notes := core.NewBaseCollection("notes")
	users := f.collection(t, "users")
	notes.Fields.Add(&core.RelationField{Name: "owner", CollectionId: users.Id, MaxSelect: 1, CascadeDelete: true}, &core.TextField{Name: "title"})
	rule := "@request.auth.id != '' && owner = @request.auth.id"
	notes.ListRule, notes.ViewRule, notes.CreateRule = &rule, &rule, &rule
	if err := f.Save(notes); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) collection(t testing.TB, name string) *core.Collection {
	t.Helper()
	c, err := f.FindCollectionByNameOrId(name)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (f *fixture) users(t testing.TB, change func(c *core.Collection)) {
	t.Helper()
	c := f.collection(t, "users")
	change(c)
	if err := f.Save(c); err != nil {
		t.Fatal(err)
	}
}

// account is what an app holds of a user.
type account struct {
	Session struct {
		AccessToken, RefreshToken, TokenType, SessionID string
		ExpiresIn                                       int
	}
	Record struct {
		ID, Email, CollectionName string
		Verified                  bool
	}
	IsNew bool
}

func accountOf(t testing.TB, r apptest.Response) account {
	t.Helper()
	var body struct{ Data account }
	if err := json.Unmarshal(r.Body, &body); err != nil {
		t.Fatal(err)
	}
	if r.Status != http.StatusOK || body.Data.Session.AccessToken == "" || body.Data.Record.ID == "" {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	return body.Data
}

func (f *fixture) anonymous(t testing.TB) account {
	t.Helper()
	return accountOf(t, f.Do(t, apptest.Request{Method: http.MethodPost, Path: signInPath}))
}

func (f *fixture) upgrade(t testing.TB, token, email, password string) apptest.Response {
	t.Helper()
	return f.Do(t, apptest.Request{Method: http.MethodPost, Path: upgradePath, Token: token, Body: map[string]string{
		"email": email, "password": password, "passwordConfirm": password,
	}})
}

// status asks for the notes with a token.
func (f *fixture) status(t testing.TB, token string) int {
	t.Helper()
	return f.Do(t, apptest.Request{Path: notesPath, Token: token}).Status
}

func (f *fixture) is(t testing.TB, id string) bool {
	t.Helper()
	user := core.NewRecord(f.collection(t, "users"))
	user.Id = id
	got, err := Is(f, user)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func (f *fixture) count(t testing.TB, from string) (n int) {
	t.Helper()
	if err := f.ConcurrentDB().NewQuery("SELECT count(*) FROM " + from).Row(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestSignIn(t *testing.T) {
	f := start(t, nil)
	r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: signInPath, Body: `{"collection":"users"}`})
	a := accountOf(t, r)
	if !a.IsNew || a.Session.TokenType != "Bearer" || a.Session.ExpiresIn != 900 || a.Session.RefreshToken == "" || a.Session.SessionID == "" ||
		a.Record.Email != "" || a.Record.CollectionName != "users" || r.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s %v", r.Body, r.Header)
	}
	if !f.is(t, a.Record.ID) {
		t.Error("the user is not marked")
	}
	if b := f.anonymous(t); b.Record.ID == a.Record.ID || b.Session.SessionID == a.Session.SessionID {
		t.Error("two sign-ins share an account")
	}

	// Row rules see a user like any other.
	for path, want := range map[string]int{a.Record.ID: http.StatusOK, "somebody": http.StatusBadRequest} {
		r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: notesPath, Token: a.Session.AccessToken, Body: map[string]string{"owner": path, "title": "mine"}})
		if r.Status != want {
			t.Errorf("note of %s: %d %s", path, r.Status, r.Body)
		}
	}
	sessionsOf := f.Do(t, apptest.Request{Path: "/api/v1/auth/sessions", Token: a.Session.AccessToken})
	if !strings.Contains(string(sessionsOf.Body), `"methods":["anonymous"]`) {
		t.Errorf("%s", sessionsOf.Body)
	}
	refreshed := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/auth/refresh", Body: map[string]string{"refreshToken": a.Session.RefreshToken}})
	if refreshed.Status != http.StatusOK {
		t.Errorf("refresh: %d %s", refreshed.Status, refreshed.Body)
	}
}

// The secret that stands in for a password is one that nobody knows, and its hash costs the server nothing.
func TestNobodyKnowsThePassword(t *testing.T) {
	f := start(t, nil)
	hashes := map[string]bool{}
	for range 3 {
		user, err := f.FindRecordById("users", f.anonymous(t).Record.ID)
		if err != nil {
			t.Fatal(err)
		}
		hash := user.GetString("password:hash")
		if !strings.HasPrefix(hash, "$2a$04$") || user.ValidatePassword("") || user.TokenKey() == "" {
			t.Errorf("hash %q, token key %q", hash, user.TokenKey())
		}
		hashes[hash] = true
	}
	if len(hashes) != 3 {
		t.Error("accounts share a password")
	}
}

func TestRefused(t *testing.T) {
	for name, c := range map[string]struct {
		config func(*Config)
		users  func(*core.Collection)
		token  bool
		body   string
		status int
		code   string
		text   string
	}{
		"off, which is the default": {config: func(c *Config) { *c = settings.Defaults[Config]() }, status: 403, code: ErrDisabled.Name},
		"another collection":        {body: `{"collection":"notes"}`, status: 403, code: ErrDisabled.Name},
		"no collection of users":    {config: func(c *Config) { c.Collections = []string{"notes"} }, status: 400, code: ErrUnfit.Name},
		"superusers":                {config: func(c *Config) { c.Collections = []string{"_superusers"} }, status: 400, code: ErrUnfit.Name},
		"a collection that is not":  {config: func(c *Config) { c.Collections = []string{"members"} }, status: 500, code: api.ErrInternal.Name},
		"e-mail required": {
			users:  func(c *core.Collection) { c.Fields.GetByName("email").(*core.EmailField).Required = true },
			status: 400, code: ErrEmailRequired.Name, text: "the field email of the collection users must not be required",
		},
		"second factor": {
			users:  func(c *core.Collection) { c.MFA.Enabled, c.OTP.Enabled = true, true },
			status: 400, code: ErrUnfit.Name,
		},
		"another field required": {
			users:  func(c *core.Collection) { c.Fields.Add(&core.TextField{Name: "nick", Required: true}) },
			status: 400, code: ErrUnfit.Name,
		},
		"the rule of the collection": {
			users:  func(c *core.Collection) { c.AuthRule = new("verified = true") },
			status: 403, code: "api.forbidden",
		},
		"signed in":     {token: true, status: 409, code: ErrSignedIn.Name},
		"unknown field": {body: `{"name":"x"}`, status: 400, code: api.ErrValidation.Name},
		"wrong type":    {body: `{"collection":5}`, status: 400, code: api.ErrValidation.Name},
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, c.config)
			if c.users != nil {
				f.users(t, c.users)
			}
			r := apptest.Request{Method: http.MethodPost, Path: signInPath, Body: c.body}
			want := 0
			if c.token {
				r.Token, want = f.anonymous(t).Session.AccessToken, 1
			}
			got := f.Do(t, r)
			if got.Status != c.status || got.Code() != c.code || !strings.Contains(string(got.Body), c.text) {
				t.Errorf("%d %s, want %d %s", got.Status, got.Body, c.status, c.code)
			}
			if users, marks := f.count(t, "users"), f.count(t, table); users != want || marks != want {
				t.Errorf("%d users and %d marks are left", users, marks)
			}
		})
	}
}

func TestUpgrade(t *testing.T) {
	f := start(t, nil)
	box := f.mails(t)
	a := f.anonymous(t)
	second := f.Do(t, apptest.Request{Method: http.MethodPost, Path: notesPath, Token: a.Session.AccessToken, Body: map[string]string{"owner": a.Record.ID, "title": "mine"}})
	if second.Status != http.StatusOK {
		t.Fatalf("%s", second.Body)
	}
	other := f.otherSession(t, a.Record.ID)

	r := f.upgrade(t, a.Session.AccessToken, email, "a long password")
	b := accountOf(t, r)
	if b.Record.ID != a.Record.ID || b.Record.Email != email || b.Record.Verified || b.IsNew || b.Session.SessionID != a.Session.SessionID || r.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("%s", r.Body)
	}
	if f.is(t, a.Record.ID) {
		t.Error("the user is anonymous still")
	}
	for what, token := range map[string]string{"before": a.Session.AccessToken, "after": b.Session.AccessToken} {
		if got := f.Do(t, apptest.Request{Path: notesPath, Token: token}); !strings.Contains(string(got.Body), `"title":"mine"`) {
			t.Errorf("the notes, with the token from %s: %d %s", what, got.Status, got.Body)
		}
	}
	if got := f.status(t, other); got != http.StatusUnauthorized {
		t.Errorf("another session of the account: %d", got)
	}
	// The refresh token that the app held before works on, so that an answer may be lost.
	if got := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/auth/refresh", Body: map[string]string{"refreshToken": a.Session.RefreshToken}}); got.Status != http.StatusOK {
		t.Errorf("refresh: %d %s", got.Status, got.Body)
	}
	in := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/collections/users/auth-with-password", Body: map[string]string{"identity": email, "password": "a long password"}})
	if in.Status != http.StatusOK {
		t.Errorf("sign in: %d %s", in.Status, in.Body)
	}
	if got := f.count(t, "audit_entries WHERE action = 'anonymous.upgraded' AND subject_id = '"+a.Record.ID+"'"); got != 1 {
		t.Errorf("%d entries in the audit", got)
	}
	box.await(t, email)
}

// An answer that was lost is given again, with the same session; other details are not taken.
func TestUpgradeAgain(t *testing.T) {
	f := start(t, nil)
	a := f.anonymous(t)
	for range 2 {
		if b := accountOf(t, f.upgrade(t, a.Session.AccessToken, email, "a long password")); b.Session.SessionID != a.Session.SessionID {
			t.Error("another session")
		}
	}
	for name, details := range map[string][2]string{
		"another address":  {"eve@example.test", "a long password"},
		"another password": {email, "another long password"},
	} {
		if r := f.upgrade(t, a.Session.AccessToken, details[0], details[1]); r.Status != http.StatusConflict || r.Code() != ErrNotAnonymous.Name {
			t.Errorf("%s: %d %s", name, r.Status, r.Body)
		}
	}
}

// Requests at the same time make one upgrade, whichever wins.
func TestUpgradeAtOnce(t *testing.T) {
	f := start(t, nil)
	a := f.anonymous(t)
	var wg sync.WaitGroup
	statuses := make([]int, 6)
	for i := range statuses {
		wg.Go(func() {
			statuses[i] = f.upgrade(t, a.Session.AccessToken, string(rune('a'+i%2))+"@example.test", "a long password").Status
		})
	}
	wg.Wait()
	slices.Sort(statuses)
	if !slices.Equal(statuses, []int{200, 200, 200, 409, 409, 409}) {
		t.Errorf("statuses %v", statuses)
	}
}

func TestUpgradeRefused(t *testing.T) {
	const good = `{"email":"new@example.test","password":"a long password","passwordConfirm":"a long password"}`
	for name, c := range map[string]struct {
		body   string
		users  func(*core.Collection)
		as     string // guest, user, or an anonymous one
		status int
		code   string
		field  string
	}{
		"guest":           {body: good, as: "guest", status: 401, code: api.ErrUnauthorized.Name},
		"no anonymous":    {body: good, as: "user", status: 409, code: ErrNotAnonymous.Name},
		"taken":           {body: strings.Replace(good, "new@", "taken@", 1), status: 409, code: ErrEmailTaken.Name},
		"short password":  {body: strings.ReplaceAll(good, "a long password", "short"), status: 400, code: api.ErrValidation.Name, field: "password"},
		"long password":   {body: strings.ReplaceAll(good, "a long password", strings.Repeat("a", 100)), status: 400, code: api.ErrValidation.Name, field: "password"},
		"no address":      {body: strings.Replace(good, "new@example.test", "new", 1), status: 400, code: api.ErrValidation.Name, field: "email"},
		"empty address":   {body: strings.Replace(good, "new@example.test", "", 1), status: 400, code: api.ErrValidation.Name, field: "email"},
		"other confirm":   {body: strings.Replace(good, `m":"a long`, `m":"another long`, 1), status: 400, code: api.ErrValidation.Name, field: "passwordConfirm"},
		"nothing":         {body: `{}`, status: 400, code: api.ErrValidation.Name, field: "passwordConfirm"},
		"more than known": {body: strings.Replace(good, `{`, `{"verified":true,`, 1), status: 400, code: api.ErrValidation.Name, field: "verified"},
		"passwords off":   {body: good, users: func(c *core.Collection) { c.PasswordAuth.Enabled = false }, status: 400, code: ErrUnfit.Name},
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t, nil)
			_, userToken := f.User(t, "taken@example.test")
			a := f.anonymous(t)
			if c.users != nil {
				f.users(t, c.users)
			}
			token := map[string]string{"": a.Session.AccessToken, "user": userToken}[c.as]
			if c.as == "user" {
				token = f.signIn(t, "taken@example.test")
			}
			r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: upgradePath, Token: token, Body: c.body})
			if r.Status != c.status || r.Code() != c.code || c.field != "" && !strings.Contains(string(r.Body), `"field":"`+c.field+`"`) {
				t.Errorf("%d %s, want %d %s %s", r.Status, r.Body, c.status, c.code, c.field)
			}
			if !f.is(t, a.Record.ID) || f.status(t, a.Session.AccessToken) != http.StatusOK {
				t.Error("the account has changed")
			}
		})
	}
}

func (f *fixture) signIn(t testing.TB, address string) string {
	t.Helper()
	r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/collections/users/auth-with-password", Body: map[string]string{"identity": address, "password": apptest.Password}})
	var body struct {
		Meta struct{ Session struct{ AccessToken string } }
	}
	if err := json.Unmarshal(r.Body, &body); err != nil || r.Status != http.StatusOK {
		t.Fatalf("%d %s %v", r.Status, r.Body, err)
	}
	return body.Meta.Session.AccessToken
}

// otherSession is an access token of another session of an anonymous user, as it would have on a restored backup of the
// phone.
func (f *fixture) otherSession(t testing.TB, id string) string {
	t.Helper()
	before := f.anonymous(t)
	_, err := f.NonconcurrentDB().Update("sessions_logins", dbx.Params{"record": id}, dbx.HashExp{"id": before.Session.SessionID}).Execute()
	if err != nil {
		t.Fatal(err)
	}
	r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/auth/refresh", Body: map[string]string{"refreshToken": before.Session.RefreshToken}})
	var body struct{ Data struct{ AccessToken string } }
	if err := json.Unmarshal(r.Body, &body); err != nil || r.Status != http.StatusOK {
		t.Fatalf("%d %s %v", r.Status, r.Body, err)
	}
	if got := f.status(t, body.Data.AccessToken); got != http.StatusOK {
		t.Fatalf("the other session: %d", got)
	}
	return body.Data.AccessToken
}
