package sessions_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"mime/multipart"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/sessions"
	"github.com/satchelbase/satchel/extensions/sessions/login"
	"github.com/satchelbase/satchel/extensions/settings"
)

// An access token is good wherever a token of PocketBase is.
func TestAccessTokenEverywhere(t *testing.T) {
	f := start(t)
	user, _ := f.User(t, email)
	g := f.signIn(t, nil)
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	_ = w.WriteField("title", "file")
	_ = w.WriteField("owner", user.Id)
	part, err := w.CreateFormFile("file", "a.txt")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = part.Write([]byte("protected"))
	_ = w.Close()
	created := f.Do(t, apptest.Request{Method: http.MethodPost, Path: notes, Token: "Bearer " + g.AccessToken, Body: &form, Header: map[string]string{"Content-Type": w.FormDataContentType()}})
	if created.Status != http.StatusOK {
		t.Fatalf("create: %d %s", created.Status, created.Body)
	}
	note := created.JSON(t)
	path := fmt.Sprintf("/api/files/notes/%s/%s", note["id"], note["file"])
	for name, c := range map[string]struct {
		request apptest.Request
		want    string
	}{
		"list":       {apptest.Request{Path: notes}, `"title":"file"`},
		"view":       {apptest.Request{Path: notes + "/" + note["id"].(string)}, `"title":"file"`},
		"update":     {apptest.Request{Method: http.MethodPatch, Path: notes + "/" + note["id"].(string), Body: `{"title":"file"}`}, `"title":"file"`},
		"batch":      {apptest.Request{Method: http.MethodPost, Path: "/api/v1/batch", Body: `{"requests":[{"method":"POST","url":"/api/collections/notes/records","body":{"title":"in batch","owner":"` + user.Id + `"}}]}`}, "in batch"},
		"file":       {apptest.Request{Path: path}, "protected"},
		"file token": {apptest.Request{Method: http.MethodPost, Path: "/api/files/token"}, `"token"`},
		"own route":  {apptest.Request{Path: "/api/v1/auth/sessions"}, g.SessionID},
	} {
		c.request.Token = "Bearer " + g.AccessToken
		if r := f.Do(t, c.request); r.Status != http.StatusOK || !strings.Contains(string(r.Body), c.want) {
			t.Errorf("%s: %d %s", name, r.Status, r.Body)
		}
	}
	if r := f.Do(t, apptest.Request{Path: path}); r.Status != http.StatusNotFound {
		t.Errorf("a guest reads the file: %d", r.Status)
	}

	// PocketBase's auth-refresh answers the token as it was: it mints none of its own for it.
	r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/collections/users/auth-refresh", Token: g.AccessToken})
	if r.Status != http.StatusOK || r.JSON(t)["token"] != g.AccessToken {
		t.Errorf("auth-refresh: %d %s", r.Status, r.Body)
	}
	for _, name := range []string{"id", "type", "collectionId", "refreshable"} {
		if _, found := claims(t, g.AccessToken)[name]; found {
			t.Errorf("the access token has the claim %s of PocketBase's tokens", name)
		}
	}
}

func claims(t testing.TB, token string) jwt.MapClaims {
	t.Helper()
	out := jwt.MapClaims{}
	if _, _, err := jwt.NewParser().ParseUnverified(token, out); err != nil {
		t.Fatal(err)
	}
	return out
}

