package authcache

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/security"
	"github.com/pocketbase/pocketbase/tools/types"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

// TestChangesAreSeenAtOnce changes something behind a remembered token; the very next request must know.
func TestChangesAreSeenAtOnce(t *testing.T) {
	guest := func(t testing.TB, got map[string]any) {
		if got != nil {
			t.Errorf("the token still counts: %v", got)
		}
	}
	field := func(name string, want any) func(testing.TB, map[string]any) {
		return func(t testing.TB, got map[string]any) {
			if got == nil || got[name] != want {
				t.Errorf("%s is %v, want %v", name, got[name], want)
			}
		}
	}
	rename := func(text string) map[string]string { return map[string]string{"name": text} }
	console := func(t testing.TB, f *fixture, query string) {
		_, root := f.Superuser(t)
		r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/sql", Token: root, Body: map[string]string{"query": query}})
		if r.Status != http.StatusOK {
			t.Fatalf("console: %d %s", r.Status, r.Body)
		}
	}
	for _, test := range []struct {
		name   string
		change func(t testing.TB, f *fixture, user *core.Record, token string)
		want   func(testing.TB, map[string]any)
	}{
		{"deleted", func(t testing.TB, f *fixture, user *core.Record, _ string) {
			if err := f.Delete(user); err != nil {
				t.Fatal(err)
			}
		}, guest},
		{"deleted by the user", func(t testing.TB, f *fixture, user *core.Record, token string) {
			r := f.Do(t, apptest.Request{Method: http.MethodDelete, Path: "/api/collections/users/records/" + user.Id, Token: token})
			if r.Status != http.StatusNoContent {
				t.Fatalf("delete: %d %s", r.Status, r.Body)
			}
		}, guest},
		{"deleted by SQL", func(t testing.TB, f *fixture, user *core.Record, _ string) {
			f.exec(t, "DELETE FROM users WHERE id = '"+user.Id+"'")
		}, guest},
		{"password changed", func(t testing.TB, f *fixture, user *core.Record, _ string) {
			user.SetPassword("another-password")
			f.save(t, user)
		}, guest},
		{"password changed by the user", func(t testing.TB, f *fixture, user *core.Record, token string) {
			r := f.Do(t, apptest.Request{
				Method: http.MethodPatch, Path: "/api/collections/users/records/" + user.Id, Token: token,
				Body: map[string]string{"oldPassword": apptest.Password, "password": "another-password", "passwordConfirm": "another-password"},
			})
			if r.Status != http.StatusOK {
				t.Fatalf("change: %d %s", r.Status, r.Body)
			}
		}, guest},
		{"token key changed", func(t testing.TB, f *fixture, user *core.Record, _ string) {
			user.RefreshTokenKey()
			f.save(t, user)
		}, guest},
		{"token key changed by SQL", func(t testing.TB, f *fixture, user *core.Record, _ string) {
			f.exec(t, "UPDATE users SET tokenKey = '"+strings.Repeat("k", 50)+"' WHERE id = '"+user.Id+"'")
		}, guest},
		{"renamed by the user", func(t testing.TB, f *fixture, user *core.Record, token string) {
			r := f.Do(t, apptest.Request{Method: http.MethodPatch, Path: "/api/collections/users/records/" + user.Id, Token: token, Body: rename("Bo")})
			if r.Status != http.StatusOK {
				t.Fatalf("rename: %d %s", r.Status, r.Body)
			}
		}, field("name", "Bo")},
		{"renamed in a transaction", func(t testing.TB, f *fixture, user *core.Record, _ string) {
			err := f.RunInTransaction(func(tx core.App) error {
				user.Set("name", "Bo")
				return tx.Save(user)
			})
			if err != nil {
				t.Fatal(err)
			}
		}, field("name", "Bo")},
		{"renamed by SQL", func(t testing.TB, f *fixture, _ *core.Record, _ string) {
			f.exec(t, "UPDATE users SET name = 'Bo'")
		}, field("name", "Bo")},
		{"unverified by SQL", func(t testing.TB, f *fixture, _ *core.Record, _ string) {
			f.exec(t, "UPDATE users SET verified = FALSE")
		}, field("verified", false)},
		{"custom field in the console", func(t testing.TB, f *fixture, user *core.Record, _ string) {
			console(t, f, "UPDATE users SET plan = 'gold' WHERE id = '"+user.Id+"'")
		}, field("plan", "gold")},
		{"by another process", func(t testing.TB, f *fixture, _ *core.Record, _ string) {
			db, err := sql.Open("sqlite", filepath.Join(f.DataDir(), "data.db"))
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if _, err := db.Exec("UPDATE users SET plan = 'gold'"); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Millisecond) // the store notices other processes within one
		}, field("plan", "gold")},
		{"secret of the collection", func(t testing.TB, f *fixture, _ *core.Record, _ string) {
			users := f.users(t)
			users.AuthToken.Secret = security.RandomString(50)
			f.save(t, users)
		}, guest},
		{"secret by the API", func(t testing.TB, f *fixture, _ *core.Record, _ string) {
			_, root := f.Superuser(t)
			r := f.Do(t, apptest.Request{
				Method: http.MethodPatch, Path: "/api/collections/users", Token: root,
				Body: map[string]any{"authToken": map[string]any{"secret": security.RandomString(50), "duration": 3600}},
			})
			if r.Status != http.StatusOK {
				t.Fatalf("change: %d %s", r.Status, r.Body)
			}
		}, guest},
		{"field added", func(t testing.TB, f *fixture, _ *core.Record, _ string) {
			users := f.users(t)
			users.Fields.Add(&core.TextField{Name: "motto"})
			f.save(t, users)
		}, field("motto", "")},
		{"field hidden", func(t testing.TB, f *fixture, _ *core.Record, _ string) {
			users := f.users(t)
			users.Fields.GetByName("plan").SetHidden(true)
			f.save(t, users)
		}, func(t testing.TB, got map[string]any) {
			if export, ok := got["export"].(map[string]any); !ok || export["plan"] != nil {
				t.Errorf("the hidden field is shown: %v", got)
			}
		}},
		{"collection renamed", func(t testing.TB, f *fixture, _ *core.Record, _ string) {
			users := f.users(t)
			users.Name = "members"
			f.save(t, users)
			f.exec(t, "UPDATE members SET plan = 'gold'")
		}, field("plan", "gold")},
		{"collection deleted", func(t testing.TB, f *fixture, _ *core.Record, _ string) {
			if err := f.Delete(f.users(t)); err != nil {
				t.Fatal(err)
			}
		}, guest},
		{"collection truncated", func(t testing.TB, f *fixture, _ *core.Record, _ string) {
			_, root := f.Superuser(t)
			r := f.Do(t, apptest.Request{Method: http.MethodDelete, Path: "/api/collections/users/truncate", Token: root})
			if r.Status != http.StatusNoContent {
				t.Fatalf("truncate: %d %s", r.Status, r.Body)
			}
		}, guest},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := start(t, Config{Size: 100})
			user, token := f.richUser(t)
			f.remembered(t, token)
			test.change(t, f, user, token)
			test.want(t, f.who(t, token))
		})
	}
}

