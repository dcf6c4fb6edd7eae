package records

import (
	"bytes"
	"encoding/base64"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions/settings"
)

func decoded(t testing.TB, cursor string) string {
	t.Helper()
	raw, err := base64.RawURLEncoding.DecodeString(cursor)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func testSealer(t testing.TB, seed byte) *sealer {
	t.Helper()
	s, err := newSealer(bytes.Repeat([]byte{seed}, secretSize))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCursorKeepsValues(t *testing.T) {
	s, now := testSealer(t, 1), time.Now()
	key := []any{
		int64(math.MaxInt64), int64(math.MinInt64), int64(1<<53 + 1), 0.1, math.Inf(1), math.SmallestNonzeroFloat64,
		"", "Ünïcode\x00nul", "not \xff utf-8",
		[]byte{},
		[]byte{0, 255},
	}
	cursor, err := s.seal([]byte("list"), key, now)
	if err != nil {
		t.Fatal(err)
	}
	got, err := s.open([]byte("list"), cursor, now)
	if err != nil || !reflect.DeepEqual(got, key) {
		t.Errorf("got %#v, %v; want %#v", got, err, key)
	}
}

func TestCursorRefusals(t *testing.T) {
	s, now := testSealer(t, 1), time.Date(2030, 6, 1, 12, 0, 0, 0, time.UTC)
	cursor, err := s.seal([]byte("list"), []any{"v", "id"}, now)
	if err != nil {
		t.Fatal(err)
	}
	day := 24 * time.Hour
	cases := []struct {
		name, list, cursor string
		sealer             *sealer
		at                 time.Time
		want               error
	}{
		{"good", "list", cursor, s, now, nil},
		{"good for thirty days", "list", cursor, s, now.Add(cursorDays * day), nil},
		{"clock of another machine", "list", cursor, s, now.Add(-day), nil},
		{"expired", "list", cursor, s, now.Add((cursorDays + 1) * day), errCursorExpired},
		{"from the future", "list", cursor, s, now.Add(-2 * day), errCursorExpired},
		{"other list", "other", cursor, s, now, errCursorForeign},
		{"other secret", "list", cursor, testSealer(t, 2), now, errCursorForeign},
		{"empty", "list", "", s, now, errCursorForeign},
		{"cut", "list", cursor[:len(cursor)-2], s, now, errCursorForeign},
		{"padded", "list", cursor + "==", s, now, errCursorForeign},
		{"other version", "list", "B" + cursor[1:], s, now, errCursorForeign},
		{"lines", "list", cursor[:4] + "\n" + cursor[4:], s, now, errCursorForeign},
	}
	for _, c := range cases {
		if _, err := c.sealer.open([]byte(c.list), c.cursor, c.at); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func TestCursorRefusesKeys(t *testing.T) {
	s := testSealer(t, 1)
	for name, key := range map[string][]any{"NULL": {nil}, "too long": {strings.Repeat("x", maxCursorKey)}} {
		if _, err := s.seal(nil, key, time.Now()); !errors.Is(err, errCursorKey) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzCursor looks for a panic, and for a cursor that is accepted although it was not made here.
func FuzzCursor(f *testing.F) {
	s, now := testSealer(f, 1), time.Now()
	good, err := s.seal([]byte("list"), []any{int64(7), 1.5, "t", []byte("b")}, now)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, []byte(good))
	f.Add("", []byte{kindText, 200})
	f.Add("AQ", []byte{kindReal, 1})
	f.Fuzz(func(t *testing.T, cursor string, key []byte) {
		if _, err := s.open([]byte("list"), cursor, now); err == nil && cursor != good {
			t.Errorf("accepted %q", cursor)
		}
		values, err := parseKey(key)
		if err != nil {
			return
		}
		again, err := appendKey(nil, values)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := parseKey(again); err != nil || len(got) != len(values) {
			t.Errorf("%q became %q", key, again)
		}
	})
}

func TestThrottle(t *testing.T) {
	x, now := &throttle{}, time.Now()
	key := throttleKey{"c", "192.0.2.1"}
	for i := range 5 {
		if got, want := x.exceeded(key, now), i >= throttleFree; got != want {
			t.Errorf("attempt %d: %v", i, got)
		}
	}
	if x.exceeded(throttleKey{"c", "192.0.2.2"}, now) {
		t.Error("another client is slowed down")
	}
	if x.exceeded(key, now.Add(throttleWindow)) {
		t.Error("the window does not end")
	}
	for i := range throttleSize {
		x.exceeded(throttleKey{"c", time.Duration(i).String()}, now.Add(throttleWindow))
	}
	if len(x.counts) > throttleSize || !x.exceeded(throttleKey{"new", ""}, now.Add(throttleWindow)) {
		t.Error("the table grows without bound")
	}
}

// A cursor outlives the process, because its key is in the database.
func TestSecretIsStored(t *testing.T) {
	app := start(t)
	before, err := (&secret{}).load(app)
	if err != nil {
		t.Fatal(err)
	}
	after, err := (&secret{}).load(app)
	if err != nil {
		t.Fatal(err)
	}
	cursor, err := before.seal(nil, []any{"v"}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := after.open(nil, cursor, time.Now()); err != nil {
		t.Error(err)
	}
	if _, err := app.NonconcurrentDB().NewQuery("DELETE FROM " + secretTable).Execute(); err != nil {
		t.Fatal(err)
	}
	if _, err := (&secret{}).load(app); err == nil {
		t.Error("a missing secret is not an error")
	}
}

func TestConfig(t *testing.T) {
	for cfg, ok := range map[Config]bool{
		settings.Defaults[Config]():       true,
		{LimitDefault: 5, LimitMax: 5}:    true,
		{LimitDefault: 0, LimitMax: 5}:    false,
		{LimitDefault: 50, LimitMax: 25}:  false,
		{LimitDefault: -1, LimitMax: 100}: false,
	} {
		if err := cfg.Validate(); (err == nil) != ok {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}
