// Package rules checks who can do what: `satchel rules test FILE` reads a table of sentences such as
//
//	as ada users/ada@example.com
//	given notes/milk {"owner":"@ada","title":"Milk"}
//
//	ada   can    view   notes/milk
//	guest cannot create notes {"owner":"@ada","title":"From nobody"}
//
// and tries each against a copy of the data folder, through PocketBase's router with its collection rules and with the
// hooks of this program. The folder itself is only read, also while a server runs on it; without one the checks run on a
// new database with all migrations. The copy sends no mail, does not reach file storage elsewhere and runs no background
// work; it is deleted at the end. Every check starts from the same state.
//
// Grammar, one sentence a line; words are separated by spaces, JSON is an object on the same line:
//
//	# ...                                          a comment; empty lines are skipped, too
//	as NAME COLLECTION/EMAIL [JSON]                a person: found by e-mail or created, JSON sets fields
//	given COLLECTION/NAME [JSON]                   a record that exists before every check
//	WHO can|cannot list   COLLECTION [JSON] [only ID...]
//	WHO can|cannot view   COLLECTION/ID
//	WHO can|cannot create COLLECTION JSON
//	WHO can|cannot update COLLECTION/ID JSON
//	WHO can|cannot delete COLLECTION/ID
//
// WHO is a person or guest. NAME is lower-case letters, digits, - and _, starts with a letter and is used once. ID is a
// name from above or the id of a record in the data. In JSON a string "@name" stands for the id of that person or
// record, "@@..." for a text that starts with @. The JSON of list is its query: filter, sort, page.
//
// "can list" needs at least one record in the answer, "only" exactly those; "cannot list" is a refusal or an answer
// without records. The other verbs can when the answer is a success. "cannot" is right only when the rules or a hook
// refuse: bad data (an error that names a field), an unknown collection or a record that is not there prove nothing
// about a rule, so the first fails the check and the others are mistakes of the file.
//
// Exit codes: 0 all checks hold, 3 some do not, 2 the file is wrong (file:line: reason), 1 the copy cannot be made. The
// package has no settings, tables or routes.
package rules

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/pocketbase/pocketbase/core"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/cli"
)

// Open returns this program's application, hooks and migrations included, for another data folder. It must not open the
// database yet.
type Open func(dataDir string) (core.App, error)

// New returns the extension.
func New(open Open) extensions.Extension {
	return extensions.Extension{
		Name:     "rules",
		Commands: func(h *extensions.Host) []*cobra.Command { return []*cobra.Command{command(h, open)} },
	}
}

func command(h *extensions.Host, open Open) *cobra.Command {
	group := &cobra.Command{Use: "rules", Short: "Check who can do what"}
	group.AddCommand(&cobra.Command{
		Use:   "test FILE",
		Short: "Try a table of who can do what against a temporary copy of the data",
		Long: "Try a table of who can do what against a temporary copy of the data folder, or against a new database when there\n" +
			"is none. The data itself is only read.\n\n" +
			"Exit codes: 0 all checks hold, 1 the copy cannot be made, 2 the file is wrong, 3 some checks do not hold.",
		Example: "satchel rules test docs/examples/notes.rules",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			// An interrupt must not leave a copy of the data behind.
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			report, err := Test(ctx, h.App.DataDir(), args[0], open)
			if err != nil {
				return explain(err)
			}
			if cli.JSON(cmd) {
				err = json.NewEncoder(cmd.OutOrStdout()).Encode(report)
			} else {
				err = report.print(cmd.OutOrStdout())
			}
			if err == nil && report.Failed > 0 {
				err = cli.Fail(cli.ExitChecks, fmt.Sprintf("%d of %d checks do not hold", report.Failed, len(report.Checks)),
					"the rules of the collections say something else than "+report.File, "change the rule, or the table if it is wrong")
			}
			return err
		},
	})
	return cli.NoDatabase(group)
}

func explain(err error) error {
	var mistake *Mistake
	switch {
	case errors.As(err, &mistake):
		return cli.Fail(cli.ExitUsage, "the table cannot be used", mistake.Error(), "see docs/rules.md for what a line may say")
	case errors.Is(err, ErrUnreadable):
		return cli.Fail(cli.ExitUsage, "the table cannot be read", err.Error(), "give the path of a file: satchel rules test docs/examples/notes.rules")
	default:
		return err
	}
}

// ErrUnreadable says that the file of a table cannot be read.
var ErrUnreadable = errors.New("read table")

// Report is the outcome of a table.
type Report struct {
	File   string   `json:"file"`
	Passed int      `json:"passed"`
	Failed int      `json:"failed"`
	Checks []Result `json:"checks"`
}

// Result is the outcome of one line. Status is the HTTP status of the answer; Reason says why the check does not hold.
type Result struct {
	Line   int    `json:"line"`
	Check  string `json:"check"`
	OK     bool   `json:"ok"`
	Status int    `json:"status"`
	Reason string `json:"reason,omitempty"`
}

// Test runs the table in file against a copy of dataDir, which may be missing. The error is a [*Mistake] when the table
// is wrong and wraps [ErrUnreadable] when it cannot be read; checks that do not hold are in the report. It is safe for concurrent use.
func Test(ctx context.Context, dataDir, file string, open Open) (Report, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return Report{}, fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	table, err := parse(file, string(text))
	if err != nil {
		return Report{}, err
	}
	dir, err := os.MkdirTemp("", "satchel-rules-")
	if err != nil {
		return Report{}, fmt.Errorf("make folder for the copy: %w", err)
	}
	report, err := runTable(ctx, table, dataDir, dir, open)
	return report, errors.Join(err, os.RemoveAll(dir))
}

// print is the report for a person.
func (r Report) print(w io.Writer) error {
	var text strings.Builder
	for _, c := range r.Checks {
		word := "ok  "
		if !c.OK {
			word = "FAIL"
		}
		fmt.Fprintf(&text, "  %s %4d  %s\n", word, c.Line, c.Check)
		if c.Reason != "" {
			fmt.Fprintf(&text, "             %s\n", c.Reason)
		}
	}
	_, err := fmt.Fprintf(w, "%s\n\n%s\n%d checks: %d ok, %d FAIL\n", r.File, text.String(), len(r.Checks), r.Passed, r.Failed)
	return err
}
