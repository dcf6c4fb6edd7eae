package audit

import (
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/audit/ledger"
	"github.com/satchelbase/satchel/extensions/cli"
)

func (l *Log) command(h *extensions.Host) *cobra.Command {
	c := &cobra.Command{
		Use: "audit", Short: "Read, export and verify the record of who did what",
		Long: "Read, export and verify the record of who did what.\n\n" +
			"Exit codes: 0 done, 1 it failed, 2 the command line is wrong, 3 the log is not intact.",
		Example: "satchel audit verify\nsatchel audit list --action sessions. --from 2026-01-01T00:00:00Z",
	}
	c.AddCommand(l.verifyCommand(h), l.listCommand(h), l.exportCommand(h), l.acceptCommand(h))
	return c
}

func (l *Log) verifyCommand(h *extensions.Host) *cobra.Command {
	return &cobra.Command{
		Use: "verify", Short: "Recompute the chain and compare it with the checkpoint file", Args: cobra.NoArgs,
		Long: "Recompute the chain and compare it with the checkpoint file. The first entry that is not what was sealed is named.\n" +
			"It reads in small steps, beside a running server too.\n\nExit codes: 0 intact, 1 it could not be read, 2 wrong usage, 3 not intact.",
		Example: "satchel audit verify\nsatchel audit verify --json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := l.Verify(cmd.Context(), h.App, nil)
			if err != nil {
				return err
			}
			if cli.JSON(cmd) {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(r)
			} else {
				err = writeReport(cmd.OutOrStdout(), r)
			}
			if err != nil || r.OK {
				return err
			}
			var why []string
			for _, p := range r.Problems {
				why = append(why, line(p))
			}
			return cli.Fail(cli.ExitChecks, "the audit log is not intact", strings.Join(why, "\n"),
				"keep a copy of the data folder and of the checkpoint file; after restoring an older copy: satchel audit accept")
		},
	}
}

func line(p ledger.Problem) string {
	if p.Entry > 0 {
		return fmt.Sprintf("entry %d: %s (%s)", p.Entry, p.Detail, p.Code)
	}
	return fmt.Sprintf("%s (%s)", p.Detail, p.Code)
}

func writeReport(w io.Writer, r *ledger.Report) error {
	file := map[string]string{
		"checked": "the checkpoint file agrees", "off": "there is no checkpoint file, so a tail that was cut off would not be missed",
		"missing": "the checkpoint file is missing, so a tail that was cut off would not be missed",
	}[r.File]
	if !r.OK {
		file = "NOT INTACT"
	}
	_, err := fmt.Fprintf(w, "%d entries verified (%d to %d; %d before them were deleted by retention) in %d ms: %s\n", r.Entries, r.First, r.Last, r.Removed, r.Millis, file)
	return err
}

// filterFlags adds the flags of a filter and returns what reads them.
func filterFlags(c *cobra.Command) func() (Filter, error) {
	help := map[string]string{
		"action": `an action, or its beginning: "sessions."`, "outcome": "success, failure, denied or began", "actor": "who acted: an id, or collection/id",
		"subject": "who it was done to: an id, or collection/id", "session": "the id of a session", "request": "the id of a request",
		"from": "a time such as 2026-01-31T12:00:00Z, inclusive", "to": "a time, exclusive",
	}
	values := map[string]*string{}
	for _, name := range filterNames() {
		values[name] = c.Flags().String(name, "", help[name])
	}
	return func() (Filter, error) {
		q := url.Values{}
		for name, value := range values {
			if *value != "" {
				q.Set(name, *value)
			}
		}
		f, err := parseFilter(q)
		if err != nil {
			return f, cli.Fail(cli.ExitUsage, "the filter is not understood", err.Error(), "see: "+c.CommandPath()+" --help")
		}
		return f, nil
	}
}

func (l *Log) listCommand(h *extensions.Host) *cobra.Command {
	c := &cobra.Command{
		Use: "list", Short: "Show entries, the newest first", Args: cobra.NoArgs,
		Example: "satchel audit list\nsatchel audit list --actor users/4nx0q2c1v8hzr5t --outcome denied",
	}
	read := filterFlags(c)
	limit := c.Flags().Int("limit", defaultLimit, "how many, at most 100")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		f, err := read()
		if err != nil {
			return err
		}
		if *limit < 1 || *limit > maxLimit {
			return cli.Fail(cli.ExitUsage, "the limit is not understood", "it must be from 1 to 100", "for more: satchel audit export")
		}
		list, _, err := l.List(cmd.Context(), h.App.ConcurrentDB(), f, "", *limit)
		if err != nil {
			return err
		}
		if cli.JSON(cmd) {
			if list == nil {
				list = []View{}
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"entries": list})
		}
		return table(cmd.OutOrStdout(), list)
	}
	return c
}

