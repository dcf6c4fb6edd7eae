package outbox_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/stubs/loopback"
	"github.com/satchelbase/satchel/extensions/push"
	"github.com/satchelbase/satchel/extensions/push/personal"
)

// holds lists the tables of messages that hold one of the words anywhere.
func (f *fixture) holds(t testing.TB, words ...string) (found []string) {
	t.Helper()
	tables := []string{
		"push_messages", "push_deliveries", "push_chunks", "push_hints", "push_addressees", "push_devices", "push_topics", "push_preferences", "push_counts", "jobs_queue",
	}
	if _, err := f.FindCollectionByNameOrId("inbox"); err == nil {
		tables = append(tables, "inbox")
	}
	for _, table := range tables {
		var columns []string
		if err := f.ConcurrentDB().NewQuery("SELECT name FROM pragma_table_info('" + table + "')").Column(&columns); err != nil {
			t.Fatal(err)
		}
		for _, word := range words {
			if row[int](t, f, "SELECT count(*) FROM "+table+" WHERE instr(\""+strings.Join(columns, "\" || '|' || \"")+"\", '"+word+"')") > 0 {
				found = append(found, table+" has "+word)
			}
		}
	}
	return found
}

// Nothing of a message is left of an account that is deleted, in whatever state the message is; others get theirs.
func TestErase(t *testing.T) {
	for _, way := range []string{"at once", "cleared first"} {
		t.Run(way, func(t *testing.T) {
			f := start(t, options{cfg: func(c *push.Config) { c.Inbox, c.Categories, c.Cap = "inbox", []string{"news=off"}, "9/1h" }})
			ada, credential := f.user(t, "ada")
			f.devices(t, spec{id: "ada-expo", user: ada, token: "ExponentPushToken[ada]", platform: "expo"})
			bob, _ := f.user(t, "bob")
			f.devices(t, spec{id: "bob-expo", user: bob, token: "ExponentPushToken[bob]", platform: "expo"})
			if r := f.Do(t, apptest.Request{Method: http.MethodPatch, Path: "/api/v1/push/preferences", Token: credential, Body: `{"categories":{"news":true}}`}); r.Status != 200 {
				t.Fatalf("%d %s", r.Status, r.Body)
			}
			alone := f.send(t, m{"to": m{"users": []string{ada}}, "title": "Your secret", "category": "news", "inbox": true, "key": "welcome"})
			both := f.send(t, m{"to": m{"users": []string{ada, bob}}, "title": "To both", "inbox": true, "key": "about-" + ada})
			filter := f.send(t, m{"to": m{"filter": m{"collection": "users", "where": "id = {:me}", "params": m{"me": ada}}}, "title": "By filter"})
			all := f.send(t, m{"to": m{"all": true}, "title": "To all"})
			for _, sent := range []string{alone.ID, both.ID, filter.ID, all.ID} {
				f.done(t, sent)
			}
			later := time.Now().Add(time.Hour).UTC()
			scheduled := f.send(t, m{"to": m{"users": []string{ada}}, "title": "Your reminder", "sendAt": later})
			shared := f.send(t, m{"to": m{"users": []string{ada, bob}}, "title": "Later", "sendAt": later})
			f.apns.BehaveAll(loopback.Down)
			waiting := f.send(t, m{"to": m{"all": true}, "title": "Tries again"})
			await(t, "an attempt", func() bool {
				return row[int](t, f, "SELECT count(*) FROM push_deliveries WHERE state = 0 AND attempts = 1") == 2
			})
			f.apns.BehaveAll(loopback.Fine)
			if found := f.holds(t, ada, "device-ada", "ada-expo", "Your "); len(found) < 10 {
				t.Errorf("before: %v", found)
			}
			record, err := f.FindRecordById("users", ada)
			if err != nil {
				t.Fatal(err)
			}
			if way == "cleared first" {
				if err := f.push.Outbox().Clear(t.Context(), f.App.App, record); err != nil {
					t.Fatal(err)
				}
				if found := f.holds(t, "Your s", "Your r"); !slices.Equal(found, []string{"inbox has Your s"}) {
					t.Errorf("cleared: %v", found)
				}
			}
			before := len(f.box.List(""))
			if err := f.Delete(record); err != nil {
				t.Fatal(err)
			}
			if found := f.holds(t, ada, "device-ada", "ada-expo", "Your "); len(found) > 0 {
				t.Errorf("after: %v", found)
			}
			for id, want := range map[string]string{alone.ID: "done 2 2", both.ID: "done 4 4", filter.ID: "done 2 2", all.ID: "done 4 4", scheduled.ID: "cancelled 0 0"} {
				v := f.show(t, id)
				if got := fmt.Sprintln(v.State, v.Totals.Devices, v.Totals.Accepted); got != want+"\n" {
					t.Errorf("message %s: %s, want %s", id, got, want)
				}
				texts := string(v.Message) != "null"
				if want := id == both.ID || id == all.ID; texts != want {
					t.Errorf("message %s: %s", id, v.Message)
				}
			}
			f.hurry(t, "push.chunk")
			if got := f.done(t, waiting.ID); got.Devices != 4 || got.Accepted != 3 && got.Skipped != 1 || got.Codes["account_deleted"] != 1 {
				t.Errorf("the one that waited: %+v", got)
			}
			f.hurry(t, "push.fanout")
			if got := f.done(t, shared.ID); got.Devices != 2 || got.Accepted != 2 {
				t.Errorf("the one that was for two: %+v", got)
			}
			for _, a := range f.box.List("")[before:] {
				if a.To == tokenOf("ada") || strings.Contains(a.To, "[ada]") {
					t.Errorf("sent to a deleted account: %+v", a)
				}
			}
		})
	}
}