// TestRestoredFiles opens older files in the same process. The version of the test's own connection, which still looks
// at the files that are gone, cannot have told.
func TestRestoredFiles(t *testing.T) {
	f := start(t, Config{Size: 100})
	backup := t.TempDir()
	if err := f.ClearBootstrap(); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(backup, os.DirFS(f.DataDir())); err != nil {
		t.Fatal(err)
	}
	if err := f.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	_, token := f.User(t, "ann@example.test")
	f.remembered(t, token)
	if err := f.ClearBootstrap(); err != nil {
		t.Fatal(err)
	}
	old, err := filepath.Glob(filepath.Join(f.DataDir(), "*.db*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range old {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(f.DataDir(), os.DirFS(backup)); err != nil {
		t.Fatal(err)
	}
	if err := f.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	if got := f.who(t, token); got != nil {
		t.Errorf("a user of the replaced files is signed in: %v", got)
	}
}

// TestRules looks at a remembered user through a rule.
func TestRules(t *testing.T) {
	f := start(t, Config{Size: 100})
	_, token := f.richUser(t)
	users := f.users(t)
	rule := "@request.auth.plan = 'pro' && @request.auth.tags:each ?= 'a'"
	users.ListRule = &rule
	f.save(t, users)
	list := func() float64 {
		r := f.Do(t, apptest.Request{Path: "/api/collections/users/records", Token: token})
		n, ok := r.JSON(t)["totalItems"].(float64)
		if !ok {
			t.Fatalf("list: %d %s", r.Status, r.Body)
		}
		return n
	}
	for range 3 {
		if n := list(); n != 2 {
			t.Errorf("%v users are listed, want 2", n)
		}
	}
	f.exec(t, `UPDATE users SET tags = '["b"]'`)
	if n := list(); n != 0 {
		t.Errorf("%v users are listed after the tag is gone, want 0", n)
	}
	if f.cache.hits.Load() < 2 {
		t.Error("the cache was not used")
	}
}

func TestExpiry(t *testing.T) {
	f := start(t, Config{Size: 100})
	user, _ := f.User(t, "ann@example.test")
	token, err := user.NewStaticAuthToken(2 * time.Second)
	if err != nil {
		t.Fatal(err)
	}
	f.remembered(t, token)
	time.Sleep(2100 * time.Millisecond)
	if f.who(t, token) != nil {
		t.Error("an expired token counts")
	}
	if n := f.cache.Len(); n != 0 {
		t.Errorf("%d tokens are remembered, want none", n)
	}
}

// TestLifetime moves the clock of the cache only.
func TestLifetime(t *testing.T) {
	f := start(t, Config{Size: 100})
	_, token := f.User(t, "ann@example.test")
	f.remembered(t, token)
	var x *entry
	for _, x = range f.cache.entries {
	}
	now := time.Now()
	for offset, want := range map[time.Duration]bool{
		-time.Hour: false, // the clock was set back: claims such as iat may be in the future again
		0:          true, Lifetime - 5*time.Second: true, Lifetime: false,
	} {
		if got := f.cache.current(f.App.App, x, now.Add(offset)); got != want {
			t.Errorf("after %s: %t, want %t", offset, got, want)
		}
	}
	f.cache.removeExpired(now)
	if f.cache.Len() != 1 {
		t.Error("a good entry was swept away")
	}
	f.cache.removeExpired(now.Add(Lifetime))
	if f.cache.Len() != 0 || len(f.cache.keys) != 0 {
		t.Error("an old entry was left")
	}
}

func TestTokensOfOtherKinds(t *testing.T) {
	f := start(t, Config{Size: 100})
	user, token := f.User(t, "ann@example.test")
	admin, root := f.Superuser(t)

	f.remembered(t, root)
	settingsPage := apptest.Request{Path: "/api/settings", Token: root}
	if r := f.Do(t, settingsPage); r.Status != http.StatusOK {
		t.Errorf("a remembered superuser gets %d", r.Status)
	}
	if err := f.Delete(admin); err == nil {
		t.Fatal("the only superuser must stay")
	}
	admin.RefreshTokenKey()
	f.save(t, admin)
	if r := f.Do(t, settingsPage); r.Status != http.StatusUnauthorized {
		t.Errorf("a superuser whose key was changed gets %d", r.Status)
	}

	refresh := func(token string) string {
		t.Helper()
		r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/collections/users/auth-refresh", Token: token})
		out, _ := r.JSON(t)["token"].(string)
		if r.Status != http.StatusOK || out == "" {
			t.Fatalf("refresh: %d %s", r.Status, r.Body)
		}
		return out
	}
	f.remembered(t, token)
	time.Sleep(1100 * time.Millisecond) // a token made in the same second is the same
	if renewed := refresh(token); renewed == token || f.who(t, renewed) == nil {
		t.Error("a remembered token is not renewed")
	}
	static, err := user.NewStaticAuthToken(time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	f.remembered(t, static)
	if refresh(static) != static {
		t.Error("an impersonation token was renewed")
	}

	r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/files/token", Token: token})
	file, _ := r.JSON(t)["token"].(string)
	if r.Status != http.StatusOK || file == "" {
		t.Fatalf("file token: %d %s", r.Status, r.Body)
	}
	if _, err := f.FindAuthRecordByToken(file, core.TokenTypeFile); err != nil {
		t.Errorf("the file token is not good: %v", err)
	}
	if r := f.Do(t, apptest.Request{Path: "/api/v1/who", Token: file}); r.Status != http.StatusNoContent {
		t.Errorf("a file token signs in: %d", r.Status)
	}
}

// TestHostileTokens fill nothing and are never accepted.
func TestHostileTokens(t *testing.T) {
	f := start(t, Config{Size: 100})
	user, good := f.User(t, "ann@example.test")
	parts := strings.Split(good, ".")
	claims := map[string]any{"id": user.Id, "type": core.TokenTypeAuth, "collectionId": user.Collection().Id, "refreshable": true}
	forged, err := security.NewJWT(claims, "wrong", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	verification, err := user.NewVerificationToken()
	if err != nil {
		t.Fatal(err)
	}
	tokens := []string{
		"x", "..", "a.b.c", strings.Repeat("A", maxToken), strings.Repeat("A", 64<<10), forged, verification, user.Id,
		parts[0] + "." + parts[1] + ".", parts[0] + "." + parts[1] + "." + strings.Repeat("A", 43), good + "A",
		"eyJhbGciOiJub25lIn0." + parts[1] + ".", "Bearer", "Bearer  ",
	}
	for i := range 200 {
		tokens = append(tokens, fmt.Sprintf("%s%d", forged, i))
	}
	for _, token := range tokens {
		if got := f.who(t, token); got != nil {
			t.Errorf("%.40s signs in as %v", token, got)
		}
	}
	if n := f.cache.Len(); n != 0 {
		t.Errorf("%d hostile tokens are remembered", n)
	}
	f.remembered(t, good)
	if f.who(t, "bearer "+good) == nil || f.cache.Len() != 1 {
		t.Error("the scheme makes another token")
	}
	// A token that is too long to be remembered is still good.
	claims["pad"] = strings.Repeat("x", maxToken)
	long, err := security.NewJWT(claims, user.TokenKey()+user.Collection().AuthToken.Secret, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if f.who(t, long) == nil || f.cache.Len() != 1 {
		t.Error("a long token is refused or remembered")
	}
}

// TestSameAsStock compares a remembered record with the one that PocketBase reads.
func TestSameAsStock(t *testing.T) {
	f := start(t, Config{Size: 100})
	_, token := f.richUser(t)
	f.remembered(t, token)
	stock, err := f.FindAuthRecordByToken(token, core.TokenTypeAuth)
	if err != nil {
		t.Fatal(err)
	}
	ours, err := f.cache.found(f.App.App, token)
	if err != nil {
		t.Fatal(err)
	}
	text := func(r *core.Record) string {
		row, err := r.DBExport(f.App.App)
		if err != nil {
			t.Fatal(err)
		}
		out, err := json.Marshal([]any{row, r.PublicExport(), r.FieldsData(), r.Original().FieldsData(), r.Expand(), r.CustomData(), r.IsNew(), r.LastSavedPK()})
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	if text(ours) != text(stock) {
		t.Errorf("have\n%s\nwant\n%s", text(ours), text(stock))
	}
	if !ours.ValidatePassword(apptest.Password) || ours.ValidatePassword("wrong") {
		t.Error("the password is not the user's")
	}
}

// vandal does to the user of a request what no handler should.
func vandal(e *core.RequestEvent) error {
	u := e.Auth
	for _, s := range []string{"tags", "friends"} {
		if list, ok := u.GetRaw(s).([]string); ok {
			list[0] = "vandalised"
			slices.Sort(list)
		}
	}
	if raw, ok := u.GetRaw("notes").(types.JSONRaw); ok {
		raw[0] = 'x'
	}
	u.Set("name", "vandal")
	u.Set("extra", "vandal")
	u.SetVerified(false)
	u.Hide("plan").Unhide("tokenKey").WithCustomData(true).IgnoreEmailVisibility(true)
	u.SetExpand(map[string]any{"friends": u})
	u.SetPassword("vandal-password")
	return nil
}

// TestHandlersDoNotShare lets handlers change their user, at the same time; nobody else may see it.
func TestHandlersDoNotShare(t *testing.T) {
	f := start(t, Config{Size: 100})
	user, token := f.richUser(t)
	want := fmt.Sprint(f.who(t, token))
	f.handle = vandal
	f.cache.Revoke(user.Id) // so that the first of the vandals is the one whose token is verified
	for range 3 {
		if got := fmt.Sprint(f.who(t, token)); got != want {
			t.Fatalf("have\n%s\nwant\n%s", got, want)
		}
	}
	// Saving the own record is common; PocketBase clears the plain password in place when it does.
	f.handle = func(e *core.RequestEvent) error {
		e.Auth.Set("points", 1)
		return e.App.Save(e.Auth)
	}
	done := make(chan error)
	for range 4 {
		go func() {
			for range 5 {
				resp, err := request(f.URL+"/api/v1/who", token)
				if err == nil && resp != http.StatusOK {
					err = fmt.Errorf("status %d", resp)
				}
				if err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if !f.fresh(t, user).ValidatePassword(apptest.Password) {
		t.Error("the password has changed")
	}
}

// request is for goroutines, which must not end the test.
func request(url, token string) (int, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Authorization", token)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}