func table(out io.Writer, list []View) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	if _, err := fmt.Fprintln(w, "ID\tTIME\tACTION\tOUTCOME\tACTOR\tSUBJECT\tDETAILS"); err != nil {
		return err
	}
	for _, v := range list {
		subject := ""
		if v.Subject != nil {
			subject = v.Subject.text()
		}
		_, err := fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", v.ID, v.At.Format(time.RFC3339), v.Action, v.Outcome, v.Actor.text(), subject, v.Details)
		if err != nil {
			return err
		}
	}
	return w.Flush()
}

// text names a party in one word.
func (w Who) text() string {
	switch {
	case w.Forgotten:
		return w.Kind + " (forgotten, " + w.Party + ")"
	case w.ID == "":
		return w.Kind
	case w.Collection == "":
		return w.Kind + "/" + w.ID
	}
	return w.Collection + "/" + w.ID
}

func (l *Log) exportCommand(h *extensions.Host) *cobra.Command {
	c := &cobra.Command{
		Use: "export", Short: "Write entries as NDJSON or CSV, the oldest first", Args: cobra.NoArgs,
		Long:    "Write entries as NDJSON or CSV, the oldest first. That it was done is itself an entry.",
		Example: "satchel audit export --out audit.ndjson\nsatchel audit export --format csv --action sessions. > sessions.csv",
	}
	read := filterFlags(c)
	format := c.Flags().String("format", NDJSON, "ndjson or csv")
	out := c.Flags().String("out", "", "write a new file for this user alone instead of standard output")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		f, err := read()
		if err != nil {
			return err
		}
		if *format != NDJSON && *format != CSV {
			return cli.Fail(cli.ExitUsage, "the format is not understood", "it must be ndjson or csv", "see: satchel audit export --help")
		}
		entry := Entry{Action: "audit.exported", Details: map[string]any{"filter": f.text(), "format": *format, "command": true}}
		if *out == "" {
			if err := l.Append(h.App, entry); err != nil {
				return err
			}
			return Export(cmd.Context(), h.App.ConcurrentDB(), f, *format, cmd.OutOrStdout(), nil)
		}
		file, err := os.OpenFile(*out, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return cli.Fail(cli.ExitError, "the file cannot be written", err.Error(), "name another file with --out")
		}
		err = l.Append(h.App, entry)
		if err == nil {
			err = Export(cmd.Context(), h.App.ConcurrentDB(), f, *format, file, nil)
		}
		if closeErr := file.Close(); err == nil {
			err = closeErr
		}
		return err
	}
	return c
}

func (l *Log) acceptCommand(h *extensions.Host) *cobra.Command {
	c := &cobra.Command{
		Use: "accept", Short: "Accept that the database is older than the checkpoint file, after restoring a copy", Args: cobra.NoArgs,
		Long: "Accept that the database is older than the checkpoint file, after restoring a copy by hand. What is missing is written\n" +
			"into the log, with the reason, and the file follows the database from then on. Changed entries are not accepted.",
		Example: `satchel audit accept --reason "restored the copy of last night after the disk failed"`,
	}
	reason := c.Flags().String("reason", "", "why; kept in the log")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if strings.TrimSpace(*reason) == "" {
			return cli.Fail(cli.ExitUsage, "the reason is missing", "it is what later readers will know", `satchel audit accept --reason "…"`)
		}
		r, err := l.Verify(cmd.Context(), h.App, nil)
		if err != nil {
			return err
		}
		var what []string
		for _, p := range r.Problems {
			switch p.Code {
			case ledger.ProblemTruncated, ledger.ProblemReplaced, ledger.ProblemFile:
				what = append(what, line(p))
			default:
				return cli.Fail(cli.ExitChecks, "the log itself is not intact", line(p), "satchel audit verify")
			}
		}
		if len(what) == 0 {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "There is nothing to accept.")
			return err
		}
		err = l.Append(h.App, Entry{Action: "audit.accepted", Details: map[string]any{"reason": *reason, "problems": what}})
		if err != nil {
			return err
		}
		if err := l.WriteMarks(func(ledger.Mark) bool { return true }, nil); err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), "Accepted. The checkpoint file follows the database again.")
		return err
	}
	return c
}
