package device_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/push/device"
)

// A device goes with its session, in whatever way that ends.
func TestRevocation(t *testing.T) {
	own := func(f *fixture, user *core.Record) *core.Record { return must(f.FindRecordById("users", user.Id)) }
	f := start(t, func(c *pushConfig) { c.Topics = []string{"news=*"} })
	bob := f.signIn(t, f.bob)
	bob.register(t, fcmToken)
	bob.want(t, 204, http.MethodPut, "/api/v1/push/topics/news", nil)
	for i, c := range []struct {
		name string
		end  func(t *testing.T, p *phone)
		left int // of the two devices of the user
	}{
		{"sign-out", func(t *testing.T, p *phone) { p.want(t, 204, http.MethodPost, "/api/v1/auth/logout", nil) }, 1},
		{"sign-out with a refresh token", func(t *testing.T, p *phone) {
			p.token = ""
			p.want(t, 204, http.MethodPost, "/api/v1/auth/logout", map[string]string{"refreshToken": p.refresh})
		}, 1},
		{"sign-out everywhere", func(t *testing.T, p *phone) { p.want(t, 204, http.MethodPost, "/api/v1/auth/logout-all", nil) }, 0},
		{"session revoked", func(t *testing.T, p *phone) {
			p.want(t, 204, http.MethodDelete, "/api/v1/auth/sessions/"+p.session, nil)
		}, 1},
		{"others revoked", func(t *testing.T, p *phone) {
			p.want(t, 204, http.MethodPost, "/api/v1/auth/sessions/revoke-others", nil)
		}, 1},
		{"refresh token used twice", func(t *testing.T, p *phone) {
			first := p.refresh
			for range 3 {
				r := p.want(t, 200, http.MethodPost, "/api/v1/auth/refresh", map[string]string{"refreshToken": p.refresh})
				p.refresh = r.JSON(t)["data"].(map[string]any)["refreshToken"].(string)
			}
			p.token = ""
			if r := p.do(t, http.MethodPost, "/api/v1/auth/refresh", map[string]string{"refreshToken": first}); r.Code() != "sessions.refresh_reused" {
				t.Errorf("%d %s", r.Status, r.Body)
			}
		}, 1},
		{"password changed", func(t *testing.T, p *phone) {
			user := own(p.fixture, p.user)
			user.SetPassword("another-horse-battery")
			if err := p.Save(user); err != nil {
				t.Fatal(err)
			}
		}, 0},
		{"excluded by the rule", func(t *testing.T, p *phone) {
			users := must(p.FindCollectionByNameOrId("users"))
			rule := "name != 'banned'"
			users.AuthRule = &rule
			if err := p.Save(users); err != nil {
				t.Fatal(err)
			}
			p.rename(t, p.user, "banned")
		}, 0},
		{"account deleted", func(t *testing.T, p *phone) {
			if err := p.Delete(own(p.fixture, p.user)); err != nil {
				t.Fatal(err)
			}
		}, 0},
		{"collection deleted", func(t *testing.T, p *phone) {
			for _, query := range []string{"DELETE FROM users", "DELETE FROM _externalAuths"} {
				p.exec(t, query, nil)
			}
			if err := p.Delete(must(p.FindCollectionByNameOrId("users"))); err != nil {
				t.Fatal(err)
			}
		}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			user, _ := f.User(t, fmt.Sprintf("user%d@example.test", i))
			p, other := f.signIn(t, user), f.signIn(t, user)
			for j, q := range []*phone{p, other} {
				q.register(t, fmt.Sprintf("%s-%d-%d", fcmToken, i, j))
				q.want(t, 204, http.MethodPut, "/api/v1/push/topics/news", nil)
			}
			c.end(t, p)
			if got := f.count(t, "push_devices WHERE record = '"+user.Id+"'"); got != c.left {
				t.Errorf("%d devices are left, want %d", got, c.left)
			}
			if f.count(t, "push_topics") != f.count(t, "push_devices") {
				t.Error("topics are left without their devices")
			}
			if c.name != "collection deleted" && len(f.reach(t, only(f.bob))) != 1 {
				t.Error("somebody else's device went")
			}
		})
	}
}

