package device

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestQuietHours(t *testing.T) {
	r := New(Options{}, Deps{})
	for _, c := range []struct{ name, start, end, zone, now, want string }{
		{"before", "22:00", "07:00", "UTC", "2026-11-25T21:59:59Z", ""},
		{"at the start", "22:00", "07:00", "UTC", "2026-11-25T22:00:00Z", "2026-11-26T07:00:00Z"},
		{"across midnight, in the evening", "22:00", "07:00", "UTC", "2026-11-25T23:30:12Z", "2026-11-26T07:00:00Z"},
		{"across midnight, in the morning", "22:00", "07:00", "UTC", "2026-11-26T06:59:59Z", "2026-11-26T07:00:00Z"},
		{"at the end", "22:00", "07:00", "UTC", "2026-11-26T07:00:00Z", ""},
		{"within a day", "13:00", "14:30", "UTC", "2026-11-26T14:29:00Z", "2026-11-26T14:30:00Z"},
		{"within a day, after", "13:00", "14:30", "UTC", "2026-11-26T14:30:00Z", ""},
		{"until midnight", "20:00", "00:00", "UTC", "2026-12-31T23:00:00Z", "2027-01-01T00:00:00Z"},
		{"from midnight", "00:00", "06:00", "UTC", "2026-12-31T23:59:00Z", ""},
		{"nearly always", "08:00", "07:59", "UTC", "2026-11-25T08:00:00Z", "2026-11-26T07:59:00Z"},

		{"another zone", "22:00", "07:00", "America/New_York", "2026-11-26T04:00:00Z", "2026-11-26T12:00:00Z"},
		{"another zone, by day", "22:00", "07:00", "America/New_York", "2026-11-26T13:00:00Z", ""},
		{"another date", "22:00", "07:00", "Pacific/Kiritimati", "2026-11-25T09:00:00Z", "2026-11-25T17:00:00Z"},
		{"half an hour", "22:00", "07:00", "Asia/Kolkata", "2026-11-25T17:00:00Z", "2026-11-26T01:30:00Z"},
		{"quarter of an hour", "22:00", "07:00", "Asia/Kathmandu", "2026-11-25T17:00:00Z", "2026-11-26T01:15:00Z"},

		// Berlin, 29 March 2026: 02:00 CET becomes 03:00 CEST at 01:00 UTC.
		{"the night is an hour shorter", "22:00", "07:00", "Europe/Berlin", "2026-03-28T21:30:00Z", "2026-03-29T05:00:00Z"},
		{"the end is a time that the day lacks", "22:00", "02:30", "Europe/Berlin", "2026-03-28T22:00:00Z", "2026-03-29T01:00:00Z"},
		{"the start is a time that the day lacks", "02:30", "04:00", "Europe/Berlin", "2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z"},
		{"hours that the day lacks", "02:10", "02:50", "Europe/Berlin", "2026-03-29T01:00:00Z", ""},

		// Berlin, 25 October 2026: 03:00 CEST becomes 02:00 CET at 01:00 UTC.
		{"the night is an hour longer", "22:00", "07:00", "Europe/Berlin", "2026-10-24T21:30:00Z", "2026-10-25T06:00:00Z"},
		{"the end comes twice: the first", "22:00", "02:30", "Europe/Berlin", "2026-10-25T00:10:00Z", "2026-10-25T00:30:00Z"},
		{"the end comes twice: the second", "22:00", "02:30", "Europe/Berlin", "2026-10-25T01:10:00Z", "2026-10-25T01:30:00Z"},
		{"hours that come twice", "02:10", "02:50", "Europe/Berlin", "2026-10-25T00:20:00Z", "2026-10-25T00:50:00Z"},
		{"hours that come twice: between", "02:10", "02:50", "Europe/Berlin", "2026-10-25T01:05:00Z", ""},

		// Lord Howe puts its clocks forward by half an hour, and Apia left 30 December 2011 out.
		{"half an hour forward", "22:00", "02:15", "Australia/Lord_Howe", "2026-10-03T13:00:00Z", "2026-10-03T15:30:00Z"},
		{"a day that was not", "22:00", "07:00", "Pacific/Apia", "2011-12-30T09:30:00Z", "2011-12-30T17:00:00Z"},
	} {
		start, err := parseClock(c.start)
		if err != nil {
			t.Fatal(err)
		}
		end, err := parseClock(c.end)
		if err != nil {
			t.Fatal(err)
		}
		now, err := time.Parse(time.RFC3339, c.now)
		if err != nil {
			t.Fatal(err)
		}
		got, in := quiet{start, end}.until(now, r.zone(c.zone))
		if text := got.UTC().Format(time.RFC3339); in != (c.want != "") || in && text != c.want {
			t.Errorf("%s: %v until %s, want %q", c.name, in, text, c.want)
		}
	}
}

