package settings_test

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions/settings"
)

// sample has a field of every type.
type sample struct {
	Name    string         `env:"NAME" default:"notes" help:"shown to people"`
	Debug   bool           `env:"DEBUG" help:"more logs"`
	Workers int            `env:"WORKERS" default:"4" help:"how many run at once"`
	Big     int64          `env:"BIG" help:"a large number"`
	Ratio   float64        `env:"RATIO" default:"0.5" help:"between 0 and 1"`
	Timeout time.Duration  `env:"TIMEOUT" default:"5s" help:"how long a call may take"`
	Keep    time.Duration  `env:"KEEP" default:"30d" help:"age at which rows go"`
	Limit   settings.Bytes `env:"LIMIT" default:"10MB" help:"largest body"`
	Origins []string       `env:"ORIGINS" default:"https://a.example, https://b.example" help:"allowed origins | none"`
	Proxies []netip.Prefix `env:"PROXIES" default:"127.0.0.1" help:"trusted proxies"`
	Level   slog.Level     `env:"LEVEL" default:"INFO" help:"least log level"`
	Token   string         `env:"TOKEN" secret:"true" help:"shared with the provider"`
	Seed    int            `env:"SEED" secret:"true" help:"secret number"`
	_       struct{}       // neither exported nor tagged: not a setting
}

func read(environ ...string) (sample, *settings.Settings) {
	s := settings.Load(environ)
	return settings.Section[sample](s, "demo"), s
}

func TestDefaults(t *testing.T) {
	want := sample{
		Name: "notes", Workers: 4, Ratio: 0.5, Timeout: 5 * time.Second, Keep: 30 * 24 * time.Hour, Limit: 10e6,
		Origins: []string{"https://a.example", "https://b.example"},
		Proxies: []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")},
	}
	if got := settings.Defaults[sample](); !reflect.DeepEqual(got, want) {
		t.Errorf("Defaults = %+v, want %+v", got, want)
	}
	got, s := read("PATH=/bin", "satchel_demo_name=x", "XSATCHEL_DEMO_NAME=x", "malformed")
	if !reflect.DeepEqual(got, want) || s.Err() != nil {
		t.Errorf("empty environment: %+v, %v", got, s.Err())
	}
}

