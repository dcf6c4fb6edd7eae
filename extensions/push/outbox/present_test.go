package outbox_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/stubs/loopback"
	"github.com/satchelbase/satchel/extensions/push"
)

// Whoever signs out while a message waits, or while it is sent to others, gets none of it.
func TestSignedOut(t *testing.T) {
	f := start(t, options{})
	ada, _ := f.user(t, "ada")
	bob, _ := f.user(t, "bob")
	_, cat := f.user(t, "cat")
	f.apns.BehaveAll(loopback.Down)
	sent := f.send(t, m{"to": m{"users": []string{ada, bob}}, "title": "Hello"})
	await(t, "the first attempt", func() bool { return row[int](t, f, "SELECT count(*) FROM push_deliveries WHERE attempts = 1") == 2 })
	f.apns.BehaveAll(loopback.Fine)
	f.over.Store("session-device-ada", true)
	if _, err := f.NonconcurrentDB().NewQuery("DELETE FROM push_devices WHERE id = 'device-bob'").Execute(); err != nil {
		t.Fatal(err)
	}
	f.hurry(t, "push.chunk")
	if got := f.done(t, sent.ID); got.Skipped != 2 || got.Codes["session_ended"] != 1 || got.Codes["gone"] != 1 || f.apns.Production.Requests() != 2 {
		t.Errorf("%+v, %d requests", got, f.apns.Production.Requests())
	}

	// The parcels of a chunk go one after the other.
	user, _ := f.User(t, "many@example.test")
	list := make([]spec, 150)
	for i := range list {
		list[i] = spec{id: fmt.Sprintf("m%03d", i), user: user.Id, token: token("", i+1)}
	}
	f.devices(t, list...)
	f.apns.Production.SetLatency(400 * time.Millisecond)
	before := f.apns.Production.Requests()
	sent = f.send(t, m{"to": m{"users": []string{user.Id}}, "title": "Hello"})
	await(t, "the first parcel", func() bool { return f.apns.Production.Requests() > before })
	if _, err := f.NonconcurrentDB().NewQuery("DELETE FROM push_devices WHERE record = '" + user.Id + "'").Execute(); err != nil {
		t.Fatal(err)
	}
	if got := f.done(t, sent.ID); got.Accepted != 50 || got.Skipped != 100 || got.Codes["gone"] != 100 || f.apns.Production.Requests() != before+50 {
		t.Errorf("%+v, %d requests", got, f.apns.Production.Requests()-before)
	}
	f.apns.Production.SetLatency(0)

	// Somebody else signs in on the phone while a message for the one before waits.
	register := func(credential string) {
		t.Helper()
		r := f.Do(t, apptest.Request{
			Method: http.MethodPut, Path: "/api/v1/push/devices/current", Token: credential, Header: map[string]string{"X-Device-Id": "0123456789abcdef"},
			Body: m{"platform": "apns", "token": token("", 999)},
		})
		if r.Status != http.StatusOK {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
	}
	dan, credential := f.User(t, "dan@example.test")
	register(credential)
	f.apns.BehaveAll(loopback.Down)
	sent = f.send(t, m{"to": m{"users": []string{dan.Id}}, "title": "For Dan alone"})
	await(t, "an attempt", func() bool {
		return row[int](t, f, "SELECT count(*) FROM push_deliveries WHERE state = 0 AND attempts = 1") == 1
	})
	f.apns.BehaveAll(loopback.Fine)
	register(cat)
	before = f.apns.Production.Requests()
	f.hurry(t, "push.chunk")
	if got := f.done(t, sent.ID); got.Codes["gone"] != 1 || f.apns.Production.Requests() != before {
		t.Errorf("%+v", got)
	}
}

// However many messages are sent at once, an account gets as many as the cap says; one that reaches no device takes no room.
func TestCapIsExact(t *testing.T) {
	f := start(t, options{cfg: func(c *push.Config) { c.Categories, c.Cap = []string{"likes=drop 3/1h", "news=drop"}, "5/1h" }})
	ada, _ := f.user(t, "ada")
	f.devices(t, spec{id: "tablet", user: ada, token: token("", 7)})
	bob, _ := f.user(t, "bob")
	f.apns.Production.SetLatency(30 * time.Millisecond)
	ids := make([]string, 12)
	var wait sync.WaitGroup
	for i := range ids {
		wait.Go(func() {
			ids[i] = f.send(t, m{"to": m{"users": []string{ada}}, "title": "Liked", "category": "likes"}).ID
		})
	}
	wait.Wait()
	accepted, capped := 0, 0
	for _, id := range ids {
		got := f.done(t, id)
		accepted += got.Accepted
		capped += got.Codes["cap"]
	}
	if accepted != 6 || capped != 18 {
		t.Errorf("%d pushes to two devices with a cap of 3, %d were capped", accepted, capped)
	}
	// The common cap counts them as well, and a message that waits for the provider.
	others := make([]string, 4)
	for i := range others {
		wait.Go(func() {
			others[i] = f.send(t, m{"to": m{"users": []string{ada}}, "title": "News", "category": "news"}).ID
		})
	}
	wait.Wait()
	accepted = 0
	for _, id := range others {
		accepted += f.done(t, id).Accepted
	}
	if accepted != 4 {
		t.Errorf("%d pushes, with room for two messages to two devices", accepted)
	}
	f.devices(t, spec{id: "broken", user: bob, token: token("bad000", 8)})
	if _, err := f.NonconcurrentDB().NewQuery("DELETE FROM push_devices WHERE id = 'device-bob'").Execute(); err != nil {
		t.Fatal(err)
	}
	if got := f.done(t, f.send(t, m{"to": m{"users": []string{bob}}, "title": "Liked", "category": "likes"}).ID); got.Accepted != 0 || got.Skipped != 0 {
		t.Errorf("%+v", got)
	}
	if n := row[int](t, f, "SELECT count(*) FROM push_counts WHERE record = '"+bob+"'"); n != 0 {
		t.Errorf("a message that has reached nobody counts %d", n)
	}
}

// The badge is the number of what the account has not read, with the entry of the message itself.
func TestBadge(t *testing.T) {
	f := start(t, options{cfg: func(c *push.Config) { c.Inbox = "inbox" }})
	ada, credential := f.user(t, "ada")
	bob, _ := f.user(t, "bob")
	badges := func() map[string]string {
		t.Helper()
		out := map[string]string{}
		for _, a := range f.box.List("apns") {
			var body struct{ Aps struct{ Badge *int } }
			if err := json.Unmarshal([]byte(a.Body), &body); err != nil || body.Aps.Badge == nil {
				t.Fatalf("%s: %v", a.Body, err)
			}
			out[a.To] += fmt.Sprint(*body.Aps.Badge, " ")
		}
		return out
	}
	send := func(users []string, more m) {
		t.Helper()
		in := m{"to": m{"users": users}, "badgeUnread": true}
		maps.Copy(in, more)
		if got := f.done(t, f.send(t, in).ID); got.Accepted != len(users) {
			t.Errorf("%+v", got)
		}
	}
	send([]string{ada, bob}, m{"title": "One", "inbox": true})
	send([]string{ada}, m{"title": "Two", "inbox": true})
	send([]string{ada, bob}, m{"title": "Three", "inbox": true})
	if r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/push/inbox/read", Token: credential}); r.Status != http.StatusOK {
		t.Errorf("%d %s", r.Status, r.Body)
	}
	send([]string{ada, bob}, nil) // nothing but the number
	if got := badges(); got[tokenOf("ada")] != "1 2 3 0 " || got[tokenOf("bob")] != "1 2 2 " {
		t.Errorf("%v", got)
	}
	for _, in := range []m{{"badge": 1, "title": "x"}, {"silent": true}} {
		in["to"], in["badgeUnread"] = m{"all": true}, true
		if r := f.operation(t, "push.send", in, nil); r.Status < 400 || r.Status >= 500 {
			t.Errorf("%v: %d", in, r.Status)
		}
	}
}
