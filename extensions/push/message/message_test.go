package message_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/push/message"
	"github.com/satchelbase/satchel/extensions/push/template"
	"github.com/satchelbase/satchel/extensions/settings"
)

// check judges a message as the outbox does.
func check(m message.Message) error {
	texts, err := m.ByLanguage()
	if err != nil || texts == nil {
		if err == nil {
			err = m.Check(nil, time.Now())
		}
		return err
	}
	set, err := template.Compile(texts)
	if err != nil {
		return err
	}
	return m.Check(set, time.Now())
}

func TestLimits(t *testing.T) {
	all, later := message.To{All: true}, time.Now().Add(400*24*time.Hour)
	many := func(n int) []string { return slices.Repeat([]string{"u"}, n) }
	values := map[string]any{}
	for i := range 65 {
		values[fmt.Sprint("v", i)] = i
	}
	for name, c := range map[string]struct {
		m    message.Message
		want string
	}{
		"all":             {message.Message{To: all, Title: "Hello"}, ""},
		"users":           {message.Message{To: message.To{Users: many(5000), Collection: "staff"}, Title: "Hello"}, ""},
		"silent":          {message.Message{To: all, Silent: true, Data: map[string]string{"a": "b"}}, ""},
		"nobody":          {message.Message{Title: "Hello"}, "to: must be one of"},
		"two targets":     {message.Message{To: message.To{All: true, Topic: "a"}, Title: "Hello"}, "to: must be one of"},
		"users, many":     {message.Message{To: message.To{Users: many(5001)}, Title: "Hello"}, "to.users"},
		"stray":           {message.Message{To: message.To{All: true, Collection: "users"}, Title: "Hello"}, "to.collection"},
		"filter":          {message.Message{To: message.To{Filter: &message.Filter{Where: "a = 1"}}, Title: "Hello"}, "to.filter"},
		"filter, long":    {message.Message{To: message.To{Filter: &message.Filter{Collection: "a", Where: strings.Repeat("a", 4097)}}, Title: "Hello"}, "to.filter"},
		"filter, params":  {message.Message{To: message.To{Filter: &message.Filter{Collection: "a", Params: values}}, Title: "Hello"}, "to.filter"},
		"key":             {message.Message{To: all, Title: "Hello", Key: strings.Repeat("k", 201)}, "key"},
		"values":          {message.Message{To: all, Title: "Hello", Values: values}, "values"},
		"value, list":     {message.Message{To: all, Title: "{a}", Values: map[string]any{"a": []any{1}}}, "values"},
		"value, missing":  {message.Message{To: all, Title: "{a}"}, "a"},
		"both times":      {message.Message{To: all, Title: "Hello", SendAt: &time.Time{}, LocalAt: "2026-12-24T18:00"}, "sendAt"},
		"too far":         {message.Message{To: all, Title: "Hello", SendAt: &later}, "sendAt"},
		"local, too far":  {message.Message{To: all, Title: "Hello", LocalAt: later.Format("2006-01-02T15:04")}, "localAt"},
		"local, nonsense": {message.Message{To: all, Title: "Hello", LocalAt: "2026-13-24T18:00"}, "localAt"},
		"priority":        {message.Message{To: all, Title: "Hello", Priority: "urgent"}, "priority"},
		"quiet":           {message.Message{To: all, Title: "Hello", Quiet: "loud"}, "quiet"},
		"collapse":        {message.Message{To: all, Title: "Hello", Quiet: message.Collapse}, "quiet"},
		"presence":        {message.Message{To: all, Title: "Hello", Presence: "everywhere"}, "presence"},
		"silent inbox":    {message.Message{To: all, Silent: true, Data: map[string]string{"a": "b"}, Inbox: true}, "inbox"},
		"ttl":             {message.Message{To: all, Title: "Hello", TTL: 2419201}, "ttl"},
		"ttl, negative":   {message.Message{To: all, Title: "Hello", TTL: -2}, "ttl"},
		"texts and title": {message.Message{To: all, Title: "Hello", Texts: template.Texts{template.Default: {Title: "Hello"}}}, "texts"},
	} {
		err := check(c.m)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	big := message.Message{To: message.To{Users: many(5000)}, Title: "Hello", Data: map[string]string{"a": strings.Repeat("x", 128<<10)}}
	if _, err := big.Encode(); err == nil {
		t.Error("a message of more than 128 KB is kept")
	}
}

func TestTimes(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	local := message.Message{LocalAt: "2026-03-29T02:30"} // which Berlin's clocks skip
	for zone, want := range map[string]string{
		"Europe/Berlin": "2026-03-29T01:30:00Z", "America/New_York": "2026-03-29T06:30:00Z", "Pacific/Kiritimati": "2026-03-28T12:30:00Z",
		"": "2026-03-29T02:30:00Z", "Nowhere/City": "2026-03-29T02:30:00Z", "Local": "2026-03-29T02:30:00Z", "../../etc/passwd": "2026-03-29T02:30:00Z",
	} {
		if got := local.At(zone).UTC().Format(time.RFC3339); got != want {
			t.Errorf("%s: %s, want %s", zone, got, want)
		}
	}
	due := local.Due(now)
	if due.After(local.At("Pacific/Kiritimati")) || local.Ends(due).Before(local.At("Etc/GMT+12")) {
		t.Errorf("due %v, ends %v", due, local.Ends(due))
	}
	if got := (&message.Message{TTL: -1}).Ends(now).Sub(now); got <= 0 || got > time.Minute {
		t.Errorf("now or never has %v", got)
	}
	if (&message.Message{}).Due(now) != now || (&message.Message{SendAt: &due}).Due(now) != due {
		t.Error("due")
	}
}

// keep is what the outbox keeps of a message, and reads again.
func TestEncode(t *testing.T) {
	m := message.Message{To: message.To{Users: []string{"b", "a", "b"}}, Title: "Hello", Hint: true}
	m.To = m.To.Clean()
	spec, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	again, err := message.Decode(spec)
	if err != nil || !again.Hint || again.Title != "Hello" || !slices.Equal(again.To.Users, []string{"a", "b"}) {
		t.Errorf("%+v %v", again, err)
	}
	if second, err := again.Encode(); err != nil || second != spec {
		t.Errorf("%s is not %s", second, spec)
	}
	if _, err := message.Decode("{"); err == nil {
		t.Error("nonsense is read")
	}
}

// world has users, and members who name them.
func world(t *testing.T) (app *apptest.App, users []string) {
	t.Helper()
	app = apptest.New(t, api.New(settings.Defaults[api.Config]()))
	collection, err := app.FindCollectionByNameOrId("users")
	if err != nil {
		t.Fatal(err)
	}
	members := core.NewBaseCollection("members")
	members.Fields.Add(&core.TextField{Name: "team"}, &core.RelationField{Name: "user", CollectionId: collection.Id}, &core.TextField{Name: "secret", Hidden: true},
		&core.RelationField{Name: "friends", CollectionId: collection.Id, MaxSelect: 9})
	if err := app.Save(members); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		user, _ := app.User(t, fmt.Sprintf("user-%d@example.test", i))
		users = append(users, user.Id)
		member := core.NewRecord(members)
		member.Load(map[string]any{"team": fmt.Sprint("team ", i%2), "user": user.Id, "friends": users, "secret": "s"})
		if err := app.Save(member); err != nil {
			t.Fatal(err)
		}
	}
	app.Superuser(t)
	return app, users
}