func TestValues(t *testing.T) {
	list := func(p ...string) (out []netip.Prefix) {
		for _, x := range p {
			out = append(out, netip.MustParsePrefix(x))
		}
		return out
	}
	name := func(c sample) any { return c.Name }
	workers := func(c sample) any { return c.Workers }
	timeout := func(c sample) any { return c.Timeout }
	limit := func(c sample) any { return c.Limit }
	proxies := func(c sample) any { return c.Proxies }
	origins := func(c sample) any { return c.Origins }
	debug := func(c sample) any { return c.Debug }
	ratio := func(c sample) any { return c.Ratio }
	big := func(c sample) any { return c.Big }
	level := func(c sample) any { return c.Level }
	huge := strings.Repeat("x", 1<<20)
	const day = 24 * time.Hour
	cases := []struct {
		pair   string
		get    func(sample) any
		want   any    // the value without a problem, or
		reason string // a part of the only problem
	}{
		{pair: "NAME=a=b ", get: name, want: "a=b "},
		{pair: "NAME=", get: name, want: ""},
		{pair: "NAME=" + huge, get: name, want: huge},
		{pair: "DEBUG=true", get: debug, want: true},
		{pair: "DEBUG=0", get: debug, want: false},
		{pair: "DEBUG=yes", reason: `must be true or false, not "yes"`},
		{pair: "DEBUG=", reason: "must not be empty"},
		{pair: "WORKERS= 8 ", get: workers, want: 8},
		{pair: "WORKERS=-1", get: workers, want: -1},
		{pair: "WORKERS=", reason: "must not be empty; remove it to use the default"},
		{pair: "WORKERS=8x", reason: `must be a whole number that fits in 64 bits, not "8x"`},
		{pair: "WORKERS=9223372036854775808", reason: "whole number"},
		{pair: "WORKERS=1e3", reason: "whole number"},
		{pair: "WORKERS=" + huge, reason: `xxx…"`},
		{pair: "BIG=9223372036854775807", get: big, want: int64(math.MaxInt64)},
		{pair: "BIG=-9223372036854775809", reason: "64 bits"},
		{pair: "RATIO=1e-3", get: ratio, want: 0.001},
		{pair: "RATIO=NaN", reason: "finite"},
		{pair: "RATIO=-Inf", reason: "finite"},
		{pair: "RATIO=1e999", reason: "finite"},
		{pair: "RATIO= ", reason: "must not be empty"},
		{pair: "TIMEOUT=1h30m", get: timeout, want: 90 * time.Minute},
		{pair: "TIMEOUT=0", get: timeout, want: time.Duration(0)},
		{pair: "TIMEOUT=2d", get: timeout, want: 2 * day},
		{pair: "TIMEOUT=1d12h", get: timeout, want: 36 * time.Hour},
		{pair: "TIMEOUT=106751d", get: timeout, want: 106751 * day},
		{pair: "TIMEOUT=106752d", reason: "duration"},
		{pair: "TIMEOUT=106751d24h", reason: "duration"},
		{pair: "TIMEOUT=99999999999999999999d", reason: "duration"},
		{pair: "TIMEOUT=9999999999h", reason: "duration"},
		{pair: "TIMEOUT=30", reason: `must be a duration such as 500ms, 30s, 15m, 12h or 30d, at most 106751d, not "30"`},
		{pair: "TIMEOUT=-5s", reason: "duration"},
		{pair: "TIMEOUT=-1d", reason: "duration"},
		{pair: "TIMEOUT=1d-5s", reason: "duration"},
		{pair: "TIMEOUT=1.5d", reason: "duration"},
		{pair: "TIMEOUT=d", reason: "duration"},
		{pair: "TIMEOUT=", reason: "must not be empty"},
		{pair: "LIMIT=512KiB", get: limit, want: settings.Bytes(512 << 10)},
		{pair: "LIMIT=2 gb", get: limit, want: settings.Bytes(2e9)},
		{pair: "LIMIT=1tib", get: limit, want: settings.Bytes(1 << 40)},
		{pair: "LIMIT=7B", get: limit, want: settings.Bytes(7)},
		{pair: "LIMIT=0", get: limit, want: settings.Bytes(0)},
		{pair: "LIMIT=9223372036854775807", get: limit, want: settings.Bytes(math.MaxInt64)},
		{pair: "LIMIT=9223372036854775808", reason: "size"},
		{pair: "LIMIT=9223373TB", reason: "size"},
		{pair: "LIMIT=-1", reason: "size"},
		{pair: "LIMIT=1.5MB", reason: "size"},
		{pair: "LIMIT=10M", reason: `must be a size such as 1048576, 512KiB or 10MB, below 8 EiB, not "10M"`},
		{pair: "LIMIT=MB", reason: "size"},
		{pair: "LIMIT=", reason: "must not be empty"},
		{pair: "ORIGINS= a ,b,, c", get: origins, want: []string{"a", "b", "c"}},
		{pair: "ORIGINS=", get: origins, want: []string(nil)},
		{pair: "PROXIES=", get: proxies, want: []netip.Prefix(nil)},
		{pair: "PROXIES=10.1.2.3/8, ::1, fd00::/8", get: proxies, want: list("10.0.0.0/8", "::1/128", "fd00::/8")},
		{pair: "PROXIES=::ffff:10.0.0.1,::ffff:10.0.0.0/104", get: proxies, want: list("10.0.0.1/32", "10.0.0.0/8")},
		{pair: "PROXIES=10.0.0.0/33", reason: `"10.0.0.0/33" is neither`},
		{pair: "PROXIES=fe80::1%eth0", reason: "is neither"},
		{pair: "PROXIES=10.0.0.1 10.0.0.2", reason: "is neither"},
		{pair: "LEVEL=warn", get: level, want: slog.LevelWarn},
		{pair: "LEVEL=loud", reason: `must be a valid level (slog: level string "loud"`},
		{pair: "LEVEL=", reason: "must not be empty"},
	}
	for _, c := range cases {
		t.Run(c.pair[:min(len(c.pair), 32)], func(t *testing.T) {
			got, s := read("SATCHEL_DEMO_" + c.pair)
			err := s.Err()
			if c.reason == "" {
				if err != nil || !reflect.DeepEqual(c.get(got), c.want) {
					t.Fatalf("got %#v, %v; want %#v", c.get(got), err, c.want)
				}
				return
			}
			key, _, _ := strings.Cut("SATCHEL_DEMO_"+c.pair, "=")
			if err == nil || !strings.HasPrefix(err.Error(), key+": ") || !strings.Contains(err.Error(), c.reason) ||
				strings.Contains(err.Error(), "\n") || len(err.Error()) > 300 {
				t.Fatalf("problem = %v, want %s: ...%s...", err, key, c.reason)
			}
			if want := settings.Defaults[sample](); !reflect.DeepEqual(got, want) {
				t.Errorf("after a problem got %+v, want the defaults", got)
			}
		})
	}
}