// However a clock changes, the end is the first minute outside of the hours.
func TestQuietHoursEndAtTheFirstMinuteOutside(t *testing.T) {
	r := New(Options{}, Deps{})
	seed := time.Now().UnixNano()
	random := rand.New(rand.NewPCG(uint64(seed), 7))
	changes := []string{"2026-03-29T01:00:00Z", "2026-10-25T01:00:00Z", "2026-03-08T07:00:00Z", "2026-11-01T06:00:00Z", "2026-10-03T15:30:00Z", "2026-04-04T15:00:00Z", "2011-12-30T10:00:00Z"}
	zones := []string{"Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "Africa/Casablanca", "UTC", "America/Sao_Paulo", "Asia/Tehran"}
	for range 2000 {
		near, err := time.Parse(time.RFC3339, changes[random.IntN(len(changes))])
		if err != nil {
			t.Fatal(err)
		}
		now := near.Add(time.Duration(random.IntN(48*60)-24*60) * time.Minute).Add(time.Duration(random.IntN(60)) * time.Second)
		where := r.zone(zones[random.IntN(len(zones))])
		q := quiet{clock(random.IntN(int(day))), clock(random.IntN(int(day)))}
		if q.start == q.end {
			continue
		}
		got, in := q.until(now, where)
		want := now
		for q.includes(clockOf(want.In(where))) {
			want = want.Truncate(time.Minute).Add(time.Minute)
		}
		if in != q.includes(clockOf(now.In(where))) || in && !got.Equal(want) {
			t.Fatalf("seed %d: %v at %v in %v: %v until %v, want %v", seed, q, now, where, in, got, want)
		}
	}
}

func TestClocksAndZones(t *testing.T) {
	for _, text := range []string{"", "7:00", "24:00", "12:60", "12", "12:00:00", "aa:bb", " 1:00", "-1:00", "１２:00"} {
		if c, err := parseClock(text); err == nil {
			t.Errorf("%q is %d", text, c)
		}
	}
	r := New(Options{}, Deps{})
	for _, name := range []string{"", "Local", "local", "../etc/passwd", "/etc/localtime", "Europe/Nowhere", "Europe/Berlin\x00", "Europe"} {
		if r.zone(name) != nil {
			t.Errorf("%q is a zone", name)
		}
	}
	if first := r.zone("Europe/Berlin"); first == nil || r.zone("Europe/Berlin") != first {
		t.Error("a zone is read every time")
	}
}

func TestParseCategories(t *testing.T) {
	for text, want := range map[string]Category{
		"messages":                 {Name: "messages", Policy: Defer},
		"likes=collapse off 10/1h": {Name: "likes", Policy: Collapse, Off: true, Cap: Cap{10, time.Hour}},
		" marketing = 1/24h drop ": {Name: "marketing", Policy: Drop, Cap: Cap{1, 24 * time.Hour}},
		"security=always":          {Name: "security", Policy: Always},
		"a=always 1/1h":            {},
		"a=always off":             {},
		"a=never":                  {},
		"a=0/1h":                   {},
		"a=1/0s":                   {},
		"a=-1/1h":                  {},
		"a=1/9000h":                {},
		"a=1/":                     {},
		"a=99999/1h":               {},
		"":                         {},
		"Big":                      {},
		"a b":                      {},
		"a'b":                      {},
		"abcdefghijklmnopqrstuvwxyzabcdefghijklmnopq": {},
	} {
		got, err := ParseCategory(text)
		if (err == nil) != (want.Name != "") || err == nil && got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	if err := (Options{Categories: []Category{{Name: "a", Policy: Drop}, {Name: "a", Policy: Drop}}}).Check(); err == nil {
		t.Error("a category can be declared twice")
	}
	for _, text := range []string{"news=*|>*", "+news=*", "news", "ne ws=*", "=*"} {
		if c, err := ParseTopic(text); err == nil {
			t.Errorf("%q: %+v", text, c)
		}
	}
}