func TestForgedAccessTokens(t *testing.T) {
	f := start(t)
	f.User(t, email)
	g := f.signIn(t, nil)
	var published struct{ Keys []map[string]string }
	if err := json.Unmarshal(f.Do(t, apptest.Request{Path: "/.well-known/jwks.json"}).Body, &published); err != nil || len(published.Keys) != 2 {
		t.Fatalf("keys %v, %v", published, err)
	}
	header, _, err := jwt.NewParser().ParseUnverified(g.AccessToken, jwt.MapClaims{})
	if err != nil {
		t.Fatal(err)
	}
	kid := header.Header["kid"]
	forge := func(method jwt.SigningMethod, key any, head map[string]any) string {
		token := jwt.NewWithClaims(method, claims(t, g.AccessToken))
		token.Header["typ"], token.Header["kid"] = "at+jwt", kid
		maps.Copy(token.Header, head)
		out, err := token.SignedString(key)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	parts := strings.Split(g.AccessToken, ".")
	for name, token := range map[string]string{
		"no algorithm":          forge(jwt.SigningMethodNone, jwt.UnsafeAllowNoneSignatureType, nil),
		"MAC with the public x": forge(jwt.SigningMethodHS256, []byte(published.Keys[0]["x"]), nil),
		"unknown key":           forge(jwt.SigningMethodHS256, []byte("k"), map[string]any{"kid": "nobody"}),
		"cut signature":         g.AccessToken[:len(g.AccessToken)-4],
		"other claims":          parts[0] + "." + strings.Split(forge(jwt.SigningMethodHS256, []byte("k"), nil), ".")[1] + "x." + parts[2],
		"very long":             forge(jwt.SigningMethodHS256, []byte("k"), map[string]any{"pad": strings.Repeat("x", 5000)}),
		"too many parts":        g.AccessToken + ".x",
	} {
		if status := f.status(t, token); status != http.StatusUnauthorized {
			t.Errorf("%s: status %d", name, status)
		}
	}
	f.works(t, "the real one", g.AccessToken, "")
	// Below /api an access token that fails is refused too: its holder knows how to refresh it.
	if r := f.Do(t, apptest.Request{Path: notes, Token: forge(jwt.SigningMethodHS256, []byte("k"), nil)}); r.Status != http.StatusUnauthorized {
		t.Errorf("stock path: %d", r.Status)
	}
}

func TestSessionsAreListedNamedAndEnded(t *testing.T) {
	f := start(t)
	f.User(t, email)
	phone := f.signIn(t, map[string]string{"X-Device-Id": "0d4c2b5e-2f3f-4d57-9a55-1a2b3c4d5e6f", "X-Device-Name": "Ada's phone", "X-App-Platform": "iOS", "X-App-Version": "1.4.0"})
	web := f.signIn(t, map[string]string{"X-App-Platform": "fridge", "X-Device-Id": "not good"})
	var listed struct{ Data []map[string]any }
	r := f.Do(t, apptest.Request{Path: "/api/v1/auth/sessions", Token: phone.AccessToken})
	if err := json.Unmarshal(r.Body, &listed); err != nil || len(listed.Data) != 2 {
		t.Fatalf("%s, %v", r.Body, err)
	}
	slices.SortFunc(listed.Data, func(a, b map[string]any) int { return strings.Compare(a["platform"].(string), b["platform"].(string)) })
	for field, want := range map[string]any{"id": phone.SessionID, "name": "Ada's phone", "platform": "ios", "appVersion": "1.4.0", "current": true, "address": "127.0.0.0/24", "deviceId": "0d4c2b5e-2f3f-4d57-9a55-1a2b3c4d5e6f"} {
		if listed.Data[0][field] != want {
			t.Errorf("%s is %v, want %v", field, listed.Data[0][field], want)
		}
	}
	if listed.Data[1]["platform"] != "other" || listed.Data[1]["deviceId"] != "" {
		t.Errorf("%v", listed.Data[1])
	}

	rename := apptest.Request{Method: http.MethodPatch, Path: "/api/v1/auth/sessions/" + web.SessionID, Token: phone.AccessToken, Body: `{"name":"Fridge"}`}
	if r := f.Do(t, rename); r.Status != http.StatusOK || !strings.Contains(string(r.Body), "Fridge") {
		t.Errorf("rename: %d %s", r.Status, r.Body)
	}
	other, otherToken := f.User(t, "eve@example.test")
	eve := f.sealed(t, other, otherToken)
	end := func(id, token string) int {
		return f.Do(t, apptest.Request{Method: http.MethodDelete, Path: "/api/v1/auth/sessions/" + id, Token: token}).Status
	}
	if got := end(web.SessionID, eve); got != http.StatusNotFound {
		t.Errorf("somebody else ends the session: %d", got)
	}
	f.works(t, "still there", web.AccessToken, "")
	if got := end(web.SessionID, phone.AccessToken); got != http.StatusNoContent {
		t.Errorf("end: %d", got)
	}
	f.works(t, "access token of the ended session", web.AccessToken, sessions.ErrTokenRevoked.Name)
	f.works(t, "stock token of the ended session", web.Stock, sessions.ErrTokenRevoked.Name)
	f.works(t, "the other session", phone.AccessToken, "")
	f.works(t, "its stock token", phone.Stock, "")
	if _, r := f.refresh(t, web.RefreshToken); r.Code() != sessions.ErrTokenRevoked.Name {
		t.Errorf("refresh of the ended session: %s", r.Body)
	}
	if r := f.Do(t, apptest.Request{Path: notes, Token: web.Stock}); r.Status != http.StatusUnauthorized {
		t.Errorf("stock path with an ended session: %d", r.Status)
	}
	if got := end(web.SessionID, phone.AccessToken); got != http.StatusNotFound {
		t.Errorf("end again: %d", got)
	}

	third := f.signIn(t, nil)
	if r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/auth/sessions/revoke-others", Token: third.AccessToken}); r.Status != http.StatusNoContent {
		t.Errorf("others: %d", r.Status)
	}
	f.works(t, "one of the others", phone.AccessToken, sessions.ErrTokenRevoked.Name)
	f.works(t, "the present one", third.AccessToken, "")
	if r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/auth/logout", Body: map[string]string{"refreshToken": third.RefreshToken}}); r.Status != http.StatusNoContent {
		t.Errorf("sign out by refresh token: %d %s", r.Status, r.Body)
	}
	f.works(t, "signed out", third.AccessToken, sessions.ErrTokenRevoked.Name)
	if f.audited(t, "sessions.ended") == 0 {
		t.Error("nothing is audited")
	}
}

