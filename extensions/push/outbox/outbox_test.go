package outbox_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/stubs/loopback"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/jobs/table"
	"github.com/satchelbase/satchel/extensions/push"
	"github.com/satchelbase/satchel/extensions/push/console"
	"github.com/satchelbase/satchel/extensions/push/hint"
	"github.com/satchelbase/satchel/extensions/push/message"
	"github.com/satchelbase/satchel/extensions/push/outbox"
	"github.com/satchelbase/satchel/extensions/push/trigger"
)

type m = map[string]any

// A message to a thousand devices, of which one in a hundred is dead, reaches each of the others once.
func TestThousand(t *testing.T) {
	f := start(t, options{})
	user, _ := f.User(t, "many@example.test")
	list := make([]spec, 1000)
	for i := range list {
		prefix := ""
		if i%100 == 0 {
			prefix = "dead00"
		}
		list[i] = spec{id: fmt.Sprintf("d%04d", i), user: user.Id, token: token(prefix, i+1)}
	}
	f.devices(t, list...)
	// The stub says that dead tokens died an hour ago; one of them has come back since.
	if _, err := f.NonconcurrentDB().NewQuery(fmt.Sprintf("UPDATE push_devices SET seen_at = %d WHERE id = 'd0100'", time.Now().UnixMilli())).Execute(); err != nil {
		t.Fatal(err)
	}
	sent := f.send(t, m{"to": m{"all": true}, "title": "Hello"})
	got := f.done(t, sent.ID)
	if got.Devices != 1000 || got.Accepted != 990 || got.Dead != 10 {
		t.Errorf("totals %+v", got)
	}
	if n := f.apns.Production.Requests(); n != 1000 {
		t.Errorf("%d requests", n)
	}
	if n := row[int](t, f, "SELECT count(*) FROM push_devices WHERE dead_at > 0"); n != 9 {
		t.Errorf("%d devices are known to be dead", n)
	}
	if n := row[int](t, f, "SELECT count(*) FROM push_chunks"); n != 0 {
		t.Errorf("%d chunks are left", n)
	}
	if headers := f.apns.Headers(); headers["apns-collapse-id"] != sent.ID {
		t.Errorf("headers %v", headers)
	}
	again := f.done(t, f.send(t, m{"to": m{"users": []string{user.Id, user.Id}}, "title": "Hello"}).ID)
	if again.Devices != 991 || again.Accepted != 990 {
		t.Errorf("after that: %+v", again)
	}
}

// What a provider cannot take now is sent later, as soon as it says, and only that.
func TestRetries(t *testing.T) {
	f := start(t, options{})
	ada, _ := f.user(t, "ada")
	bob, _ := f.user(t, "bob")
	cat, _ := f.user(t, "cat")
	f.apns.Behave(tokenOf("ada"), loopback.Busy)
	f.apns.Behave(tokenOf("bob"), loopback.Down)
	begun := time.Now()
	sent := f.send(t, m{"to": m{"users": []string{ada, bob, cat}}, "title": "Hello"})
	if due := f.hurry(t, "push.chunk"); due.Sub(begun) < 7*time.Second {
		t.Errorf("tried again after %v, although the provider said 7 s", due.Sub(begun))
	}
	if got := f.done(t, sent.ID); got.Accepted != 3 || f.apns.Production.Requests() != 5 {
		t.Errorf("%+v, %d requests", got, f.apns.Production.Requests())
	}
	if n := row[int](t, f, "SELECT sum(attempts) FROM push_deliveries"); n != 5 {
		t.Errorf("%d attempts", n)
	}
}

// stormDevices are too few for the breaker to open, which takes half a minute; PUSH_STORM says another number.
const stormDevices = 3

