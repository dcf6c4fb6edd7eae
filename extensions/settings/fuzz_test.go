package settings_test

import (
	"math"
	"strings"
	"testing"

	"github.com/satchelbase/satchel/extensions/settings"
)

func FuzzLoad(f *testing.F) {
	for _, seed := range []string{
		"SATCHEL_DEMO_NAME=x", "SATCHEL_DEMO_TIMEOUT=1d-1s", "SATCHEL_DEMO_LIMIT=9999TiB", "SATCHEL_DEMO_PROXIES=::ffff:1.2.3.4/1,%",
		"SATCHEL_DEMO_RATIO=nan", "SATCHEL_DEMO_LEVEL=info+x", "SATCHEL_=\x00SATCHEL_é\n=\x00SATCHEL_DEMO_NAM=1\x00SATCHEL_DEMO_NAME=2",
		"SATCHEL_DEMO_SEED_FILE=", "SATCHEL_DEMO_WORKERS=\xff\nx: y",
	} {
		f.Add(seed)
	}
	const secret = "zq#secret\"\n"
	f.Fuzz(func(t *testing.T, environ string) {
		pairs := append(strings.Split(environ, "\x00"), "SATCHEL_DEMO_TOKEN="+secret, "SATCHEL_V_SECRET="+secret)
		for _, pair := range pairs { // the target must not open files that the fuzzer names
			if key, path, _ := strings.Cut(pair, "="); strings.HasSuffix(key, "_FILE") && path != "" {
				t.Skip()
			}
		}
		s := settings.Load(pairs)
		s.Renamed("SATCHEL_DEMO_NAM", "SATCHEL_DEMO_NAME", "v1")
		got := settings.Section[sample](s, "demo")
		settings.Section[validatedValue](s, "v")
		if got.Timeout < 0 || got.Keep < 0 || got.Limit < 0 || math.IsNaN(got.Ratio) || math.IsInf(got.Ratio, 0) {
			t.Errorf("impossible values: %+v", got)
		}
		if err := s.Err(); err != nil {
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if key, reason, ok := strings.Cut(line, ": "); !ok || !strings.HasPrefix(key, settings.Prefix) || reason == "" {
					t.Errorf("a problem without its key: %q", line)
				}
			}
		}
		if all := everything(t, s); strings.Contains(all, "zq#secret") && !strings.Contains(environ, "zq#secret") {
			t.Errorf("the secret is in the output:\n%s", all)
		}
	})
}

func FuzzReadFile(f *testing.F) {
	for _, seed := range []string{
		"A=1\nB='2'\nC=\"\\\"3\"\n", "export A=1", "A=\"", "A='", "\ufeff#\r\n=", "A=$(x)", "A=\\", "A=1\nA=2", "A=1 #", "\x00", "A=\"\\é\"",
	} {
		f.Add(seed)
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, content string) {
		pairs, problem := readText(t, dir, content)
		if problem != "" {
			for line := range strings.SplitSeq(problem, "\n") {
				if !strings.HasPrefix(line, ".env:") && !strings.HasPrefix(line, "read settings .env: ") {
					t.Errorf("a problem without its line: %q", line)
				}
			}
			return
		}
		// Literal quotes write every value of one line; reading it back must change nothing.
		var again strings.Builder
		for _, pair := range pairs {
			key, value, ok := strings.Cut(pair, "=")
			if !ok || strings.ContainsAny(value, "\n\x00") {
				t.Fatalf("impossible pair %q", pair)
			}
			if strings.Contains(value, "'") {
				value = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", `\$`).Replace(value) + `"`
			} else {
				value = "'" + value + "'"
			}
			again.WriteString("export " + key + "=" + value + "\n")
		}
		if back, problem := readText(t, dir, again.String()); problem != "" || strings.Join(back, "\n") != strings.Join(pairs, "\n") {
			t.Errorf("%q reads back as %q, %s", pairs, back, problem)
		}
	})
}
