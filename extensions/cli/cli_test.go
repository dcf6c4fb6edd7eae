package cli_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/program"
)

func TestReport(t *testing.T) {
	full := cli.Fail(cli.ExitChecks, "two checks failed", "the disk is full\nthe clock is wrong", "satchel doctor")
	for name, c := range map[string]struct {
		err    error
		asJSON bool
		exit   int
		want   string
	}{
		"nothing":      {nil, false, 0, ""},
		"three lines":  {full, false, 3, "error: two checks failed\nwhy:   the disk is full\n       the clock is wrong\nnext:  satchel doctor\n"},
		"wrapped":      {fmt.Errorf("run: %w", full), false, 3, "error: two checks failed\nwhy:   the disk is full\n       the clock is wrong\nnext:  satchel doctor\n"},
		"one line":     {cli.Fail(cli.ExitUsage, "no", "", ""), false, 2, "error: no\n"},
		"JSON":         {full, true, 3, `{"error":{"exit":3,"what":"two checks failed","why":"the disk is full\nthe clock is wrong","next":"satchel doctor"}}` + "\n"},
		"anybody's":    {errors.New("boom"), false, 1, "error: the command failed\nwhy:   boom\nnext:  see --help, or run: satchel doctor\n"},
		"JSON, anyone": {errors.New("boom"), true, 1, `{"error":{"exit":1,"what":"the command failed","why":"boom","next":"see --help, or run: satchel doctor"}}` + "\n"},
	} {
		t.Run(name, func(t *testing.T) {
			var out strings.Builder
			if exit := cli.Report(&out, c.err, c.asJSON); exit != c.exit || out.String() != c.want {
				t.Errorf("exit %d\n%s", exit, out.String())
			}
		})
	}
}

// run executes a command line of a program with one command that needs the database and one that does not, and returns
// the exit code, whether the data folder exists afterwards, and what the commands did.
func run(t *testing.T, settingsErr error, args ...string) (exit int, created bool, trace string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	args = append(args, "--dir", dir)
	t.Chdir(t.TempDir()) // no pb_hooks here
	old := os.Args
	os.Args = append([]string{"satchel"}, args...) // PocketBase reads them itself
	t.Cleanup(func() { os.Args = old })

	pb := program.New(program.Info{Version: "1.2.3", DataDir: dir, HTTP: "127.0.0.1:0"}, args)
	var did []string
	note := func(name string) *cobra.Command {
		return &cobra.Command{Use: name, Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error { did = append(did, name); return nil }}
	}
	group := &cobra.Command{Use: "group"}
	group.AddCommand(note("member"))
	free := &cobra.Command{Use: "tools"}
	free.AddCommand(note("tool"))
	pb.RootCmd.AddCommand(note("work"), group, cli.NoDatabase(note("idle")), cli.NoDatabase(free), program.Version("1.2.3"))
	pb.RootCmd.SetArgs(args)
	pb.RootCmd.SetOut(new(strings.Builder))
	exit = cli.Run(pb, args, settingsErr)
	_, err := os.Stat(dir)
	return exit, err == nil, strings.Join(did, ",")
}

func TestRun(t *testing.T) {
	bad := errors.New("SATCHEL_X: unknown")
	for name, c := range map[string]struct {
		settings error
		args     []string
		exit     int
		created  bool
		did      string
	}{
		"needs the database":                  {nil, []string{"work"}, 0, true, "work"},
		"needs none":                          {nil, []string{"idle"}, 0, false, "idle"},
		"member of a group":                   {nil, []string{"group", "member"}, 0, true, "member"},
		"member of a group without database":  {nil, []string{"tools", "tool"}, 0, false, "tool"},
		"bad settings":                        {bad, []string{"work"}, 2, false, ""},
		"bad settings, no database":           {bad, []string{"idle"}, 0, false, "idle"},
		"unknown command":                     {nil, []string{"wurk"}, 2, false, ""},
		"unknown flag":                        {nil, []string{"work", "--nope"}, 2, false, ""},
		"too many arguments":                  {nil, []string{"work", "more"}, 2, false, ""},
		"too many arguments, no database":     {nil, []string{"idle", "more"}, 2, false, ""},
		"unknown member":                      {nil, []string{"group", "nope"}, 2, false, ""},
		"a group shows its help":              {nil, []string{"group"}, 0, false, ""},
		"help":                                {nil, []string{"work", "--help"}, 0, false, ""},
		"version as flag":                     {nil, []string{"--version"}, 0, false, ""},
		"help without a command":              {nil, nil, 0, false, ""},
		"version":                             {nil, []string{"version"}, 0, false, ""},
		"the migrate command of PocketBase":   {nil, []string{"migrate", "history-sync"}, 0, true, ""},
		"PocketBase's update is not included": {nil, []string{"update"}, 2, false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			exit, created, did := run(t, c.settings, c.args...)
			if exit != c.exit || created != c.created || did != c.did {
				t.Errorf("exit %d, data folder %v, did %q", exit, created, did)
			}
		})
	}
}