// While a provider is down nothing is lost, and when its time is over a message is dropped.
func TestStorm(t *testing.T) {
	f := start(t, options{})
	user, _ := f.User(t, "storm@example.test")
	devices := stormDevices
	if n, err := strconv.Atoi(os.Getenv("PUSH_STORM")); err == nil {
		devices = n
	}
	list := make([]spec, devices)
	for i := range list {
		list[i] = spec{id: fmt.Sprintf("d%04d", i), user: user.Id, token: token("", i+1)}
	}
	f.devices(t, list...)
	f.apns.BehaveAll(loopback.Down)
	begun := time.Now()
	sent := f.send(t, m{"to": m{"all": true}, "title": "Hello"})
	short := f.send(t, m{"to": m{"all": true}, "title": "Hello", "ttl": 1})
	await(t, "the first attempt", func() bool {
		return row[int](t, f, "SELECT count(*) FROM push_deliveries WHERE attempts > 0") == 2*devices
	})
	if n := f.apns.Production.Requests(); n > 2*devices {
		t.Errorf("%d requests to a provider that is down", n)
	}
	f.apns.BehaveAll(loopback.Fine)
	await(t, "the end of the short one", func() bool { return time.Since(begun) > time.Second && f.show(t, short.ID).State == outbox.Done })
	if got := f.done(t, sent.ID); got.Accepted != devices {
		t.Errorf("%+v", got)
	}
	if got := f.done(t, short.ID); got.Accepted+got.Expired != devices || got.Expired == 0 {
		t.Errorf("one with a lifetime of a second: %+v", got)
	}
}

func TestQuietHours(t *testing.T) {
	f := start(t, options{})
	ada, credential := f.user(t, "ada")
	now := time.Now().UTC()
	quiet := func(hours any) {
		t.Helper()
		r := f.Do(t, apptest.Request{Method: http.MethodPatch, Path: "/api/v1/push/preferences", Token: credential, Body: m{"quietHours": hours}})
		if r.Status != http.StatusOK {
			t.Fatalf("%d %s", r.Status, r.Body)
		}
	}
	quiet(m{"start": now.Add(-time.Hour).Format("15:04"), "end": now.Add(2 * time.Hour).Format("15:04"), "timeZone": "UTC"})
	to := m{"users": []string{ada}}
	ignoring := f.done(t, f.send(t, m{"to": to, "title": "Alarm", "quiet": "ignore"}).ID)
	dropped := f.done(t, f.send(t, m{"to": to, "title": "No", "quiet": "drop"}).ID)
	if ignoring.Accepted != 1 || dropped.Skipped != 1 || dropped.Codes["quiet_hours"] != 1 {
		t.Errorf("ignoring %+v, dropped %+v", ignoring, dropped)
	}
	waiting := f.send(t, m{"to": to, "title": "Later"})
	older := f.send(t, m{"to": to, "title": "1 new", "quiet": "collapse", "collapse": "news"})
	newer := f.send(t, m{"to": to, "title": "2 new", "quiet": "collapse", "collapse": "news"})
	await(t, "three that wait", func() bool {
		return row[int](t, f, "SELECT count(*) FROM jobs_queue WHERE kind = 'push.chunk' AND state = 2") == 3
	})
	quiet(nil)
	for range 3 {
		if due := f.hurry(t, "push.chunk"); due.Before(now.Add(time.Hour)) || due.After(now.Add(3*time.Hour)) {
			t.Errorf("due at %v", due)
		}
		await(t, "one fewer", func() bool {
			return row[int](t, f, "SELECT count(*) FROM jobs_queue WHERE kind = 'push.chunk' AND state < 2") == 0
		})
	}
	if got := f.done(t, waiting.ID); got.Accepted != 1 {
		t.Errorf("waiting: %+v", got)
	}
	if first, second := f.done(t, older.ID), f.done(t, newer.ID); second.Accepted != 1 || first.Accepted+first.Collapsed != 1 {
		t.Errorf("collapsing: %+v, %+v", first, second)
	}
}

func TestPresence(t *testing.T) {
	f := start(t, options{})
	ada, _ := f.user(t, "ada")
	f.devices(t, spec{id: "laptop", user: ada, session: "s2", token: token("", 77)})
	bob, _ := f.user(t, "bob")
	f.live[ada] = []string{"s2"}
	to := m{"users": []string{ada, bob}}
	for policy, want := range map[string]int{"": 1, "account": 1, "device": 2, "ignore": 3} {
		in := m{"to": to, "title": "Hello"}
		if policy != "" {
			in["presence"] = policy
		}
		if got := f.done(t, f.send(t, in).ID); got.Accepted != want || got.Skipped != 3-want || got.Codes["live"] != 3-want {
			t.Errorf("%q: %+v", policy, got)
		}
	}
}

