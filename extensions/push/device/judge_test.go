package device_test

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/push"
	"github.com/satchelbase/satchel/extensions/push/device"
	"github.com/satchelbase/satchel/extensions/settings"
)

func categories(c *pushConfig) {
	c.Categories = []string{"messages", "likes=collapse 2/1h", "marketing=drop off", "security=always"}
}

func TestPreferences(t *testing.T) {
	f := start(t, categories)
	p := f.signIn(t, f.ada)
	get := func() string {
		t.Helper()
		return string(p.want(t, 200, http.MethodGet, preferences, nil).Body)
	}
	shows := func(what, text string, parts ...string) {
		t.Helper()
		for _, part := range parts {
			if !strings.Contains(text, part) {
				t.Errorf("%s: %s lacks %s", what, text, part)
			}
		}
	}
	shows("nothing was said", get(), `{"categories":[{"name":"messages","enabled":true,"required":false},{"name":"likes","enabled":true,"required":false},`+
		`{"name":"marketing","enabled":false,"required":false},{"name":"security","enabled":true,"required":true}],"quietHours":null}`)
	change := func(body string) string {
		t.Helper()
		return string(p.want(t, 200, http.MethodPatch, preferences, body).Body)
	}
	shows("the answer is the whole", change(`{"categories":{"likes":false,"marketing":true}}`), `"likes","enabled":false`, `"marketing","enabled":true`)
	change(`{"quietHours":{"start":"22:00","end":"07:00","timeZone":"Europe/Berlin"}}`)
	shows("the rest stays", get(), `"likes","enabled":false`, `"quietHours":{"start":"22:00","end":"07:00","timeZone":"Europe/Berlin"}`)
	change(`{}`)
	change(`{"categories":{"likes":null,"security":true}}`)
	shows("null is the default", get(), `"likes","enabled":true`, `"marketing","enabled":true`, `"22:00"`)
	change(`{"quietHours":{"start":"23:00","end":"06:30"}}`)
	shows("hours are replaced", get(), `"quietHours":{"start":"23:00","end":"06:30"}`)
	shows("null ends them", change(`{"quietHours":null}`), `"quietHours":null`)

	other := f.signIn(t, f.bob)
	shows("of one account", string(other.want(t, 200, http.MethodGet, preferences, nil).Body), `"marketing","enabled":false`)

	before := get()
	for body, field := range map[string]string{
		`{"categories":{"nothing":true}}`:                               "categories",
		`{"categories":{"security":false}}`:                             "categories.security",
		`{"categories":{"likes":"no"}}`:                                 "categories",
		`{"categories":[]}`:                                             "categories",
		`{"quietHours":{"start":"22:00"}}`:                              "quietHours.end",
		`{"quietHours":{"start":"25:00","end":"07:00"}}`:                "quietHours.start",
		`{"quietHours":{"start":"07:00","end":"07:00"}}`:                "quietHours.end",
		`{"quietHours":{"start":"22:00","end":"07:00","timeZone":"x"}}`: "quietHours.timeZone",
		`{"quietHours":{"start":"22:00","end":"07:00","zone":"UTC"}}`:   "quietHours",
		`{"quietHours":true}`:                                           "quietHours",
		`{"other":1}`:                                                   "other",
	} {
		r := p.do(t, http.MethodPatch, preferences, body)
		if r.Status != 400 || r.Code() != "api.validation_failed" || !strings.Contains(string(r.Body), `"field":"`+field+`"`) {
			t.Errorf("%s: %d %s", body, r.Status, r.Body)
		}
	}
	var many []string
	for i := range 500 {
		many = append(many, fmt.Sprintf(`"c%d":true`, i))
	}
	if r := p.do(t, http.MethodPatch, preferences, `{"categories":{`+strings.Join(many, ",")+`}}`); r.Status != 400 || len(r.Body) > 20<<10 {
		t.Errorf("%d, %d bytes", r.Status, len(r.Body))
	}
	if strip(get()) != strip(before) {
		t.Errorf("a change that was refused is kept: %s", get())
	}
}

// strip takes what differs between two answers away.
func strip(answer string) string { data, _, _ := strings.Cut(answer, `,"timestamp"`); return data }

func (f *fixture) judge(t *testing.T, category string, now time.Time, users ...*core.Record) []device.Verdict {
	t.Helper()
	accounts := only(users...).Accounts
	var all map[device.Account]device.Verdict
	err := f.RunInTransaction(func(tx core.App) (err error) {
		if all, err = f.registry.Judge(t.Context(), tx, 1<<40, accounts, category, now); err != nil || len(all) != len(accounts) {
			t.Fatal(all, err)
		}
		return http.ErrAbortHandler // what is judged counts, and here nothing is sent
	})
	if !errors.Is(err, http.ErrAbortHandler) {
		t.Fatal(err)
	}
	out := make([]device.Verdict, len(accounts))
	for i, a := range accounts {
		out[i] = all[a]
	}
	return out
}

