package deploy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/deploy"
	"github.com/satchelbase/satchel/extensions/program"
)

var update = flag.Bool("update", false, "write the golden files anew")

// run executes a command line in an empty folder, on the program's own root command.
func run(t *testing.T, args ...string) (string, error) {
	t.Helper()
	dir := t.TempDir()
	pb := program.New(program.Info{Version: "test", DataDir: filepath.Join(dir, "pb_data")}, args)
	pb.RootCmd.AddCommand(deploy.New().Commands(nil)...)
	pb.RootCmd.SilenceErrors, pb.RootCmd.SilenceUsage = true, true
	var out bytes.Buffer
	pb.RootCmd.SetOut(&out)
	pb.RootCmd.SetErr(&out)
	pb.RootCmd.SetArgs(args)
	err := pb.RootCmd.Execute()
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("%v left %s behind", args, left[0].Name())
	}
	return out.String(), err
}

func TestGolden(t *testing.T) {
	for name, args := range map[string][]string{
		"satchel.service":       {"deploy", "systemd"},
		"satchel-other.service": {"deploy", "systemd", "--user", "api", "--dir", "/srv/api"},
		"satchel-state.service": {"deploy", "systemd", "--dir", "/var/lib/apps/chat"},
		"Dockerfile":            {"deploy", "docker"},
		"compose.yaml":          {"deploy", "compose", "--domain", "API.example.com"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := run(t, args...)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("%s differs; see the change with: go test ./extensions/deploy -update && git diff\n%s", golden, got)
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	for _, args := range [][]string{
		{"systemd", "--user", "root"},
		{"systemd", "--user", ""},
		{"systemd", "--user", "Satchel"},
		{"systemd", "--user", "a b"},
		{"systemd", "--user", "a\nExecStartPre=/bin/sh"},
		{"systemd", "--user", "satchel\n"},
		{"systemd", "--user", strings.Repeat("a", 32)},
		{"systemd", "--dir", ""},
		{"systemd", "--dir", "/"},
		{"systemd", "--dir", "data"},
		{"systemd", "--dir", "/srv/../etc"},
		{"systemd", "--dir", "/srv/a/"},
		{"systemd", "--dir", "/srv//a"},
		{"systemd", "--dir", "/srv/a b"},
		{"systemd", "--dir", "/srv/%h"},
		{"systemd", "--dir", "/srv/a\nUser=root"},
		{"systemd", "--dir", "/srv/a\n"},
		{"systemd", "--dir", "/var/lib"},
		{"systemd", "--dir", "/srv"},
		{"systemd", "--dir", "/etc/satchel"},
		{"systemd", "--dir", "/home/satchel"},
		{"systemd", "--dir", "/tmp"},
		{"compose"},
		{"compose", "--domain", "localhost"},
		{"compose", "--domain", "https://api.example.com"},
		{"compose", "--domain", "api.example.com:443"},
		{"compose", "--domain", "api.example.com {\n respond ok\n}"},
		{"compose", "--domain", "api.example.com\n"},
		{"compose", "--domain", "*.example.com"},
		{"compose", "--domain", "-a.example.com"},
		{"compose", "--domain", "api..example.com"},
		{"compose", "--domain", "${HOME}.example.com"},
		{"compose", "--domain", "bücher.example.com"},
		{"compose", "--domain", "192.0.2.7"},
		{"compose", "--domain", strings.Repeat("a", 64) + ".example.com"},
		{"compose", "--domain", strings.Repeat("abcdefg.", 31) + "example.com"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			out, err := run(t, append([]string{"deploy"}, args...)...)
			var f *cli.Failure
			if !errors.As(err, &f) || f.Exit != cli.ExitUsage || f.Why == "" || f.Next == "" {
				t.Errorf("want a usage failure with its reason and next step, got %v", err)
			}
			if out != "" {
				t.Errorf("printed %q", out)
			}
		})
	}
}

func TestOut(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "folder")
	path := filepath.Join(dir, "satchel.service")
	printed, err := run(t, "deploy", "systemd")
	if err != nil {
		t.Fatal(err)
	}
	if out, err := run(t, "deploy", "systemd", "--out", dir); err != nil || out != path+"\n" {
		t.Fatalf("first write: %q, %v", out, err)
	}
	if got := read(t, path); got != printed {
		t.Errorf("the file differs from what is printed:\n%s", got)
	}

	_, err = run(t, "deploy", "systemd", "--user", "api", "--out", dir)
	var f *cli.Failure
	if !errors.As(err, &f) || f.Exit != cli.ExitUsage || !strings.Contains(f.Next, "--yes") {
		t.Errorf("an existing file: want a usage failure that names --yes, got %v", err)
	}
	if got := read(t, path); got != printed {
		t.Error("a refused write changed the file")
	}

	if _, err := run(t, "deploy", "systemd", "--user", "api", "--out", dir, "--yes"); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path); !strings.Contains(got, "\nUser=api\n") || len(got) < len(printed)/2 {
		t.Errorf("--yes did not replace the file:\n%s", got)
	}

	if _, err := run(t, "deploy", "systemd", "--out", path); !errors.As(err, &f) || f.Exit != cli.ExitError {
		t.Errorf("a file as folder: want a failure with exit 1, got %v", err)
	}
}