func TestKeys(t *testing.T) {
	f := start(t, options{})
	ada, _ := f.user(t, "ada")
	in := m{"to": m{"users": []string{ada}}, "title": "Hello", "key": "order-1"}
	first := f.send(t, in)
	f.done(t, first.ID)
	if second := f.send(t, in); second.ID != first.ID || !second.Duplicate || first.Duplicate {
		t.Errorf("%+v, then %+v", first, second)
	}
	in["title"] = "Bye"
	if r := f.operation(t, "push.send", in, nil); r.Status != http.StatusConflict || r.Code() != "push.key_reused" {
		t.Errorf("another message with the key: %d %s", r.Status, r.Body)
	}
	if n := f.apns.Production.Requests(); n != 1 {
		t.Errorf("%d requests", n)
	}
}

func TestCancel(t *testing.T) {
	f := start(t, options{})
	ada, credential := f.user(t, "ada")
	in := m{"to": m{"users": []string{ada}}, "title": "Hello", "sendAt": time.Now().Add(time.Hour).UTC()}
	scheduled := f.send(t, in)
	var v outbox.View
	if r := f.operation(t, "push.cancel", m{"id": scheduled.ID}, &v); r.Status != http.StatusOK || v.State != outbox.Cancelled {
		t.Errorf("cancel: %d %s", r.Status, r.Body)
	}
	if r := f.operation(t, "push.cancel", m{"id": scheduled.ID}, nil); r.Code() != "push.ended" {
		t.Errorf("cancel again: %d %s", r.Status, r.Body)
	}
	// One that is on its way.
	f.apns.BehaveAll(loopback.Down)
	delete(in, "sendAt")
	on := f.send(t, in)
	await(t, "the first attempt", func() bool { return row[int](t, f, "SELECT count(*) FROM push_deliveries WHERE attempts > 0") == 1 })
	if r := f.operation(t, "push.cancel", m{"id": on.ID}, &v); r.Status != http.StatusOK || v.Totals.Cancelled != 1 || v.Totals.Queued != 0 {
		t.Errorf("cancel: %d %s", r.Status, r.Body)
	}
	await(t, "the end of all jobs", func() bool { // one that was running when it was cancelled finds nothing to do
		return row[int](t, f, "SELECT count(*) FROM jobs_queue WHERE kind LIKE 'push.%' AND kind <> 'push.sweep'") == 0
	})
	for _, token := range []string{credential, ""} {
		r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/operations/push.send", Token: token, Body: in})
		if r.Status != http.StatusForbidden && r.Status != http.StatusUnauthorized {
			t.Errorf("a user sends: %d", r.Status)
		}
	}
	var page outbox.Page
	decode(t, f.Do(t, apptest.Request{Path: "/api/v1/operations/push.messages?state=cancelled&limit=1", Token: f.root}), &page)
	if len(page.Messages) != 1 || page.Messages[0].ID != on.ID || page.Next == "" {
		t.Errorf("list: %+v", page)
	}
}

func TestTracking(t *testing.T) {
	f := start(t, options{})
	ada, credential := f.user(t, "ada")
	_, other := f.user(t, "bob")
	sent := f.send(t, m{"to": m{"users": []string{ada}}, "title": "Hello", "data": m{"route": "/x"}})
	f.done(t, sent.ID)
	var payload struct{ Delivery, Route string }
	arrived := f.box.List("apns")
	if err := json.Unmarshal([]byte(arrived[0].Body), &payload); err != nil || payload.Route != "/x" || payload.Delivery == "" {
		t.Fatalf("payload %s (%v)", arrived[0].Body, err)
	}
	open := func(token, delivery string) apptest.Response {
		return f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/v1/push/opened", Token: token, Body: m{"delivery": delivery}})
	}
	for range 2 {
		if r := open(credential, payload.Delivery); r.Status != http.StatusNoContent {
			t.Errorf("%d %s", r.Status, r.Body)
		}
	}
	if got := f.show(t, sent.ID).Totals; got.Opened != 1 || got.Accepted != 1 {
		t.Errorf("%+v", got)
	}
	tampered := "A" + payload.Delivery[1:]
	if strings.HasPrefix(payload.Delivery, "A") {
		tampered = "B" + payload.Delivery[1:]
	}
	for _, c := range []struct{ token, delivery, code string }{
		{"", payload.Delivery, "api.unauthorized"},
		{other, payload.Delivery, "push.delivery_invalid"},
		{credential, tampered, "push.delivery_invalid"},
		{credential, "", "push.delivery_invalid"},
		{credential, "!!", "push.delivery_invalid"},
		{credential, strings.Repeat("A", 300), "push.delivery_invalid"},
	} {
		if r := open(c.token, c.delivery); r.Code() != c.code {
			t.Errorf("%.20s: %d %s", c.delivery, r.Status, r.Body)
		}
	}
}