func TestLimit(t *testing.T) {
	cfg := settings.Defaults[sessions.Config]()
	cfg.Limit = 3
	f := with(t, cfg)
	f.User(t, email)
	var all []grant
	for range 3 {
		all = append(all, f.signIn(t, nil))
		time.Sleep(2 * time.Millisecond)
	}
	if _, r := f.refresh(t, all[0].RefreshToken); r.Status != http.StatusOK { // now the second is the one used longest ago
		t.Fatal(string(r.Body))
	}
	f.signIn(t, nil)
	f.works(t, "used longest ago", all[1].AccessToken, sessions.ErrTokenRevoked.Name)
	f.works(t, "used again", all[0].AccessToken, "")
	f.works(t, "third", all[2].AccessToken, "")
}

// What ends all sessions of a user, in every way that a record can change.
func TestSessionsEndWithTheAccount(t *testing.T) {
	for name, c := range map[string]struct {
		change func(t *testing.T, f *fixture, user *core.Record)
		code   string
	}{
		"password": {func(t *testing.T, f *fixture, user *core.Record) {
			user.SetPassword("another-password-1")
			save(t, f, user)
		}, sessions.ErrTokenRevoked.Name},
		"e-mail":    {func(t *testing.T, f *fixture, user *core.Record) { user.SetEmail("new@example.test"); save(t, f, user) }, sessions.ErrTokenRevoked.Name},
		"token key": {func(t *testing.T, f *fixture, user *core.Record) { user.RefreshTokenKey(); save(t, f, user) }, sessions.ErrTokenRevoked.Name},
		"ban by the auth rule": {func(t *testing.T, f *fixture, user *core.Record) {
			rule := "name != 'banned'"
			user.Collection().AuthRule = &rule
			if err := f.Save(user.Collection()); err != nil {
				t.Fatal(err)
			}
			user, err := f.FindRecordById("users", user.Id)
			if err != nil {
				t.Fatal(err)
			}
			user.Set("name", "banned")
			save(t, f, user)
		}, sessions.ErrTokenRevoked.Name},
		"deletion": {func(t *testing.T, f *fixture, user *core.Record) {
			if err := f.Delete(user); err != nil {
				t.Fatal(err)
			}
			if n := f.count(t, "SELECT count(*) FROM sessions_logins"); n != 0 {
				t.Errorf("%d sessions are remembered", n)
			}
		}, sessions.ErrTokenRevoked.Name},
	} {
		t.Run(name, func(t *testing.T) {
			f := start(t)
			user, _ := f.User(t, email)
			g, other := f.signIn(t, nil), f.signIn(t, nil)
			f.works(t, "before", g.AccessToken, "")
			c.change(t, f, user)
			f.works(t, "access token", g.AccessToken, c.code)
			f.works(t, "of the other session", other.AccessToken, c.code)
			if status := f.status(t, g.Stock); status != http.StatusUnauthorized {
				t.Errorf("stock token: %d", status)
			}
			if _, r := f.refresh(t, g.RefreshToken); r.Status != http.StatusUnauthorized {
				t.Errorf("refresh: %d", r.Status)
			}
		})
	}
}

