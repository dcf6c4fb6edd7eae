package outbox_test

import (
	"encoding/json"
	"errors"
	"net/http"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/stubs/fcm"
	"github.com/satchelbase/satchel/extensions/internal/stubs/inbox"
	"github.com/satchelbase/satchel/extensions/internal/stubs/loopback"
	"github.com/satchelbase/satchel/extensions/internal/stubs/webpush"
	"github.com/satchelbase/satchel/extensions/push"
	"github.com/satchelbase/satchel/extensions/push/credentials"
	fcmSender "github.com/satchelbase/satchel/extensions/push/fcm"
	webpushSender "github.com/satchelbase/satchel/extensions/push/webpush"
)

// road is a platform on its way through the outbox.
type road struct {
	platform, stub string // and the name of its stand-in in the inbox

	// token makes one, and address is how the stand-in calls it.
	token   func() string
	address func(token string) string
	behave  func(address string, b ...loopback.Behaviour)

	read func(t *testing.T, a inbox.Arrival) carried
	id   string // how one that the provider gives begins

	dead, refused, busy, down string // the codes of answers
}

// carried is what a stand-in says of a push, in the words of no provider.
type carried struct{ title, route, delivery, collapse string }

// roads starts the stand-ins that a fixture does not have, connects them, and lists all.
func roads(t *testing.T) (*fixture, []road) {
	var google *fcm.Server
	var browser *webpush.Server
	f := start(t, options{stubs: func(authority *loopback.Authority, box *inbox.Inbox, cfg *push.Config) {
		var err error
		if google, err = fcm.Start(fcm.Options{Address: "127.0.0.1:0", Authority: authority, Inbox: box}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = google.Close() })
		if browser, err = webpush.Start("127.0.0.1:0", authority, box); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = browser.Close() })
		cfg.FCMEndpoint = google.URL
	}})
	own, err := webpushSender.Generate("mailto:admin@satchel.dev")
	if err != nil {
		t.Fatal(err)
	}
	f.connect(t, credentials.Set{FCM: &fcmSender.Credentials{Account: string(google.Account())}})
	f.connect(t, credentials.Set{WebPush: &own})
	n := 0
	hexadecimal := func() string { n++; return token("", n) }
	same := func(token string) string { return token }
	inner := func(token string) string {
		return strings.TrimSuffix(strings.TrimPrefix(token, "ExponentPushToken["), "]")
	}
	web := road{
		platform: "webpush", stub: "webpush", behave: browser.Behave, read: readWeb, id: browser.URL + "/message/",
		token: func() string {
			sub, err := browser.Subscribe("", "", nil)
			text, bad := json.Marshal(sub)
			if err = errors.Join(err, bad); err != nil {
				t.Fatal(err)
			}
			return string(text)
		},
		dead: "410", refused: "403", busy: "429", down: "503",
	}
	web.address = func(token string) string { return path.Base(parse[webpush.Subscription](t, token).Endpoint) }
	unified := web
	unified.platform = "unifiedpush"
	return f, []road{
		web, unified,
		{
			platform: "apns", stub: "apns", token: hexadecimal, address: same, behave: f.apns.Behave, read: readAPNs,
			dead: "Unregistered", refused: "DeviceTokenNotForTopic", busy: "TooManyRequests", down: "ServiceUnavailable",
		},
		{
			platform: "fcm", stub: "fcm", token: hexadecimal, address: same, behave: google.Behave, read: readFCM, id: "projects/" + fcm.Project + "/messages/",
			dead: "UNREGISTERED", refused: "SENDER_ID_MISMATCH", busy: "QUOTA_EXCEEDED", down: "UNAVAILABLE",
		},
		{
			platform: "expo", stub: "expo", token: func() string { return "ExponentPushToken[" + hexadecimal() + "]" }, address: same, read: readExpo,
			behave: func(address string, b ...loopback.Behaviour) { f.expo.Behave(inner(address), b...) },
			dead:   "DeviceNotRegistered", refused: "MessageTooBig", busy: "TOO_MANY_REQUESTS", down: "INTERNAL_SERVER_ERROR",
		},
	}
}

// parse reads what a stand-in has got.
func parse[T any](t *testing.T, text string) (out T) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return out
}

func readAPNs(t *testing.T, a inbox.Arrival) carried {
	data := parse[struct{ Route, Delivery string }](t, a.Body)
	return carried{a.Title, data.Route, data.Delivery, a.Headers["apns-collapse-id"]}
}

func readFCM(t *testing.T, a inbox.Arrival) carried {
	m := parse[struct {
		Message struct {
			Data    struct{ Route, Delivery string }
			Android struct {
				Key string `json:"collapse_key"`
			}
		}
	}](t, a.Body).Message
	return carried{a.Title, m.Data.Route, m.Data.Delivery, m.Android.Key}
}