func TestInbox(t *testing.T) {
	f := start(t, options{cfg: func(c *push.Config) { c.Inbox = "inbox" }})
	ada, credential := f.user(t, "ada")
	without, otherCredential := f.User(t, "nodevice@example.test")
	sent := f.send(t, m{
		"to": m{"users": []string{ada, without.Id, "nobodyatall0000"}}, "texts": m{"default": m{"title": "Hello {name}"}}, "values": m{"name": "you"},
		"data": m{"route": "/x"}, "inbox": true,
	})
	f.done(t, sent.ID)
	list := func(token string) []any {
		r := f.Do(t, apptest.Request{Path: "/api/collections/inbox/records", Token: token})
		items, _ := r.JSON(t)["items"].([]any)
		return items
	}
	mine := list(credential)
	if len(mine) != 1 || len(list(otherCredential)) != 1 || len(list("")) != 0 {
		t.Fatalf("%d entries, %d and %d", len(mine), len(list(otherCredential)), len(list("")))
	}
	entry, _ := mine[0].(map[string]any)
	if entry["title"] != "Hello you" || entry["read"] != false || entry["message"] != sent.ID || entry["user"] != ada {
		t.Errorf("entry %v", entry)
	}
	path := "/api/collections/inbox/records/" + fmt.Sprint(entry["id"])
	for body, want := range map[string]int{
		`{"read":true}`: 200, `{"read":false}`: 200, `{"title":"x"}`: 404, `{"read":true,"user":"` + without.Id + `"}`: 404, `{"data":{}}`: 404,
	} {
		if r := f.Do(t, apptest.Request{Method: http.MethodPatch, Path: path, Token: credential, Body: body}); r.Status != want {
			t.Errorf("%s: %d %s", body, r.Status, r.Body)
		}
	}
	if r := f.Do(t, apptest.Request{Method: http.MethodPatch, Path: path, Token: otherCredential, Body: `{"read":true}`}); r.Status != 404 {
		t.Errorf("another one: %d", r.Status)
	}
	if r := f.Do(t, apptest.Request{Method: http.MethodPost, Path: "/api/collections/inbox/records", Token: credential, Body: m{"user": ada, "message": "x"}}); r.Status != 403 && r.Status != 400 {
		t.Errorf("create: %d", r.Status)
	}
	plain := start(t, options{})
	if r := plain.operation(t, "push.send", m{"to": m{"all": true}, "title": "x", "inbox": true}, nil); r.Status != http.StatusBadRequest && r.Status != http.StatusUnprocessableEntity {
		t.Errorf("without an inbox: %d %s", r.Status, r.Body)
	}
}

func TestFilterAndLanguages(t *testing.T) {
	f := start(t, options{})
	ada, _ := f.User(t, "ada@example.test")
	bob, _ := f.User(t, "bob@example.test")
	f.devices(t,
		spec{id: "a", user: ada.Id, token: token("", 1), locale: "pt-BR"}, spec{id: "b", user: bob.Id, token: token("", 2), locale: "de-AT"},
		spec{id: "c", user: bob.Id, token: token("", 3)})
	texts := m{"default": m{"title": "{n, plural, one{# post} other{# posts}}"}, "de": m{"title": "{n, plural, one{# Beitrag} other{# Beiträge}}"}, "pt": m{"title": "{n} publicações"}}
	send := func(where string) outbox.Totals {
		return f.done(t, f.send(t, m{
			"to": m{"filter": m{"collection": "users", "where": where, "params": m{"mail": "bob@example.test"}}}, "texts": texts, "values": m{"n": 2},
		}).ID)
	}
	if got := send("email = {:mail}"); got.Accepted != 2 {
		t.Errorf("%+v", got)
	}
	if got := send("email != {:mail}"); got.Accepted != 1 {
		t.Errorf("%+v", got)
	}
	titles := map[string]int{}
	for _, a := range f.box.List("apns") {
		titles[a.Title]++
	}
	if titles["2 posts"] != 1 || titles["2 Beiträge"] != 1 || titles["2 publicações"] != 1 {
		t.Errorf("titles %v", titles)
	}
	var p console.Preview
	if r := f.operation(t, "push.preview", m{"texts": texts, "values": m{"n": 1}, "locale": "de-CH"}, &p); r.Status != 200 || p.Title != "1 Beitrag" || p.Locale != "de" {
		t.Errorf("preview: %s", r.Body)
	}
}