func save(t testing.TB, f *fixture, record *core.Record) {
	t.Helper()
	if err := f.Save(record); err != nil {
		t.Fatal(err)
	}
}

// A change that is rolled back ends nothing.
func TestRollbackEndsNothing(t *testing.T) {
	f := start(t)
	user, _ := f.User(t, email)
	g := f.signIn(t, nil)
	_ = f.RunInTransaction(func(tx core.App) error {
		user.RefreshTokenKey()
		if err := tx.Save(user); err != nil {
			t.Error(err)
		}
		return fmt.Errorf("undo")
	})
	f.works(t, "after the rollback", g.AccessToken, "")
}

func TestExpiry(t *testing.T) {
	f := start(t)
	f.User(t, email)
	for _, column := range []string{"idle_until", "expires_at"} {
		g := f.signIn(t, nil)
		f.exec(t, "UPDATE sessions_logins SET "+column+" = {:past} WHERE id = {:id}", dbx.Params{"past": time.Now().Add(-time.Second).UnixMilli(), "id": g.SessionID})
		f.works(t, column, g.AccessToken, sessions.ErrTokenRevoked.Name)
		if _, r := f.refresh(t, g.RefreshToken); r.Status != http.StatusUnauthorized {
			t.Errorf("%s: refreshed: %s", column, r.Body)
		}
	}
}

// Lifetimes may differ by platform.
func TestLifetimesByPlatform(t *testing.T) {
	cfg := settings.Defaults[sessions.Config]()
	if err := cfg.AccessLifetime.UnmarshalText([]byte("15m,web=5m")); err != nil {
		t.Fatal(err)
	}
	f := with(t, cfg)
	f.User(t, email)
	if g := f.signIn(t, map[string]string{"X-App-Platform": "web"}); g.ExpiresIn != 300 {
		t.Errorf("web: %d s", g.ExpiresIn)
	}
	if g := f.signIn(t, map[string]string{"X-App-Platform": "ios"}); g.ExpiresIn != 900 {
		t.Errorf("ios: %d s", g.ExpiresIn)
	}
	for _, bad := range []string{"", "web=5m", "15m,web=", "soon"} {
		if (&login.Lifetimes{}).UnmarshalText([]byte(bad)) == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// The first step of two leaves no session and no token; the second gives them.
func TestSecondFactor(t *testing.T) {
	f := start(t)
	user, _ := f.User(t, email)
	users := user.Collection()
	users.OTP.Enabled, users.MFA.Enabled = true, true
	if err := f.Save(users); err != nil {
		t.Fatal(err)
	}
	r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: signIn, Body: map[string]string{"identity": email, "password": apptest.Password}})
	mfa, _ := r.JSON(t)["mfaId"].(string)
	if r.Status != http.StatusUnauthorized || mfa == "" || strings.Contains(string(r.Body), "oken") {
		t.Fatalf("first step: %d %s", r.Status, r.Body)
	}
	if n := f.count(t, "SELECT count(*) FROM sessions_logins"); n != 0 {
		t.Errorf("%d sessions after the first step", n)
	}
	otp := core.NewOTP(f.App)
	otp.SetCollectionRef(users.Id)
	otp.SetRecordRef(user.Id)
	otp.SetPassword("12345678")
	if err := f.Save(otp); err != nil {
		t.Fatal(err)
	}
	r = f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/collections/users/auth-with-otp", Body: map[string]string{"otpId": otp.Id, "password": "12345678", "mfaId": mfa}})
	if r.Status != http.StatusOK {
		t.Fatalf("second step: %d %s", r.Status, r.Body)
	}
	f.works(t, "second step", grantOf(t, r).AccessToken, "")
	if amr, _ := json.Marshal(claims(t, grantOf(t, r).AccessToken)["amr"]); string(amr) != `["password","otp"]` {
		t.Errorf("amr %s", amr)
	}

	// The same for a method of our own: the demand for a second factor is answered as it is.
	r = f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/sensitive/signin"})
	if mfa, _ := r.JSON(t)["mfaId"].(string); r.Status != http.StatusUnauthorized || mfa == "" {
		t.Errorf("own method: %d %s", r.Status, r.Body)
	}
}