func members(where string, params map[string]any) message.To {
	return message.To{Filter: &message.Filter{Collection: "members", Account: "user", Where: where, Params: params}}
}

func TestTargets(t *testing.T) {
	app, users := world(t)
	find := func(to message.To) []string {
		t.Helper()
		if err := message.CheckTarget(app, to); err != nil {
			t.Fatal(err)
		}
		list, next, err := to.Some(context.Background(), app, "")
		if err != nil || next != "" {
			t.Fatalf("%q %v", next, err)
		}
		var ids []string
		for _, a := range list {
			ids = append(ids, a.ID)
		}
		slices.Sort(ids)
		return slices.Compact(ids)
	}
	sorted := func(ids ...string) []string { return slices.Sorted(slices.Values(ids)) }
	friends := members(`team = "team 1"`, nil)
	friends.Filter.Account = "friends"
	for name, c := range map[string]struct {
		to   message.To
		want []string
	}{
		"users":       {message.To{Users: users[:2]}, sorted(users[:2]...)},
		"records":     {members("team = {:team}", map[string]any{"team": "team 0"}), sorted(users[0], users[2])},
		"all of them": {members("", nil), sorted(users...)},
		"several":     {friends, sorted(users[0], users[1])},
		"the account": {message.To{Filter: &message.Filter{Collection: "users", Where: `email = "user-1@example.test"`}}, []string{users[1]}},
		"a relation":  {members(`user.email ~ "user-2"`, nil), []string{users[2]}},
		"other":       {members(`@collection.users.email ?= "user-1@example.test" && team = "team 1"`, nil), []string{users[1]}},
		"hidden":      {members(`secret = "s" && team = "team 1"`, nil), []string{users[1]}},
		"a value is no expression": {
			members("team = {:team}", map[string]any{"team": `x" || team != "`}), nil,
		},
		"nor is one that names a parameter": {members("team = {:a} && secret = {:b}", map[string]any{"a": "{:b}", "b": `" || team != "`}), nil},
	} {
		if got := find(c.to); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

// What a filter must not ask is refused before anything is sent: who may send must not learn secrets from what it finds.
func TestTargetsRefused(t *testing.T) {
	app, _ := world(t)
	for _, where := range []string{
		`tokenKey ~ "a"`, `user.tokenKey ~ "a"`, `user.password != ""`, `user.tokenKey:lower ~ "a"`, `@collection.users.tokenKey ?~ "a"`,
		`@collection.users:other.password ?!= ""`, `@collection._superusers.email ?~ "a"`, `@collection._superusers:other.id ?!= ""`,
		`@collection.pbc_3142635823.email ?~ "a"`, `@collection._otps.sentTo ?!= ""`, `@collection._externalAuths.providerId ?!= ""`,
		`members_via_user.user.tokenKey ~ "a"`, `@collection.nothing.a ?= 1`, `@collection = 1`,
		`nothing = 1`, `team = {:unknown}`, `team =`, `team = "a" || (`, `user.nothing = 1`, `team = "a"; DROP TABLE users`,
	} {
		if err := message.CheckTarget(app, members(where, nil)); err == nil {
			t.Errorf("%s: allowed", where)
		}
	}
	for name, to := range map[string]message.To{
		"no such collection":  {Filter: &message.Filter{Collection: "nothing"}},
		"no account":          {Filter: &message.Filter{Collection: "members"}},
		"no such field":       {Filter: &message.Filter{Collection: "members", Account: "nothing"}},
		"no relation":         {Filter: &message.Filter{Collection: "members", Account: "team"}},
		"superusers":          {Filter: &message.Filter{Collection: core.CollectionNameSuperusers, Where: `email ~ "a"`}},
		"codes":               {Filter: &message.Filter{Collection: core.CollectionNameOTPs}},
		"users without":       {Users: []string{"a"}, Collection: "members"},
		"users superusers":    {Users: []string{"a"}, Collection: core.CollectionNameSuperusers},
		"users of nothing":    {Users: []string{"a"}, Collection: "nothing"},
		"users by an address": {Users: []string{"a"}, Collection: "users; DROP TABLE users"},
	} {
		if err := message.CheckTarget(app, to); err == nil {
			t.Errorf("%s: allowed", name)
		}
	}
}