func TestLoadLastPairWins(t *testing.T) {
	got, s := read("SATCHEL_DEMO_NAME=file", "SATCHEL_DEMO_NAME=environment")
	if got.Name != "environment" || s.Err() != nil {
		t.Errorf("got %q, %v", got.Name, s.Err())
	}
}

func TestErrListsEveryProblem(t *testing.T) {
	type general struct {
		URL string `env:"URL" help:"public address"`
	}
	s := settings.Load([]string{
		"SATCHEL_UNRELATED_THING=x", "SATCHEL_DEMO_TIMEOUT=soon", "SATCHEL_DEMO_WORKERS=many", "SATCHEL_DEMO_TIMEUOT=1s",
		"SATCHEL_DEMO_TOKEN_FIEL=/x", "SATCHEL_DEMO_NAME_FILE=/x", "SATCHEL_RUL=x", "SATCHEL_=x", "SATCHEL_A\nB=x",
	})
	settings.Section[general](s, "")
	settings.Section[sample](s, "demo")
	want := strings.Join([]string{
		`SATCHEL_DEMO_WORKERS: must be a whole number that fits in 64 bits, not "many"`,
		`SATCHEL_DEMO_TIMEOUT: must be a duration such as 500ms, 30s, 15m, 12h or 30d, at most 106751d, not "soon"`,
		`SATCHEL_: unknown setting`,
		`SATCHEL_A\nB: unknown setting`,
		`SATCHEL_DEMO_NAME_FILE: unknown setting: only secrets are read from files; set SATCHEL_DEMO_NAME`,
		`SATCHEL_DEMO_TIMEUOT: unknown setting; did you mean SATCHEL_DEMO_TIMEOUT?`,
		`SATCHEL_DEMO_TOKEN_FIEL: unknown setting; did you mean SATCHEL_DEMO_TOKEN_FILE?`,
		`SATCHEL_RUL: unknown setting; did you mean SATCHEL_URL?`,
		`SATCHEL_UNRELATED_THING: unknown setting`,
	}, "\n")
	for range 2 { // asking again changes nothing
		if err := s.Err(); err == nil || err.Error() != want {
			t.Fatalf("Err =\n%v\nwant\n%s", err, want)
		}
	}
}

