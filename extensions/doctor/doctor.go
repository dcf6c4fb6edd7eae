// Package doctor is the command that looks for what is wrong with an installation: `satchel doctor`.
//
// It neither opens the database for writing nor creates a file, so it works where the server does not: without a data
// folder, on a read-only one, with a damaged database, and beside a running server, which it does not disturb. Every
// finding is a line with a name, a level (ok, info, skip, warn, fail), a message and, if something should be done, the
// next step. With --json the lines are an array. A line that fails ends the program with exit code 3.
//
// Its own lines are about the settings, the mode, the data folder and its databases; the others come from the checks of
// the installed extensions that work offline. Tables, routes and settings: none.
package doctor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/settings"
)

// checkTimeout bounds one line, so that a hanging disk or a check that waits for the network cannot hide the rest. The
// full read of a database of several gigabytes fits into it.
const checkTimeout = 2 * time.Minute

// Info is what the program knows about itself. The functions are called when the command runs, after the flags were
// read; all of them are needed.
type Info struct {
	// Settings are all settings with the problems that were found in them.
	Settings *settings.Settings

	// Production reports SATCHEL_MODE=production.
	Production bool

	// DataDir is the data folder, whether it exists or not.
	DataDir func() string

	// Addr is the host:port on which `serve` would listen without flags.
	Addr func() string

	// PublicURL is where apps reach the server; empty if it was not set.
	PublicURL string

	// TrustedProxies is how many address ranges may name the client of a request.
	TrustedProxies int
}

// Line is one finding.
type Line struct {
	Name    string `json:"name"`
	Level   string `json:"level"`
	Message string `json:"message"`
	Next    string `json:"next"`

	level extensions.Level
}

// New returns the extension. list are all extensions of the program, this one included.
func New(list func() []extensions.Extension, info Info) extensions.Extension {
	return extensions.Extension{
		Name: "doctor",
		Commands: func(h *extensions.Host) []*cobra.Command {
			return []*cobra.Command{command(h, list, info)}
		},
	}
}

func command(h *extensions.Host, list func() []extensions.Extension, info Info) *cobra.Command {
	return cli.NoDatabase(&cobra.Command{
		Use:   "doctor",
		Short: "Look for what is wrong with this installation",
		Long: "Look for what is wrong with this installation. Nothing is changed, and a running server is not disturbed.\n\n" +
			"Exit codes: 0 nothing fails, 1 the report could not be written, 2 wrong usage, 3 a line fails.",
		Example: "satchel doctor\nsatchel doctor --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lines := examine(cmd.Context(), h, list(), info)
			out := cmd.OutOrStdout()
			write := writeText
			if cli.JSON(cmd) {
				write = writeJSON
			}
			if err := write(out, lines); err != nil {
				return fmt.Errorf("write report: %w", err)
			}
			return verdict(lines)
		},
	})
}

// examine collects the lines: first the program's own, then those of the extensions in their order.
func examine(ctx context.Context, h *extensions.Host, list []extensions.Extension, info Info) []Line {
	dir := info.DataDir()
	data := newData(dir)
	lines := guard(ctx, "settings", func(context.Context) []Line { return settingsLines(info.Settings) })
	for _, own := range []struct {
		name string
		run  func(ctx context.Context) []Line
	}{
		{"mode", func(context.Context) []Line { return modeLines(info) }},
		{"data folder", func(context.Context) []Line { return folderLines(dir) }},
		{"database", data.integrityLines},
		{"migrations", data.migrationLines},
		{"rules", data.ruleLines},
		{"superuser", data.superuserLines},
		{"clock", func(context.Context) []Line { return clockLines(dir, time.Now()) }},
	} {
		lines = append(lines, guard(ctx, own.name, own.run)...)
	}
	for _, x := range list {
		host := h.For(x)
		for _, c := range x.Checks {
			if !c.Offline {
				continue
			}
			lines = append(lines, guard(ctx, c.Name, func(ctx context.Context) []Line {
				r := c.Run(ctx, host)
				return []Line{line(c.Name, r.Level, r.Message, r.Next)}
			})...)
		}
	}
	return lines
}

// guard bounds a check in time and turns a panic into a line, so that one broken check does not hide the others.
func guard(ctx context.Context, name string, run func(ctx context.Context) []Line) (lines []Line) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	answer := make(chan []Line, 1)
	go func() {
		defer func() {
			if r := recover(); r != nil {
				answer <- []Line{line(name, extensions.Fail, fmt.Sprintf("the check panicked: %v", r), "report this")}
			}
		}()
		answer <- run(ctx)
	}()
	select {
	case lines = <-answer:
		return lines
	case <-ctx.Done():
		return []Line{line(name, extensions.Fail, "no answer: "+ctx.Err().Error(), "")}
	}
}

func line(name string, level extensions.Level, message, next string) Line {
	return Line{Name: name, Level: level.String(), Message: message, Next: next, level: level}
}

// verdict is the error that makes the program exit with 3.
func verdict(lines []Line) error {
	var failed []string
	for _, l := range lines {
		if l.level == extensions.Fail {
			failed = append(failed, l.Name)
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return cli.Fail(cli.ExitChecks, fmt.Sprintf("%d of %d checks fail", len(failed), len(lines)),
		join(failed), "follow the arrows above, then run satchel doctor again")
}

func writeJSON(w io.Writer, lines []Line) error {
	body, err := json.MarshalIndent(lines, "", "  ")
	if err != nil {
		return fmt.Errorf("marshal lines: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s\n", body)
	return err
}

// writeText aligns the columns. Only the level is coloured, and only for a person who wants it (https://no-color.org).
func writeText(w io.Writer, lines []Line) error {
	width := 0
	for _, l := range lines {
		width = max(width, len(l.Name))
	}
	coloured := wantsColour(w)
	var errs []error
	for _, l := range lines {
		next := ""
		if l.Next != "" {
			next = "  → " + printable(l.Next)
		}
		_, err := fmt.Fprintf(w, "%-*s  %s  %s%s\n", width, l.Name, paint(l.level, coloured), printable(l.Message), next)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func wantsColour(w io.Writer) bool {
	f, ok := w.(interface{ Fd() uintptr })
	return ok && os.Getenv("NO_COLOR") == "" && isatty.IsTerminal(f.Fd())
}

// paint pads the level to the longest of the words and colours it.
func paint(level extensions.Level, coloured bool) string {
	word := fmt.Sprintf("%-4s", level)
	if !coloured {
		return word
	}
	codes := map[extensions.Level]string{
		extensions.OK: "32", extensions.Info: "36", extensions.Skip: "90", extensions.Warn: "33", extensions.Fail: "31",
	}
	return "\x1b[" + codes[level] + "m" + word + "\x1b[0m"
}