func readWeb(t *testing.T, a inbox.Arrival) carried {
	m := parse[struct {
		Data struct{ Route, Delivery string }
	}](t, a.Body)
	return carried{a.Title, m.Data.Route, m.Data.Delivery, a.Headers["Topic"]}
}

func readExpo(t *testing.T, a inbox.Arrival) carried {
	m := parse[struct {
		CollapseID string
		Data       struct{ Route, Delivery string }
	}](t, a.Body)
	return carried{a.Title, m.Data.Route, m.Data.Delivery, m.CollapseID}
}

// The five platforms end in the same rows, whatever their providers call it.
func TestProviders(t *testing.T) {
	f, list := roads(t)
	for _, r := range list {
		t.Run(r.platform, func(t *testing.T) {
			r.ends(t, f)
			r.retries(t, f)
		})
	}
}

// device registers one and returns how the stand-in calls it.
func (r road) device(t *testing.T, f *fixture, user, name string) string {
	t.Helper()
	token := r.token()
	f.devices(t, spec{id: r.platform + "-" + name, user: user, platform: r.platform, token: token})
	return r.address(token)
}

// ends sends to a device that gets it, one that is gone, and one that the provider does not take it for.
func (r road) ends(t *testing.T, f *fixture) {
	user, credential := f.User(t, r.platform+"-ends@example.test")
	good := r.device(t, f, user.Id, "good")
	r.behave(r.device(t, f, user.Id, "dead"), loopback.Dead)
	r.behave(r.device(t, f, user.Id, "refused"), loopback.Refused)
	in := m{"to": m{"users": []string{user.Id}}, "title": "Hello {name}", "values": m{"name": "Ada"}, "data": m{"route": "/x"}}
	sent := f.send(t, in)
	got := f.done(t, sent.ID)
	if got.Devices != 3 || got.Accepted != 1 || got.Dead != 1 || got.Rejected != 1 || got.Codes[r.dead] != 1 || got.Codes[r.refused] != 1 {
		t.Errorf("totals %+v", got)
	}
	if id := row[string](t, f, "SELECT provider FROM push_deliveries WHERE state = 1 AND device = '"+r.platform+"-good'"); id == "" || !strings.HasPrefix(id, r.id) {
		t.Errorf("the provider's id is %q", id)
	}
	dead := row[string](t, f, "SELECT group_concat(id || token || reason) FROM push_devices WHERE platform = '"+r.platform+"' AND dead_at > 0")
	if dead != r.platform+"-dead"+r.dead {
		t.Errorf("dead: %q", dead)
	}
	var arrived []carried
	for _, a := range f.box.List(r.stub) {
		if a.To == good {
			arrived = append(arrived, r.read(t, a))
		}
	}
	if len(arrived) != 1 || arrived[0].title != "Hello Ada" || arrived[0].route != "/x" || arrived[0].collapse != sent.ID {
		t.Fatalf("arrived: %+v", arrived)
	}
	opened := apptest.Request{Method: http.MethodPost, Path: "/api/v1/push/opened", Token: credential, Body: m{"delivery": arrived[0].delivery}}
	if a := f.Do(t, opened); a.Status != http.StatusNoContent || f.show(t, sent.ID).Totals.Opened != 1 {
		t.Errorf("opened: %d %s", a.Status, a.Body)
	}
	if got := f.done(t, f.send(t, in).ID); got.Devices != 2 || got.Accepted != 2 { // the stand-in refuses once
		t.Errorf("after that: %+v", got)
	}
}

// retries sends while the provider is busy, and while it is out of order.
func (r road) retries(t *testing.T, f *fixture) {
	user, _ := f.User(t, r.platform+"-retries@example.test")
	address := r.device(t, f, user.Id, "later")
	for _, c := range []struct {
		answer          loopback.Behaviour
		code            string
		soonest, latest time.Duration
	}{
		{loopback.Busy, r.busy, 7 * time.Second, 10 * time.Second}, {loopback.Down, r.down, time.Second, 5 * time.Second},
	} {
		r.behave(address, c.answer)
		begun := time.Now()
		sent := f.send(t, m{"to": m{"users": []string{user.Id}}, "title": "Hello"})
		await(t, "the first attempt", func() bool { return f.show(t, sent.ID).Totals.Codes[c.code] == 1 })
		answered := time.Now()
		if due := f.hurry(t, "push.chunk"); due.Before(begun.Add(c.soonest)) || due.After(answered.Add(c.latest)) {
			t.Errorf("%s: tried again after %v", c.code, due.Sub(begun))
		}
		if got := f.done(t, sent.ID); got.Accepted != 1 || len(got.Codes) != 0 {
			t.Errorf("%s: %+v", c.code, got)
		}
		if n := row[int](t, f, "SELECT attempts FROM push_deliveries WHERE device = '"+r.platform+"-later' ORDER BY message DESC LIMIT 1"); n != 2 {
			t.Errorf("%s: %d attempts", c.code, n)
		}
	}
}