func TestJudge(t *testing.T) {
	f := start(t, categories)
	ada, bob := f.signIn(t, f.ada), f.signIn(t, f.bob)
	night := time.Date(2026, 11, 25, 23, 0, 0, 0, time.UTC) // 08:00 of the next day in Tokyo
	yes := device.Verdict{Send: true}
	for _, category := range []string{"messages", "likes", "security", "", "forgotten"} {
		if got := f.judge(t, category, night, f.ada, f.bob); !slices.Equal(got, []device.Verdict{yes, yes}) {
			t.Errorf("%s: %+v", category, got)
		}
	}
	off := device.Verdict{Reason: device.ReasonOff}
	ada.want(t, 200, http.MethodPatch, preferences, `{"categories":{"messages":false,"marketing":true}}`)
	if got := f.judge(t, "messages", night, f.ada, f.bob); !slices.Equal(got, []device.Verdict{off, yes}) {
		t.Errorf("%+v", got)
	}
	if got := f.judge(t, "marketing", night, f.ada, f.bob); !slices.Equal(got, []device.Verdict{yes, off}) {
		t.Errorf("%+v", got)
	}

	// Quiet hours go by the clock of the phone, unless a zone is chosen.
	hours := `"start":"22:00","end":"07:00"`
	for _, p := range []*phone{ada, bob} {
		p.want(t, 200, http.MethodPatch, preferences, `{"categories":{"messages":null,"marketing":true},"quietHours":{`+hours+`}}`)
	}
	morning := night.Add(8 * time.Hour)
	for category, want := range map[string]device.Verdict{
		"messages":  {Defer: morning, Reason: device.ReasonQuiet},
		"":          {Defer: morning, Reason: device.ReasonQuiet},
		"forgotten": {Defer: morning, Reason: device.ReasonQuiet},
		"likes":     {Defer: morning, Collapse: true, Reason: device.ReasonQuiet},
		"marketing": {Reason: device.ReasonQuiet},
		"security":  yes,
	} {
		if got := f.judge(t, category, night, f.ada)[0]; !got.Defer.Equal(want.Defer) || got.Send != want.Send || got.Collapse != want.Collapse || got.Reason != want.Reason {
			t.Errorf("%s: %+v, want %+v", category, got, want)
		}
	}
	if got := f.judge(t, "messages", morning, f.ada, f.bob); !slices.Equal(got, []device.Verdict{yes, yes}) {
		t.Errorf("in the morning: %+v", got)
	}
	old := f.signIn(t, f.ada).register(t, fcmToken+"old", map[string]any{"timeZone": "Europe/Berlin"})
	f.seen(t, old, time.Hour)
	ada.register(t, fcmToken, map[string]any{"timeZone": "Asia/Tokyo"})
	bob.register(t, fcmToken+"2", map[string]any{"timeZone": "Asia/Tokyo"})
	bob.want(t, 200, http.MethodPatch, preferences, `{"quietHours":{`+hours+`,"timeZone":"Europe/Lisbon"}}`)
	if got := f.judge(t, "messages", night, f.ada, f.bob); !got[0].Send || !got[1].Defer.Equal(morning) {
		t.Errorf("in Tokyo and Lisbon: %+v", got)
	}
}