func TestSecrets(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const secret = "correct-horse"
	const key = "SATCHEL_DEMO_TOKEN"
	cases := []struct {
		name    string
		environ []string
		want    string
		source  settings.Source
		problem string
	}{
		{"unset", nil, "", settings.FromDefault, ""},
		{"environment", []string{key + "=" + secret}, secret, settings.FromEnvironment, ""},
		{"empty", []string{key + "="}, "", settings.FromEnvironment, ""},
		{"file", []string{key + "_FILE=" + file("a", secret+"\n")}, secret, settings.FromFile, ""},
		{"file with CRLF", []string{key + "_FILE=" + file("b", secret+"\r\n")}, secret, settings.FromFile, ""},
		{"file keeps inner line ends", []string{key + "_FILE=" + file("c", "x\n"+secret+"\n\n")}, "x\n" + secret + "\n", settings.FromFile, ""},
		{"empty file", []string{key + "_FILE=" + file("d", "")}, "", settings.FromFile, ""},
		{"both", []string{key + "=" + secret, key + "_FILE=" + file("e", secret)}, "", settings.FromDefault, key + ": is set together with " + key + "_FILE; keep one of them"},
		{"both, one empty", []string{key + "=", key + "_FILE=" + file("f", secret)}, "", settings.FromDefault, key + ": is set together with " + key + "_FILE; keep one of them"},
		{"secret as path", []string{key + "_FILE=" + secret}, "", settings.FromDefault, key + ": read the file that " + key + "_FILE names: no such file or directory"},
		{"folder", []string{key + "_FILE=" + dir}, "", settings.FromDefault, key + ": read the file that " + key + "_FILE names: is a directory"},
		{"no path", []string{key + "_FILE="}, "", settings.FromDefault, key + ": read the file that " + key + "_FILE names: the name is empty"},
		{"large file", []string{key + "_FILE=" + file("g", strings.Repeat(secret, 1<<17))}, "", settings.FromDefault, key + ": read the file that " + key + "_FILE names: the file is larger than 1 MiB"},
		{"wrong type", []string{"SATCHEL_DEMO_SEED=" + secret}, "", settings.FromDefault, "SATCHEL_DEMO_SEED: is not a valid int (the value is secret and not shown)"},
		{"wrong type in a file", []string{"SATCHEL_DEMO_SEED_FILE=" + file("h", secret)}, "", settings.FromDefault, "SATCHEL_DEMO_SEED: is not a valid int (the value is secret and not shown)"},
		{"misspelled key", []string{"SATCHEL_DEMO_TOKE=" + secret}, "", settings.FromDefault, "SATCHEL_DEMO_TOKE: unknown setting; did you mean " + key + "?"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got, s := read(c.environ...)
			if got.Token != c.want {
				t.Errorf("Token = %q, want %q", got.Token, c.want)
			}
			if text := fmt.Sprint(s.Err()); text != c.problem && (c.problem != "" || s.Err() != nil) {
				t.Errorf("Err = %s, want %s", text, c.problem)
			}
			for _, k := range s.Keys() {
				if k.Name == key && (k.Source != c.source || (k.Value != "") != (c.want != "")) {
					t.Errorf("Keys says %+v", k)
				}
			}
			if all := everything(t, s); strings.Contains(all, secret) {
				t.Errorf("the secret is in the output:\n%s", all)
			}
		})
	}
}

// validatedValue has a Validate method on the value; validatedPointer on the pointer.
type validatedValue struct {
	Min    int    `env:"MIN" default:"1" help:"least"`
	Max    int    `env:"MAX" default:"9" help:"most"`
	Secret string `env:"SECRET" secret:"true" help:"secret"`
	Err    string `env:"ERR" help:"the error's text"`
}

func (c validatedValue) Validate() error {
	if c.Err != "" {
		return errors.New(c.Err)
	}
	if c.Min > c.Max {
		return errors.Join(errors.New("MIN: is above MAX"), fmt.Errorf("bad pair with %s %q", c.Secret, c.Secret))
	}
	return nil
}

type validatedPointer struct {
	Level int `env:"LEVEL" help:"any"`
}

func (c *validatedPointer) Validate() error { return errors.New("always") }