func TestLocalTime(t *testing.T) {
	f := start(t, options{})
	user, _ := f.User(t, "ada@example.test")
	at := time.Now().UTC()
	f.devices(t, spec{id: "west", user: user.Id, token: token("", 1), zone: "Pacific/Honolulu"}, spec{id: "east", user: user.Id, token: token("", 2), zone: "Pacific/Auckland"})
	sent := f.send(t, m{"to": m{"users": []string{user.Id}}, "title": "Hello", "localAt": at.Format("2006-01-02T15:04:05")})
	await(t, "the east", func() bool { return f.show(t, sent.ID).Totals.Accepted == 1 })
	due := f.hurry(t, "push.chunk")
	if wait := due.Sub(at); wait < 9*time.Hour || wait > 11*time.Hour {
		t.Errorf("Hawaii waits for %v", wait)
	}
	if got := f.done(t, sent.ID); got.Accepted != 2 {
		t.Errorf("%+v", got)
	}
}

func TestMistakes(t *testing.T) {
	f := start(t, options{})
	to := m{"all": true}
	for want, in := range map[string]m{
		"must be one of":    {"to": m{}, "title": "x"},
		"needs a title":     {"to": to},
		"no accounts":       {"to": m{"users": []string{"x"}, "collection": "notes"}, "title": "x"},
		"to.filter.where":   {"to": m{"filter": m{"collection": "users", "where": "nofield = 1"}}, "title": "x"},
		"no relation":       {"to": m{"filter": m{"collection": "users", "account": "email"}}, "title": "x"},
		"value name":        {"to": to, "title": "{name}"},
		"title: at byte":    {"to": to, "title": "{"},
		"there is no":       {"to": to, "template": "nothing"},
		"excludes localAt":  {"to": to, "title": "x", "sendAt": time.Now(), "localAt": "2026-01-01T00:00"},
		"within a year":     {"to": to, "title": "x", "sendAt": time.Now().AddDate(2, 0, 0)},
		"silent":            {"to": to, "title": "x", "silent": true},
		"taken by a":        {"to": to, "title": "x", "data": m{"aps": "x"}},
		"https":             {"to": to, "title": "x", "image": "http://x"},
		"needs a collapse":  {"to": to, "title": "x", "quiet": "collapse"},
		"no such field":     {"to": to, "title": "x", "unknown": 1},
		"texts: they exclu": {"to": to, "title": "x", "texts": m{"default": m{"title": "x"}}},
		"text, a number or": {"to": to, "title": "x", "values": m{"a": []int{1}}},
		"must be at most 1": {"to": m{"users": make([]string, 3000)}, "title": "x", "body": strings.Repeat("x", 4000), "data": big()},
	} {
		if r := f.operation(t, "push.send", in, nil); r.Status < 400 || r.Status >= 500 || !strings.Contains(string(r.Body), want) {
			t.Errorf("%q: %d %s", want, r.Status, r.Body)
		}
	}
	if n := row[int](t, f, "SELECT count(*) FROM push_messages"); n != 0 {
		t.Errorf("%d messages", n)
	}
}

func big() map[string]string {
	out := map[string]string{}
	for i := range 40 {
		out[fmt.Sprint(i)] = strings.Repeat("x", 4000)
	}
	return out
}