func TestCaps(t *testing.T) {
	f := start(t, func(c *pushConfig) { categories(c); c.Cap = "4/24h" })
	f.signIn(t, f.ada).register(t, fcmToken)
	f.signIn(t, f.bob).register(t, fcmToken+"2")
	now := time.UnixMilli(time.Now().UnixMilli())
	number := int64(0) // of a message
	count := func(category string, at time.Time, users ...*core.Record) {
		t.Helper()
		number++
		if v, err := f.registry.Judge(t.Context(), f.App, number, only(users...).Accounts, category, at); err != nil || len(v) != len(users) {
			t.Fatal(v, err)
		}
	}
	is := func(what string, got, want device.Verdict) {
		t.Helper()
		if got.Send != want.Send || got.Reason != want.Reason || got.Collapse != want.Collapse || !got.Defer.Equal(want.Defer) {
			t.Errorf("%s: %+v, want %+v", what, got, want)
		}
	}
	yes := device.Verdict{Send: true}
	count("likes", now.Add(-59*time.Minute), f.ada, f.bob)
	is("below", f.judge(t, "likes", now, f.ada)[0], yes)
	count("likes", now.Add(-10*time.Minute), f.ada)
	full := device.Verdict{Defer: now.Add(time.Minute), Collapse: true, Reason: device.ReasonCap}
	got := f.judge(t, "likes", now, f.ada, f.bob)
	is("at the cap", got[0], full)
	is("another account", got[1], yes)
	is("another category", f.judge(t, "messages", now, f.ada)[0], yes)
	is("a moment before there is room", f.judge(t, "likes", now.Add(time.Minute-time.Millisecond), f.ada)[0], full)
	is("when there is room", f.judge(t, "likes", now.Add(time.Minute), f.ada)[0], yes)

	// Two at the same moment are two, and what is always sent neither counts nor waits.
	count("messages", now, f.ada)
	count("security", now, f.ada)
	is("below the common cap", f.judge(t, "messages", now, f.ada)[0], yes)
	count("", now, f.ada)
	day := now.Add(-59 * time.Minute).Add(24 * time.Hour)
	is("the common cap", f.judge(t, "messages", now, f.ada)[0], device.Verdict{Defer: day, Reason: device.ReasonCap})
	is("the later of both", f.judge(t, "likes", now, f.ada)[0], device.Verdict{Defer: day, Collapse: true, Reason: device.ReasonCap})
	is("always", f.judge(t, "security", now, f.ada)[0], yes)
	is("no category", f.judge(t, "", now, f.ada)[0], device.Verdict{Defer: day, Reason: device.ReasonCap})
	is("the next day", f.judge(t, "messages", day, f.ada)[0], yes)

	// A message counts once, however often it is judged, and is not in its own way.
	f.exec(t, "DELETE FROM push_counts", nil)
	for range 3 {
		is("again", must(f.registry.Judge(t.Context(), f.App, 99, only(f.bob).Accounts, "likes", now))[device.AccountOf(f.bob)], yes)
	}
	if n := f.count(t, "push_counts"); n != 1 {
		t.Errorf("%d counts of one message", n)
	}

	// Messages of the same moment do not exceed a cap.
	f.exec(t, "DELETE FROM push_counts", nil)
	sent := make(chan bool)
	for i := range int64(16) {
		go func() {
			v, err := f.registry.Judge(t.Context(), f.App, 100+i, only(f.bob, f.ada).Accounts, "likes", now)
			sent <- err == nil && v[device.AccountOf(f.bob)].Send
		}()
	}
	n := 0
	for range 16 {
		if <-sent {
			n++
		}
	}
	if n != 2 || f.count(t, "push_counts") != 4 {
		t.Errorf("%d were sent at once, the cap is 2", n)
	}

	// Who has no device any more is not counted.
	f.exec(t, "DELETE FROM push_devices", nil)
	f.exec(t, "DELETE FROM push_counts", nil)
	count("likes", now, f.ada, f.bob)
	if n := f.count(t, "push_counts"); n != 0 {
		t.Errorf("%d counts of accounts without a device", n)
	}
}

// Without caps nothing is written.
func TestNoCapsNoCounts(t *testing.T) {
	f := start(t, func(c *pushConfig) { c.Categories = []string{"messages"} })
	for _, category := range []string{"messages", "", "unknown"} {
		if _, err := f.registry.Judge(t.Context(), f.App, 1, only(f.ada).Accounts, category, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	if n := f.count(t, "push_counts"); n != 0 {
		t.Errorf("%d rows", n)
	}
}

func TestSettings(t *testing.T) {
	for key, change := range map[string]func(c *pushConfig){
		"TOPICS":              func(c *pushConfig) { c.Topics = []string{"a b=*"} },
		"CATEGORIES":          func(c *pushConfig) { c.Categories = []string{"likes=sometimes"} },
		"CATEGORIES: a: the ": func(c *pushConfig) { c.Categories = []string{"a", "a=drop"} },
		"CAP":                 func(c *pushConfig) { c.Cap = "many" },
		"DEVICES":             func(c *pushConfig) { c.Devices = 0 },
		"DEVICE_TOPICS":       func(c *pushConfig) { c.DeviceTopics = -1 },
	} {
		cfg := settings.Defaults[push.Config]()
		if err := cfg.Validate(); err != nil {
			t.Fatal(err)
		}
		change(&cfg)
		if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), key) {
			t.Errorf("%s: %v", key, err)
		}
	}
	// What hooks declare is looked at, too.
	r := device.New(device.Options{Categories: []device.Category{{Name: "a"}}}, device.Deps{})
	if err := r.Bind(nil); err == nil {
		t.Error("a category without a policy is taken")
	}
}