// The session's end and the device's are one: if the first is undone, so is the second.
func TestRevocationIsInTheTransaction(t *testing.T) {
	f := start(t, nil)
	p := f.signIn(t, f.ada)
	id := p.register(t, fcmToken)
	users, before := f.version("users"), 0
	err := f.RunInTransaction(func(tx core.App) error {
		if err := f.sessions.EndAll(tx, f.ada, "test"); err != nil {
			return err
		}
		if err := tx.ConcurrentDB().NewQuery("SELECT count(*) FROM push_devices").Row(&before); err != nil {
			return err
		}
		return http.ErrAbortHandler
	})
	if err == nil || before != 0 || !slices.Equal(f.reach(t, only(f.ada)), []string{id}) {
		t.Fatalf("%v, %d devices in the transaction, then %v", err, before, f.reach(t, only(f.ada)))
	}
	// Neither registrations nor the trigger make what is remembered of other tables be read again.
	p.register(t, fcmToken+"2")
	p.want(t, 204, http.MethodPost, "/api/v1/auth/logout", nil)
	if f.version("users") != users || f.count(t, "push_devices") != 0 {
		t.Errorf("%d devices, and the version of users is %d, was %d", f.count(t, "push_devices"), f.version("users"), users)
	}
}

// Tokens without a session do not survive a new password, and neither do their devices; both happen or neither.
func TestTokensWithoutSession(t *testing.T) {
	f := start(t, nil)
	token := must(f.sessions.Harden(f.ada, must(f.ada.NewAuthToken())))
	put := func() apptest.Response {
		return f.Do(t, apptest.Request{
			Method: http.MethodPut, Path: current, Token: token, Header: map[string]string{"X-Device-Id": "0123456789abcdef"},
			Body: map[string]any{"platform": "fcm", "token": fcmToken},
		})
	}
	if r := put(); r.Status != 200 {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	f.signIn(t, f.ada).register(t, fcmToken+"2")
	user := must(f.FindRecordById("users", f.ada.Id))
	user.SetPassword("another-horse-battery")
	failing := f.OnRecordUpdateExecute("users").BindFunc(func(*core.RecordEvent) error { return http.ErrAbortHandler })
	if err := f.Save(user); err == nil || f.count(t, "push_devices") != 2 {
		t.Fatalf("%v, %d devices after a change that failed", err, f.count(t, "push_devices"))
	}
	f.OnRecordUpdateExecute("users").Unbind(failing)
	if err := f.Save(user); err != nil || f.count(t, "push_devices") != 0 {
		t.Fatalf("%v, %d devices", err, f.count(t, "push_devices"))
	}
	if r := put(); r.Status != 401 {
		t.Errorf("%d %s", r.Status, r.Body)
	}
}

// A request that was let in before its session ended leaves no device behind.
func TestRegistrationLosesTheRace(t *testing.T) {
	for name, end := range map[string]func(f *fixture) error{
		"session": func(f *fixture) error { return f.sessions.EndAll(f.App, f.ada, "test") },
		"account": func(f *fixture) error { return f.Delete(must(f.FindRecordById("users", f.ada.Id))) },
		"password": func(f *fixture) error {
			user := must(f.FindRecordById("users", f.ada.Id))
			user.RefreshTokenKey()
			return f.Save(user)
		},
	} {
		arrived := make(chan struct{})
		watch := extensions.Extension{Name: "watch", Middlewares: []*hook.Handler[*core.RequestEvent]{{Id: "watch", Priority: -1, Func: func(e *core.RequestEvent) error {
			if e.Request.Method == http.MethodPut {
				close(arrived)
			}
			return e.Next()
		}}}}
		f := start(t, nil, watch)
		p := f.signIn(t, f.ada)
		text, body := io.Pipe()
		got := make(chan apptest.Response)
		go func() { got <- p.do(t, http.MethodPut, current, text) }()
		<-arrived // the credential was verified, and the handler waits for the body
		if err := end(f); err != nil {
			t.Fatal(err)
		}
		if _, err := body.Write([]byte(`{"platform":"fcm","token":"` + fcmToken + `"}`)); err != nil {
			t.Fatal(err)
		}
		_ = body.Close()
		if r := <-got; r.Status != 401 || f.count(t, "push_devices") != 0 {
			t.Errorf("%s: %d %s, %d devices", name, r.Status, r.Body, f.count(t, "push_devices"))
		}
	}
}

func TestServeForgetsSessionsThatHaveEnded(t *testing.T) {
	f := start(t, nil)
	p := f.signIn(t, f.ada)
	p.register(t, fcmToken)
	f.exec(t, "DROP TRIGGER push_devices_ended", nil)
	p.want(t, 204, http.MethodPost, "/api/v1/auth/logout", nil)
	if f.count(t, "push_devices") != 1 {
		t.Fatal("the trigger was not the reason")
	}
	if err := f.registry.Serve(f.Host); err != nil || f.count(t, "push_devices") != 0 {
		t.Errorf("%v, %d devices", err, f.count(t, "push_devices"))
	}
}

func TestExportAndDeletion(t *testing.T) {
	f := start(t, func(c *pushConfig) { c.Topics, c.Categories, c.Cap = []string{"news=*"}, []string{"likes"}, "3/1h" })
	p := f.signIn(t, f.ada)
	p.register(t, fcmToken, map[string]any{"locale": "de"})
	p.want(t, 204, http.MethodPut, "/api/v1/push/topics/news", nil)
	p.want(t, 200, http.MethodPatch, preferences, `{"categories":{"likes":false},"quietHours":{"start":"22:00","end":"07:00"}}`)
	f.signIn(t, f.bob).register(t, fcmToken+"2")
	noon := time.Now().UTC().Truncate(24 * time.Hour).Add(12 * time.Hour) // not in the quiet hours
	must(f.registry.Judge(t.Context(), f.App, 7, only(f.ada, f.bob).Accounts, "", noon))
	var out bytes.Buffer
	if err := device.Export(t.Context(), f.App, f.ada, &out); err != nil || !json.Valid(out.Bytes()) {
		t.Fatal(err)
	}
	for _, want := range []string{`"locale":"de"`, `"news"`, `"likes":false`, `"22:00"`, `"counted":["20`, p.session} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the export lacks %s: %s", want, out.String())
		}
	}
	if strings.Contains(out.String(), fcmToken) {
		t.Error("the export has the token")
	}
	if err := f.Delete(must(f.FindRecordById("users", f.ada.Id))); err != nil {
		t.Fatal(err)
	}
	if n := f.count(t, "push_devices") + f.count(t, "push_topics") + f.count(t, "push_preferences") + f.count(t, "push_counts"); n != 2 {
		t.Errorf("%d rows are left, want bob's device and count", n)
	}
}