// Expo says later which tokens are dead.
func TestReceipts(t *testing.T) {
	f := start(t, options{})
	user, _ := f.User(t, "ada@example.test")
	f.devices(t, spec{id: "good", user: user.Id, token: "ExponentPushToken[good]", platform: "expo"}, spec{id: "gone", user: user.Id, token: "ExponentPushToken[gone]", platform: "expo"})
	f.expo.DieLate("ExponentPushToken[gone]")
	f.expo.HoldReceipts(true)
	sent := f.send(t, m{"to": m{"all": true}, "title": "Hello"})
	if got := f.done(t, sent.ID); got.Accepted != 2 {
		t.Fatalf("%+v", got)
	}
	begun := time.Now()
	if due := f.hurry(t, "push.receipts"); due.Before(begun.Add(14 * time.Minute)) {
		t.Errorf("asked for receipts at %v", due)
	}
	await(t, "another try", func() bool {
		return row[int](t, f, "SELECT count(*) FROM jobs_history WHERE kind = 'push.receipts'") == 1
	})
	f.expo.HoldReceipts(false)
	if due := f.hurry(t, "push.receipts"); due.Before(begun.Add(40 * time.Minute)) {
		t.Errorf("asked again at %v", due)
	}
	await(t, "the receipt", func() bool { return f.show(t, sent.ID).Totals.Dead == 1 })
	if v := f.show(t, sent.ID); v.Totals.Accepted != 1 || row[int](t, f, "SELECT count(*) FROM push_devices WHERE dead_at > 0") != 1 {
		t.Errorf("%+v", v.Totals)
	}
}