func TestValidate(t *testing.T) {
	cases := []struct {
		name    string
		environ []string
		want    string
	}{
		{"good", nil, ""},
		{"lines", []string{"SATCHEL_V_MIN=10", "SATCHEL_V_SECRET=one\ntwo\"3"}, "SATCHEL_V_MIN: is above MAX\nSATCHEL_V_*: bad pair with •••• \"••••\""},
		{"not called after a problem", []string{"SATCHEL_V_MIN=10", "SATCHEL_V_MAX=x"}, `SATCHEL_V_MAX: must be a whole number that fits in 64 bits, not "x"`},
		{"blank text", []string{"SATCHEL_V_ERR=\n"}, "SATCHEL_V_*: is not valid"},
		{"other prefix", []string{"SATCHEL_V_ERR=NAME: x"}, "SATCHEL_V_*: NAME: x"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := settings.Load(c.environ)
			settings.Section[validatedValue](s, "v")
			if got := text(s.Err()); got != c.want {
				t.Errorf("Err =\n%s\nwant\n%s", got, c.want)
			}
		})
	}
	t.Run("pointer method, no section", func(t *testing.T) {
		s := settings.Load(nil)
		settings.Section[validatedPointer](s, "")
		if got := text(s.Err()); got != "SATCHEL_*: always" {
			t.Errorf("Err = %s", got)
		}
	})
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestRenamed(t *testing.T) {
	const old, now = "SATCHEL_DEMO_NAM", "SATCHEL_DEMO_NAME"
	cases := []struct {
		name     string
		environ  []string
		want     string
		problem  string
		warnings []string
	}{
		{"neither", nil, "notes", "", nil},
		{"new", []string{now + "=x"}, "x", "", nil},
		{"old", []string{old + "=x"}, "x", "", []string{old + ": was renamed to " + now + " in v0.2; the old name still works"}},
		{"both", []string{old + "=x", now + "=y"}, "y", old + ": was renamed to " + now + " in v0.2 and both are set; remove the old one", nil},
		{"file of no secret", []string{old + "_FILE=x"}, "notes", old + "_FILE: unknown setting: only secrets are read from files; set " + now, []string{old + "_FILE: was renamed to " + now + "_FILE in v0.2; the old name still works"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := settings.Load(c.environ)
			s.Renamed(old, now, "v0.2")
			got := settings.Section[sample](s, "demo")
			if got.Name != c.want || text(s.Err()) != c.problem || !reflect.DeepEqual(s.Warnings(), c.warnings) {
				t.Errorf("got %q, %q, %q", got.Name, text(s.Err()), s.Warnings())
			}
		})
	}
	t.Run("problem names the old key", func(t *testing.T) {
		s := settings.Load([]string{"SATCHEL_DEMO_THREADS=x"})
		s.Renamed("SATCHEL_DEMO_THREADS", "SATCHEL_DEMO_WORKERS", "v0.2")
		settings.Section[sample](s, "demo")
		want := `SATCHEL_DEMO_WORKERS: must be a whole number that fits in 64 bits, not "x" (set by its old name SATCHEL_DEMO_THREADS)`
		if got := text(s.Err()); got != want {
			t.Errorf("Err = %s, want %s", got, want)
		}
	})
	t.Run("secret file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(path, []byte("from file"), 0o600); err != nil {
			t.Fatal(err)
		}
		s := settings.Load([]string{"SATCHEL_OLD_FILE=" + path})
		s.Renamed("SATCHEL_OLD", "SATCHEL_DEMO_TOKEN", "v0.2")
		if got := settings.Section[sample](s, "demo"); got.Token != "from file" || s.Err() != nil {
			t.Errorf("got %q, %v", got.Token, s.Err())
		}
	})
}