func TestCheckAndMetrics(t *testing.T) {
	f := start(t, nil)
	check := func() extensions.Result { return f.registry.Check(t.Context(), f.Host) }
	if r := check(); r.Level != extensions.OK {
		t.Errorf("%+v", r)
	}
	p := f.signIn(t, f.ada)
	p.want(t, 200, http.MethodPut, current, map[string]any{"platform": "unifiedpush", "subscription": subscription("https://push.example.com/")})
	if r := check(); r.Level != extensions.Warn || !strings.Contains(r.Message, "1 devices of unifiedpush") || r.Next != "satchel push connect webpush" {
		t.Errorf("%+v", r)
	}
	if r := f.Do(t, apptest.Request{Path: "/api/v1/push/webpush"}); r.Status != 404 || r.Code() != "push.webpush_unavailable" {
		t.Errorf("%d %s", r.Status, r.Body)
	}
	f.exec(t, `INSERT INTO push_credentials VALUES ('webpush', '', '{"publicKey":"BP4z9"}', '1', 1)`, nil)
	if r := check(); r.Level != extensions.OK {
		t.Errorf("%+v", r)
	}
	if r := f.Do(t, apptest.Request{Path: "/api/v1/push/webpush"}); r.Status != 200 || !strings.Contains(string(r.Body), `{"publicKey":"BP4z9"}`) {
		t.Errorf("%d %s", r.Status, r.Body)
	}
	id := f.signIn(t, f.bob).register(t, fcmToken)
	f.signIn(t, f.ada).register(t, fcmToken)
	if err := f.registry.Dead(f.App, must(f.registry.List(t.Context(), f.App, only(f.ada), "", 1))[0].ID, time.Time{}, strings.Repeat("x", 999)); err != nil {
		t.Fatal(err)
	}
	if err := f.registry.Dead(f.App, id, time.Time{}, "gone before"); err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, m := range f.registry.Metrics() {
		if m.Read != nil {
			got[m.Name] = m.Read()
			continue
		}
		m.Series(func(s extensions.Sample) { got[m.Name] += s.Value }) // one of two platforms
	}
	for name, want := range map[string]float64{
		"satchel_push_devices_count": 1, "satchel_push_platform_devices_count": 1, "satchel_push_registrations_total": 3, "satchel_push_moves_total": 1, "satchel_push_dead_devices_total": 1,
	} {
		if got[name] != want {
			t.Errorf("%s is %v, want %v", name, got[name], want)
		}
	}
}

