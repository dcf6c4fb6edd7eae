package outbox_test

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/pocketbase/dbx"

	"github.com/satchelbase/satchel/extensions/internal/stubs/inbox"
	"github.com/satchelbase/satchel/extensions/internal/stubs/loopback"
	"github.com/satchelbase/satchel/extensions/internal/stubs/webpush"
	"github.com/satchelbase/satchel/extensions/push"
	"github.com/satchelbase/satchel/extensions/push/credentials"
	webpushSender "github.com/satchelbase/satchel/extensions/push/webpush"
)

// A device that gets another token while a push with the old one is on its way does not die with that.
func TestTokenReplacedOnTheWay(t *testing.T) {
	var f *fixture
	replaced := false
	f = start(t, options{deps: func(d *push.Deps) {
		d.Live = func(string, string) ([]string, bool) { // is asked between the device and its provider
			if !replaced {
				replaced = true
				time.Sleep(2 * time.Millisecond)
				sealed, err := f.vault.Seal("push_devices|token|phone", []byte("ExponentPushToken[new]"))
				if err != nil {
					t.Error(err)
				}
				_, err = f.NonconcurrentDB().Update("push_devices", dbx.Params{"token": sealed, "seen_at": time.Now().UnixMilli()}, nil).Execute()
				if err != nil {
					t.Error(err)
				}
			}
			return nil, false
		}
	}})
	user, _ := f.User(t, "ada@example.test")
	f.devices(t, spec{id: "phone", user: user.Id, platform: "expo", token: "ExponentPushToken[old]"})
	f.expo.Behave("old", loopback.Dead)
	to := m{"users": []string{user.Id}}
	if got := f.done(t, f.send(t, m{"to": to, "title": "Hello"}).ID); got.Dead != 1 {
		t.Errorf("the first: %+v", got)
	}
	if got := f.done(t, f.send(t, m{"to": to, "title": "Hello"}).ID); got.Accepted != 1 {
		t.Errorf("the second: %+v", got)
	}
}

// A push service that a client has named does not hold up the devices of others for as long as it likes.
func TestPatience(t *testing.T) {
	var hostile *loopback.Server
	var browser *webpush.Server
	f := start(t, options{stubs: func(authority *loopback.Authority, box *inbox.Inbox, _ *push.Config) {
		var err error
		hostile, err = loopback.Serve("127.0.0.1:0", authority, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "86400")
			w.WriteHeader(http.StatusTooManyRequests)
		}), false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = hostile.Close() })
		if browser, err = webpush.Start("127.0.0.1:0", authority, box); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = browser.Close() })
	}})
	own, err := webpushSender.Generate("mailto:admin@satchel.dev")
	if err != nil {
		t.Fatal(err)
	}
	f.connect(t, credentials.Set{WebPush: &own})
	sub, err := browser.Subscribe("", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	sub.Endpoint = hostile.URL
	text, err := json.Marshal(sub)
	if err != nil {
		t.Fatal(err)
	}
	ada, _ := f.user(t, "ada")
	eve, _ := f.User(t, "eve@example.test")
	f.devices(t, spec{id: "browser", user: eve.Id, platform: "webpush", token: string(text)})
	f.apns.Behave(tokenOf("ada"), loopback.Down)
	f.send(t, m{"to": m{"users": []string{ada, eve.Id}}, "title": "Hello"})
	await(t, "the first attempt", func() bool { return row[int](t, f, "SELECT count(*) FROM push_deliveries WHERE attempts = 1") == 2 })
	if due := f.hurry(t, "push.chunk"); time.Until(due) > 15*time.Minute {
		t.Errorf("tried again in %v", time.Until(due))
	}
}