func TestProgrammersMistakesPanic(t *testing.T) {
	type noTag struct{ X string }
	type lowerTag struct {
		X string `env:"x"`
	}
	type unexported struct {
		x string `env:"X"`
	}
	type wrongType struct {
		X map[string]string `env:"X"`
	}
	type pointer struct {
		X *slog.Level `env:"X"`
	}
	type badDefault struct {
		X int `env:"X" default:"many"`
	}
	type badLevel struct {
		X slog.Level `env:"X" default:"loud"`
	}
	type secretDefault struct {
		X string `env:"X" default:"changeme" secret:"true"`
	}
	type secretTag struct {
		X string `env:"X" secret:"yes"`
	}
	type twice struct {
		X, Y string `env:"X"`
	}
	type shadow struct {
		X string `env:"X" secret:"true"`
		Y string `env:"X_FILE"`
	}
	type lines struct {
		X string `env:"X" default:"a\nb"`
	}
	_ = unexported{x: ""}
	fresh := func() *settings.Settings { return settings.Load(nil) }
	cases := []struct {
		want string
		run  func()
	}{
		{"noTag.X: env tag \"\" is missing", func() { settings.Defaults[noTag]() }},
		{"lowerTag.X: env tag \"x\" is missing or not upper case", func() { settings.Defaults[lowerTag]() }},
		{"unexported.x: has an env tag but is not exported", func() { settings.Defaults[unexported]() }},
		{"wrongType.X: type map[string]string is not supported", func() { settings.Defaults[wrongType]() }},
		{"pointer.X: type *slog.Level is not supported", func() { settings.Defaults[pointer]() }},
		{"badDefault.X: default \"many\" must be a whole number", func() { settings.Defaults[badDefault]() }},
		{"badLevel.X: default \"loud\" must be a valid level", func() { settings.Defaults[badLevel]() }},
		{"secretDefault.X: a secret cannot have a default", func() { settings.Defaults[secretDefault]() }},
		{"secretTag.X: secret tag \"yes\"", func() { settings.Defaults[secretTag]() }},
		{"lines.X: default has more than one line", func() { settings.Defaults[lines]() }},
		{"string is not a struct", func() { settings.Defaults[string]() }},
		{"SATCHEL_T_X has two meanings", func() { settings.Section[twice](fresh(), "t") }},
		{"SATCHEL_T_X_FILE has two meanings", func() { settings.Section[shadow](fresh(), "t") }},
		{"section \"My-App\" is not one lower-case word", func() { settings.Section[sample](fresh(), "My-App") }},
		{"section \"demo\" is read twice", func() {
			_, s := read()
			settings.Section[sample](s, "demo")
		}},
		{"needs two full names", func() { fresh().Renamed("OLD", "SATCHEL_NEW", "v1") }},
		{"needs two full names", func() { fresh().Renamed("SATCHEL_X", "SATCHEL_X", "v1") }},
		{"before the section is read", func() {
			_, s := read()
			s.Renamed("SATCHEL_OLD", "SATCHEL_DEMO_NAME", "v1")
		}},
		{"SATCHEL_DEMO_NAME has two meanings", func() {
			s := fresh()
			s.Renamed("SATCHEL_DEMO_NAME", "SATCHEL_DEMO_OTHER", "v1")
			settings.Section[sample](s, "demo")
		}},
	}
	for _, c := range cases {
		t.Run(c.want, func(t *testing.T) {
			defer func() {
				if got := fmt.Sprint(recover()); !strings.Contains(got, c.want) {
					t.Errorf("panic = %s, want %s", got, c.want)
				}
			}()
			c.run()
		})
	}
}

func TestBytesString(t *testing.T) {
	for text, size := range map[string]settings.Bytes{"0": 0, "1001": 1001, "10MB": 10e6, "512KiB": 512 << 10, "1TiB": 1 << 40} {
		if got := size.String(); got != text {
			t.Errorf("String(%d) = %s, want %s", int64(size), got, text)
		}
	}
	for _, size := range []settings.Bytes{1, 999, 4096, 25e9, math.MaxInt64} {
		var back settings.Bytes
		if err := back.UnmarshalText([]byte(size.String())); err != nil || back != size {
			t.Errorf("%s reads back as %s, %v", strconv.Quote(size.String()), back, err)
		}
	}
}
