package settings_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/satchelbase/satchel/extensions/settings"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// run executes the command with its arguments and returns what it prints.
func run(s *settings.Settings, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := s.Command()
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SilenceErrors = true
	cmd.SetArgs(args)
	err := cmd.Execute()
	return out.String(), err
}

// everything is all that the package says about the settings.
func everything(t testing.TB, s *settings.Settings) string {
	t.Helper()
	all := []string{text(s.Err()), strings.Join(s.Warnings(), "\n")}
	for _, args := range [][]string{
		{"print"},
		{"print", "--json"},
		{"check"},
		{"reference"},
		{"reference", "--format", "env"},
	} {
		out, err := run(s, args...)
		if text(err) != text(s.Err()) && args[0] != "reference" {
			t.Errorf("config %s: %v, want the error of Err", strings.Join(args, " "), err)
		}
		all = append(all, out, text(err))
	}
	return strings.Join(all, "\n")
}

// documented is a general section and the sample.
func documented(environ ...string) *settings.Settings {
	type general struct {
		Mode    string `env:"MODE" default:"development" help:"development or production"`
		Pattern string `env:"PATTERN" default:"it's \\d+ $HOME # x" help:"a default that needs quotes;\nhelp of two lines"`
	}
	s := settings.Load(environ)
	settings.Section[general](s, "")
	settings.Section[sample](s, "demo")
	return s
}

func TestGolden(t *testing.T) {
	environ := []string{"SATCHEL_MODE=production", "SATCHEL_DEMO_NAME=", "SATCHEL_DEMO_TOKEN=hunter2", "SATCHEL_PATTERN=a\tb"}
	for name, args := range map[string][]string{
		"reference.md":  {"reference"},
		"reference.env": {"reference", "--format", "env"},
		"print.txt":     {"print"},
		"print.json":    {"print", "--json"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := run(documented(environ...), args...)
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join("testdata", name)
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("%s differs; run the test with -update and look at the change:\n%s", path, got)
			}
		})
	}
}

// TestEnvExampleIsValid uncomments every key: the file must parse and mean the defaults.
func TestEnvExampleIsValid(t *testing.T) {
	var out bytes.Buffer
	if err := documented().Reference(&out, "env"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), ".env")
	uncommented := regexp.MustCompile(`(?m)^#SATCHEL_`).ReplaceAllString(out.String(), settings.Prefix)
	if err := os.WriteFile(path, []byte(uncommented), 0o600); err != nil {
		t.Fatal(err)
	}
	pairs, err := settings.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	keys, defaults := documented(pairs...).Keys(), documented().Keys()
	if len(pairs) != len(keys) {
		t.Errorf("%d keys of %d are in the file", len(pairs), len(keys))
	}
	for i := range keys {
		if keys[i].Secret {
			continue
		}
		if keys[i].Value != defaults[i].Value || keys[i].Source != settings.FromEnvironment {
			t.Errorf("uncommented: %+v, want %q", keys[i], defaults[i].Value)
		}
	}
	if err := documented(pairs...).Err(); err != nil {
		t.Error(err)
	}
}

func TestCommand(t *testing.T) {
	bad := documented("SATCHEL_DEMO_WORKERS=many", "SATCHEL_X=1")
	cases := []struct {
		name string
		s    *settings.Settings
		args []string
		out  string
		err  string
	}{
		{"check", documented("SATCHEL_MODE=x"), []string{"check"}, "ok: 15 settings, 1 set\n", ""},
		{"check with problems", bad, []string{"check"}, "", bad.Err().Error()},
		{"unknown format", documented(), []string{"reference", "--format", "html"}, "", `unknown format "html": use markdown or env`},
		{"extra argument", documented(), []string{"check", "x"}, "", `unknown command "x" for "config check"`},
		{"unknown command", documented(), []string{"prnt"}, "", `unknown command "prnt" for "config"`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			out, err := run(c.s, c.args...)
			if text(err) != c.err || (c.out != "" && out != c.out) || (c.err != "" && c.args[0] == "check" && len(c.args) == 1 && out != "") {
				t.Errorf("printed %q, error %v", out, err)
			}
		})
	}
	t.Run("check prints warnings", func(t *testing.T) {
		s := settings.Load([]string{"SATCHEL_OLD=x"})
		s.Renamed("SATCHEL_OLD", "SATCHEL_DEMO_NAME", "v2")
		settings.Section[sample](s, "demo")
		out, err := run(s, "check")
		if err != nil || !strings.HasPrefix(out, "warning: SATCHEL_OLD: was renamed to SATCHEL_DEMO_NAME in v2") || !strings.Contains(out, "\nok: ") {
			t.Errorf("printed %q, error %v", out, err)
		}
	})
	t.Run("print shows the value in use beside the problem", func(t *testing.T) {
		out, err := run(bad, "print")
		if err == nil || !regexp.MustCompile(`(?m)^SATCHEL_DEMO_WORKERS +4 +default$`).MatchString(out) {
			t.Errorf("printed %q, error %v", out, err)
		}
	})
	t.Run("no settings", func(t *testing.T) {
		if out, err := run(settings.Load(nil), "print", "--json"); err != nil || out != "[]\n" {
			t.Errorf("printed %q, error %v", out, err)
		}
	})
	t.Run("json is Keys", func(t *testing.T) {
		s := documented("SATCHEL_MODE=<&>")
		out, err := run(s, "print", "--json")
		var keys []settings.Key
		if err != nil || json.Unmarshal([]byte(out), &keys) != nil || !reflect.DeepEqual(keys, s.Keys()) {
			t.Errorf("printed %s, error %v", out, err)
		}
	})
}

func TestKeysAreACopyInReadingOrder(t *testing.T) {
	s := documented()
	s.Keys()[0].Value = "changed"
	keys := s.Keys()
	if keys[0].Name != "SATCHEL_MODE" || keys[0].Value != "development" || keys[0].Section != "" ||
		keys[2].Name != "SATCHEL_DEMO_NAME" || keys[2].Section != "demo" {
		t.Errorf("Keys = %+v", keys[:3])
	}
	var words []string
	for _, k := range keys[2:] {
		words = append(words, k.Type)
	}
	want := strings.Fields("string bool int int64 float duration duration bytes list addresses level string int")
	if !slices.Equal(words, want) {
		t.Errorf("types = %v, want %v", words, want)
	}
}