func TestSignInByOwnMethod(t *testing.T) {
	f := start(t)
	user, _ := f.User(t, email)
	r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/sensitive/signin"})
	var body struct {
		Data struct {
			Session grant
			Record  struct{ ID, Email string }
		}
	}
	if err := json.Unmarshal(r.Body, &body); err != nil || r.Status != http.StatusOK || body.Data.Record.ID != user.Id || body.Data.Record.Email != email {
		t.Fatalf("%d %s %v", r.Status, r.Body, err)
	}
	f.works(t, "own method", body.Data.Session.AccessToken, "")
}

// A stock token that is renewed stays bound to its session.
func TestStockRefreshKeepsTheSession(t *testing.T) {
	f := start(t)
	f.User(t, email)
	g := f.signIn(t, nil)
	r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/collections/users/auth-refresh", Token: g.Stock})
	renewed, _ := r.JSON(t)["token"].(string)
	if r.Status != http.StatusOK || claims(t, renewed)["sid"] != g.SessionID {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	f.works(t, "renewed", renewed, "")
	if r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/auth/logout", Token: renewed}); r.Status != http.StatusNoContent {
		t.Errorf("sign out: %d", r.Status)
	}
	f.works(t, "renewed, after signing out", renewed, sessions.ErrTokenRevoked.Name)
}

func TestRealtimeConnectionsEndWithTheSession(t *testing.T) {
	f := start(t)
	f.User(t, email)
	g, stays := f.signIn(t, nil), f.signIn(t, nil)
	gone := f.connect(t, g.AccessToken)
	kept := f.connect(t, stays.Stock)
	if r := f.Do(t, apptest.Request{Method: http.MethodDelete, Path: "/api/v1/auth/sessions/" + g.SessionID, Token: stays.AccessToken}); r.Status != http.StatusNoContent {
		t.Fatal(r.Status)
	}
	select {
	case <-gone:
	case <-time.After(10 * time.Second): // it takes a quarter of a second on a machine that has nothing else to do
		t.Error("the connection is still open")
	}
	select {
	case <-kept:
		t.Error("the connection of another session was closed")
	default:
	}
}