func TestJSON(t *testing.T) {
	plain, err := run(t, "deploy", "docker")
	if err != nil {
		t.Fatal(err)
	}
	out, err := run(t, "deploy", "docker", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var got struct{ File, Content string }
	if err := json.Unmarshal([]byte(out), &got); err != nil || got.File != "Dockerfile" || got.Content != plain {
		t.Errorf("got %+v, %v", got, err)
	}
}

// TestSystemdReadsUnit asks systemd itself, where it is installed, for mistakes and for the exposure of the service.
func TestSystemdReadsUnit(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	unit, err := run(t, "deploy", "systemd")
	if err != nil {
		t.Fatal(err)
	}
	// verify wants programs and users that exist.
	unit = strings.ReplaceAll(unit, "/usr/local/bin/satchel", "/bin/true")
	unit = regexp.MustCompile(`(?m)^(User|Group)=.*$`).ReplaceAllString(unit, "$1=daemon")
	path := filepath.Join(t.TempDir(), "satchel.service")
	if err := os.WriteFile(path, []byte(unit), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(analyze, "verify", "--man=no", path).CombinedOutput(); err != nil || strings.Contains(string(out), path) {
		t.Errorf("verify: %v\n%s", err, out)
	}
	// The threshold is tenths of the exposure: 0 is closed, 100 wide open; a unit without any of this has 96.
	if out, err := exec.Command(analyze, "security", "--offline=true", "--threshold=20", "--no-pager", path).CombinedOutput(); err != nil {
		t.Errorf("security: %v\n%s", err, out)
	}
}

// TestImagesPromise reads both Dockerfiles, the one that builds from source and the one around a built program.
func TestImagesPromise(t *testing.T) {
	source := read(t, filepath.Join("..", "..", "Dockerfile"))
	printed, err := run(t, "deploy", "docker")
	if err != nil {
		t.Fatal(err)
	}
	last := func(text string) map[string]string {
		stages := strings.Split(text, "\nFROM ")
		got := map[string]string{}
		joined := strings.ReplaceAll(stages[len(stages)-1], "\\\n", " ")
		for line := range strings.Lines("FROM " + joined) {
			word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
			if word != "" && word != "#" {
				got[word] = strings.Join(strings.Fields(rest), " ")
			}
		}
		return got
	}
	got := last(source)
	for word, want := range map[string]string{
		"USER":        "65532:65532",
		"VOLUME":      "/data",
		"WORKDIR":     "/data",
		"STOPSIGNAL":  "SIGTERM",
		"ENV":         "SATCHEL_MODE=production SATCHEL_DATA_DIR=/data/pb_data SATCHEL_HTTP=0.0.0.0:8090",
		"HEALTHCHECK": "--interval=10s --timeout=5s --start-period=15s --retries=3 CMD wget -q -O /dev/null http://127.0.0.1:8090/api/v1/health/ready || exit 1",
		"ENTRYPOINT":  `["/usr/local/bin/satchel"]`,
		"CMD":         `["serve"]`,
	} {
		if got[word] != want {
			t.Errorf("%s is %q, want %q", word, got[word], want)
		}
	}
	if !strings.Contains(source, "\nENV CGO_ENABLED=0 GOTOOLCHAIN=auto\n") {
		t.Error("the build stage must be static and take the toolchain of go.mod")
	}

	other := last(printed)
	delete(got, "COPY")
	delete(other, "COPY")
	for word := range got {
		if got[word] != other[word] {
			t.Errorf("the Dockerfiles disagree on %s: %q and %q", word, got[word], other[word])
		}
	}
	if len(got) != len(other) {
		t.Errorf("the Dockerfiles have different instructions: %v and %v", got, other)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