// Jobs that an operator cancels leave no delivery without an end, and what is old becomes totals.
func TestSweep(t *testing.T) {
	f := start(t, options{})
	ada, _ := f.user(t, "ada")
	f.apns.BehaveAll(loopback.Down)
	sent := f.send(t, m{"to": m{"users": []string{ada}}, "title": "Hello"})
	var page table.Page
	await(t, "a chunk that waits", func() bool {
		decode(t, f.Do(t, apptest.Request{Path: "/api/v1/operations/jobs.list?state=scheduled&kind=push.chunk", Token: f.root}), &page)
		return len(page.Jobs) == 1
	})
	if _, err := f.jobs.Cancel(f.App.App, page.Jobs[0].ID); err != nil {
		t.Fatal(err)
	}
	change := func(statement string) {
		t.Helper()
		if _, err := f.NonconcurrentDB().NewQuery(statement).Execute(); err != nil {
			t.Fatal(err)
		}
	}
	sweep := func() {
		t.Helper()
		id, err := f.jobs.Enqueue(f.App.App, "push.sweep", struct{}{}, jobs.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if err := f.jobs.Do(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	sweep()
	if v := f.show(t, sent.ID); v.State != outbox.Sending {
		t.Errorf("a chunk that has just been due: %+v", v)
	}
	change("UPDATE push_chunks SET due_at = 1")
	sweep()
	if got := f.done(t, sent.ID); got.Failed != 1 || got.Codes["abandoned"] != 1 {
		t.Errorf("%+v", got)
	}
	change("UPDATE push_messages SET done_at = 1")
	sweep()
	v := f.show(t, sent.ID)
	if row[int](t, f, "SELECT count(*) FROM push_deliveries") != 0 || v.Totals.Failed != 1 || string(v.Message) != "null" {
		t.Errorf("%+v %s", v.Totals, v.Message)
	}
	change("UPDATE push_messages SET id = 1")
	sweep()
	if n := row[int](t, f, "SELECT count(*) FROM push_messages"); n != 0 {
		t.Errorf("%d messages are left", n)
	}
}

// A trigger sends once for each change, whoever made it, and never in the writer's way; a hint is silent and rare.
func TestTriggers(t *testing.T) {
	f := start(t, options{deps: func(d *push.Deps) {
		d.Triggers = func(o *outbox.Outbox) []trigger.Trigger {
			return []trigger.Trigger{{
				Name: "users.welcome", Collection: "users", On: []trigger.Event{trigger.Created, trigger.Deleted}, If: "email ~ 'welcome'",
				Do: func(c *trigger.Change) error {
					_, err := o.Send(c.App, message.Message{Key: c.Key, To: message.To{Topic: "none"}, Title: "Welcome " + c.ID})
					return err
				},
			}}
		}
		d.Hints = []hint.Hint{{Collection: "users", Every: time.Millisecond, To: func(_ core.App, r *core.Record) (message.To, bool) {
			return message.To{Users: []string{r.Id}}, r.GetString("name") != ""
		}}}
	}})
	wanted := func(n int) {
		t.Helper()
		await(t, "the messages", func() bool {
			return row[int](t, f, "SELECT count(*) FROM push_messages WHERE target = 'topic'") >= n &&
				row[int](t, f, "SELECT count(*) FROM jobs_queue WHERE kind = 'push.trigger'") == 0
		})
		if got := row[int](t, f, "SELECT count(*) FROM push_messages WHERE target = 'topic'"); got != n {
			t.Errorf("%d messages, want %d", got, n)
		}
	}
	for i := range 5 {
		f.User(t, fmt.Sprintf("welcome-%d@example.test", i))
		f.User(t, fmt.Sprintf("other-%d@example.test", i))
	}
	wanted(5)
	ada, _ := f.user(t, "ada")
	for i := range 6 {
		record, err := f.FindRecordById("users", ada)
		if err != nil {
			t.Fatal(err)
		}
		record.Set("name", fmt.Sprint("Ada ", i))
		if err := f.Save(record); err != nil {
			t.Fatal(err)
		}
		await(t, "a hint", func() bool { // the change that created the record may have made one more
			return row[int](t, f, "SELECT count(*) FROM push_messages WHERE state = 2 AND target = 'users'") > i
		})
	}
	wanted(5)
	if n := row[int](t, f, "SELECT count(*) FROM push_deliveries WHERE state = 1"); n != 2 {
		t.Errorf("%d hints have been sent, want the 2 of an hour", n)
	}
	for _, a := range f.box.List("apns") {
		if a.Title != "" || !strings.Contains(a.Body, `"content-available":1`) || strings.Contains(a.Body, "delivery") || a.Headers["apns-collapse-id"] != "sync" {
			t.Errorf("arrived: %+v", a)
		}
	}
}

// Ten thousand pushes at a latency of 50 ms, with a row for each, while somebody writes. The targets are 5 s, and a p99 of
// 50 ms for the writes.
func BenchmarkTenThousand(b *testing.B) {
	f := start(b, options{})
	user, _ := f.User(b, "many@example.test")
	list := make([]spec, 10_000)
	for i := range list {
		prefix := ""
		if i%100 == 0 {
			prefix = "dead00"
		}
		list[i] = spec{id: fmt.Sprintf("d%05d", i), user: user.Id, token: token(prefix, i+1)}
	}
	f.devices(b, list...)
	f.apns.Production.SetLatency(50 * time.Millisecond)
	other, _ := f.User(b, "writer@example.test")
	record, err := f.FindRecordById("users", other.Id)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := f.NonconcurrentDB().NewQuery("UPDATE push_devices SET dead_at = 0").Execute(); err != nil {
			b.Fatal(err)
		}
		ended := make(chan struct{})
		var writes []time.Duration
		var wait sync.WaitGroup
		wait.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-ended:
					return
				case <-time.After(10 * time.Millisecond):
				}
				begun := time.Now()
				record.Set("name", fmt.Sprint(i))
				if err := f.Save(record); err != nil {
					b.Error(err)
				}
				writes = append(writes, time.Since(begun))
			}
		})
		begun := time.Now()
		sent, err := f.push.Outbox().Send(f.App.App, message.Message{To: message.To{All: true}, Title: "Hello"})
		if err != nil {
			b.Fatal(err)
		}
		for row[int](b, f, "SELECT count(*) FROM push_messages WHERE state = 2 AND id = (SELECT max(id) FROM push_messages)") == 0 {
			time.Sleep(10 * time.Millisecond)
		}
		took := time.Since(begun)
		close(ended)
		wait.Wait()
		if got := *f.show(b, sent.ID).Totals; got.Devices != 10_000 || got.Queued != 0 {
			b.Errorf("%+v", got)
		}
		slices.Sort(writes)
		b.ReportMetric(10_000/took.Seconds(), "pushes/s")
		b.ReportMetric(float64(writes[len(writes)*99/100].Microseconds())/1000, "write-p99-ms")
	}
}

// From the request for one push to its arrival at the provider. The target is a median of 100 ms.
func BenchmarkOne(b *testing.B) {
	f := start(b, options{})
	ada, _ := f.user(b, "ada")
	for b.Loop() {
		before := f.apns.Production.Requests()
		if _, err := f.push.Outbox().Send(f.App.App, message.Message{To: message.To{Users: []string{ada}}, Title: "Hello"}); err != nil {
			b.Fatal(err)
		}
		for f.apns.Production.Requests() == before {
			time.Sleep(time.Millisecond)
		}
	}
}