// connect opens a realtime connection and subscribes; the channel is closed when the connection ends.
func (f *fixture) connect(t testing.TB, token string) <-chan struct{} {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, f.URL+"/api/realtime", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	buf := make([]byte, 1024)
	n, err := resp.Body.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(buf[:n]), `"clientId":"`)
	id, _, _ := strings.Cut(rest, `"`)
	r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/realtime", Token: token, Body: map[string]any{"clientId": id, "subscriptions": []string{"notes/*"}}})
	if r.Status != http.StatusNoContent {
		t.Fatalf("subscribe: %d %s", r.Status, r.Body)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			if _, err := resp.Body.Read(buf); err != nil {
				return
			}
		}
	}()
	return ended
}

func TestSweep(t *testing.T) {
	f := start(t)
	f.User(t, email)
	live := f.signIn(t, nil)
	const old = 2500
	f.exec(t, `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {:old})
		INSERT INTO sessions_logins SELECT 'old' || i, collection, record, salt, 1, 0, 0, 0, 0, 0,
			CASE WHEN i % 2 THEN 1 ELSE idle_until END, expires_at, methods, '', '', '', '', '', '', '', '', '', 0 FROM sessions_logins, n WHERE id = {:id}`,
		dbx.Params{"old": old, "id": live.SessionID})
	f.exec(t, `INSERT INTO sessions_ended SELECT id, 1, 'revoked' FROM sessions_logins WHERE id LIKE 'old%' AND idle_until > 1`, nil)
	if err := f.sessions.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := f.count(t, "SELECT count(*) FROM sessions_logins"); n != 1 {
		t.Errorf("%d sessions are left", n)
	}
	if n := f.count(t, "SELECT count(*) FROM sessions_ended"); n != 0 {
		t.Errorf("%d ends are left", n)
	}
	f.works(t, "the live one", live.AccessToken, "")
}

// Admins see everybody's sessions in pages.
func TestAdminsList(t *testing.T) {
	f := start(t)
	user, _ := f.User(t, email)
	for range 5 {
		f.signIn(t, nil)
	}
	_, admin := f.superuser(t)
	seen, cursor := map[string]bool{}, ""
	for range 10 {
		var page struct {
			Data       []struct{ ID, User string }
			Pagination struct {
				NextCursor *string
			}
		}
		r := f.Do(t, apptest.Request{Path: "/api/v1/auth/sessions?limit=2&cursor=" + cursor, Token: admin})
		if err := json.Unmarshal(r.Body, &page); err != nil || r.Status != http.StatusOK {
			t.Fatalf("%d %s %v", r.Status, r.Body, err)
		}
		for _, s := range page.Data {
			if seen[s.ID] || s.User != user.Id {
				t.Errorf("%+v", s)
			}
			seen[s.ID] = true
		}
		if page.Pagination.NextCursor == nil {
			break
		}
		cursor = *page.Pagination.NextCursor
	}
	if len(seen) != 5 {
		t.Errorf("%d sessions in all pages", len(seen))
	}
	for _, bad := range []string{"?cursor=x", "?limit=0", "?limit=1000", "?limit=x"} {
		if r := f.Do(t, apptest.Request{Path: "/api/v1/auth/sessions" + bad, Token: admin}); r.Status != http.StatusBadRequest {
			t.Errorf("%s: %d", bad, r.Status)
		}
	}
	if r := f.Do(t, apptest.Request{Path: "/api/v1/auth/sessions?user=" + user.Id, Token: admin}); strings.Count(string(r.Body), `"user"`) != 5 {
		t.Errorf("of one user: %s", r.Body)
	}
	ids := slices.Collect(func(yield func(string) bool) {
		for id := range seen {
			if !yield(id) {
				return
			}
		}
	})
	if r := f.Do(t, apptest.Request{Method: http.MethodDelete, Path: "/api/v1/auth/sessions/" + ids[0], Token: admin}); r.Status != http.StatusNoContent {
		t.Errorf("an admin ends a session: %d", r.Status)
	}
}

// Under concurrency, a session that has ended is refused from the moment at which the answer to its end is back.
func TestEndIsImmediate(t *testing.T) {
	f := start(t)
	f.User(t, email)
	for range 5 {
		g := f.signIn(t, nil)
		var readers sync.WaitGroup
		stop := make(chan struct{})
		for range 4 {
			readers.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						f.status(t, g.AccessToken)
					}
				}
			})
		}
		if r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/auth/logout", Token: g.AccessToken}); r.Status != http.StatusNoContent {
			t.Fatal(r.Status)
		}
		f.works(t, "right after", g.AccessToken, sessions.ErrTokenRevoked.Name)
		close(stop)
		readers.Wait()
	}
}