// What arrives late for an account that is gone is not written, and neither does a fan-out that had begun name it.
func TestEraseInFlight(t *testing.T) {
	f := start(t, options{})
	ada, _ := f.user(t, "ada")
	f.apns.Production.SetLatency(300 * time.Millisecond)
	sent := f.send(t, m{"to": m{"all": true}, "title": "On its way"})
	await(t, "a delivery", func() bool { return row[int](t, f, "SELECT count(*) FROM push_deliveries") == 1 })
	record, err := f.FindRecordById("users", ada)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Delete(record); err != nil {
		t.Fatal(err)
	}
	if got := f.done(t, sent.ID); got.Devices != 1 || got.Skipped != 1 {
		t.Errorf("%+v", got)
	}
	if found := f.holds(t, ada, "device-ada"); len(found) > 0 {
		t.Errorf("%v", found)
	}
}

// A deleted auth collection takes its accounts along.
func TestEraseCollection(t *testing.T) {
	f := start(t, options{})
	ada, _ := f.user(t, "ada")
	sent := f.send(t, m{"to": m{"users": []string{ada}}, "title": "Your secret"})
	f.done(t, sent.ID)
	for _, query := range []string{"DELETE FROM users", "DELETE FROM _externalAuths"} {
		if _, err := f.NonconcurrentDB().NewQuery(query).Execute(); err != nil {
			t.Fatal(err)
		}
	}
	users, err := f.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Delete(users); err != nil {
		t.Fatal(err)
	}
	await(t, "the end of its traces", func() bool { return len(f.holds(t, ada, "device-ada", "Your ")) == 0 })
	if v := f.show(t, sent.ID); v.Totals.Accepted != 1 {
		t.Errorf("%+v", v.Totals)
	}
}

func TestExport(t *testing.T) {
	f := start(t, options{})
	ada, _ := f.user(t, "ada")
	f.devices(t, spec{id: "german", user: ada, token: token("", 5), locale: "de"})
	bob, _ := f.user(t, "bob")
	f.done(t, f.send(t, m{"to": m{"users": []string{ada, bob}}, "texts": m{"default": m{"title": "Hi {n}"}, "de": m{"title": "Hallo {n}"}}, "values": m{"n": "you"}, "category": "greetings"}).ID)
	f.done(t, f.send(t, m{"to": m{"users": []string{bob}}, "title": "Not yours"}).ID)
	record, err := f.FindRecordById("users", ada)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := personal.Export(t.Context(), f.App.App, record, &out); err != nil {
		t.Fatal(err)
	}
	var list []struct {
		Title, Category string
		SentAt          time.Time
	}
	if err := json.Unmarshal(out.Bytes(), &list); err != nil || len(list) != 2 || strings.Contains(out.String(), "Not yours") {
		t.Fatalf("%v: %s", err, out.String())
	}
	titles := []string{list[0].Title, list[1].Title}
	slices.Sort(titles)
	if !slices.Equal(titles, []string{"Hallo you", "Hi you"}) || list[0].Category != "greetings" || time.Since(list[0].SentAt) > time.Hour {
		t.Errorf("%s", out.String())
	}
}

// Messages of an earlier version are found by their accounts, too.
func TestUpgrade(t *testing.T) {
	f := start(t, options{})
	ada, _ := f.user(t, "ada")
	sent := f.send(t, m{"to": m{"users": []string{ada}}, "title": "Your secret"})
	f.done(t, sent.ID)
	all := f.send(t, m{"to": m{"all": true}, "title": "To all"})
	f.done(t, all.ID)
	for _, migration := range personal.Migrations() {
		if err := errors.Join(migration.Down(f.App.App), migration.Up(f.App.App)); err != nil {
			t.Fatal(err)
		}
	}
	record, err := f.FindRecordById("users", ada)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Delete(record); err != nil {
		t.Fatal(err)
	}
	if found := f.holds(t, ada, "device-ada", "Your "); len(found) > 0 {
		t.Errorf("%v", found)
	}
}