// A session that ends by itself is not sent to from that moment on, and its device goes with the next sweep; so does one of
// which nothing is known any more.
func TestSessionsThatAreOver(t *testing.T) {
	f := start(t, nil)
	get := func(id string) string {
		t.Helper()
		list, others, err := f.registry.Get(t.Context(), f.App, []string{id})
		if err != nil || len(list)+len(others) != 1 {
			t.Fatal(list, others, err)
		}
		return others[id]
	}
	stays := f.signIn(t, f.bob).register(t, fcmToken)
	token := must(f.sessions.Harden(f.ada, must(f.ada.NewAuthToken())))
	sessionless := f.Do(t, apptest.Request{
		Method: http.MethodPut, Path: current, Token: token, Header: map[string]string{"X-Device-Id": "0123456789abcdef"},
		Body: map[string]any{"platform": "fcm", "token": fcmToken + "1"},
	}).JSON(t)["data"].(map[string]any)["id"].(string)
	for name, end := range map[string]string{
		"idle":    "UPDATE sessions_logins SET idle_until = {:now} WHERE id = {:id}",
		"too old": "UPDATE sessions_logins SET expires_at = {:now} WHERE id = {:id}",
		"unknown": "DELETE FROM sessions_logins WHERE id = {:id}",
		"ended":   "INSERT INTO sessions_ended VALUES ({:id}, {:now}, 'test')",
	} {
		p := f.signIn(t, f.ada)
		id := p.register(t, fcmToken+"-"+strings.ReplaceAll(name, " ", ""))
		if name == "ended" {
			f.exec(t, "DROP TRIGGER push_devices_ended", nil) // which would have deleted it
		}
		if reason := get(id); reason != "" {
			t.Errorf("%s, before: %s", name, reason)
		}
		f.exec(t, end, dbx.Params{"id": p.session, "now": time.Now().UnixMilli()})
		if reason := get(id); reason != device.ReasonEnded {
			t.Errorf("%s: %q", name, reason)
		}
		if err := f.registry.Sweep(t.Context(), f.App); err != nil {
			t.Fatal(err)
		}
		if reason := get(id); reason != device.ReasonGone {
			t.Errorf("%s, swept: %q", name, reason)
		}
	}
	if get(stays) != "" || get(sessionless) != "" {
		t.Errorf("others: %q, %q", get(stays), get(sessionless))
	}
}

// A change of the password through the API ends all sessions and with them all devices; the app signs in and registers anew.
func TestPasswordThroughTheAPI(t *testing.T) {
	f := start(t, nil)
	p, other := f.signIn(t, f.ada), f.signIn(t, f.ada)
	p.register(t, fcmToken)
	other.register(t, fcmToken+"2")
	bob := f.signIn(t, f.bob).register(t, fcmToken+"3")
	p.want(t, 200, http.MethodPatch, "/api/collections/users/records/"+f.ada.Id, map[string]string{
		"oldPassword": apptest.Password, "password": "another-horse-battery", "passwordConfirm": "another-horse-battery",
	})
	if got := f.reach(t, device.Audience{All: true}); !slices.Equal(got, []string{bob}) {
		t.Errorf("left: %v", got)
	}
}
