package changes

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions/changes/capture"
	"github.com/satchelbase/satchel/extensions/cli"
)

func (l *Log) command() *cobra.Command {
	c := &cobra.Command{
		Use:   "changes",
		Short: "Examine the change log, and begin a new epoch after a restore",
		Long: "Examine the change log, and begin a new epoch after a restore.\n\n" +
			"Exit codes: 0 done, 1 it failed, 2 wrong usage, 3 the doctor found problems.",
		Example: "satchel changes doctor --deep\nsatchel changes epoch",
	}
	c.AddCommand(l.doctorCommand(), l.epochCommand())
	return c
}

func (l *Log) doctorCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "doctor", Short: "Check that all changes are recorded, and what the list rules read", Args: cobra.NoArgs,
		Long: "Check that the triggers are in place and the heads agree with the records, and show what the list rules read.\n" +
			"Without --mend it folds the log, as a server does, and changes nothing else.\n\nExit codes: 0 all is well, 1 it failed, 2 wrong usage, 3 it found problems.",
		Example: "satchel changes doctor\nsatchel changes doctor --deep --mend",
	}
	deep := c.Flags().Bool("deep", false, "compare every id, not only the numbers of records")
	mend := c.Flags().Bool("mend", false, "begin anew what is not in order; devices read these collections again")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if !Installed(l.app) {
			return cli.Fail(cli.ExitError, "there is no change log yet", "the database is not migrated", "satchel serve")
		}
		found, problems, err := l.Examine(cmd.Context(), *deep)
		if err != nil {
			return err
		}
		if cli.JSON(cmd) {
			err = json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"collections": append([]Examined{}, found...), "problems": append([]string{}, problems...)})
		} else {
			err = printExamined(cmd.OutOrStdout(), found)
		}
		switch {
		case err != nil || len(problems) == 0:
			return err
		case !*mend:
			return cli.Fail(cli.ExitChecks, fmt.Sprintf("the doctor found %d problems", len(problems)), strings.Join(problems, "\n"), Mending)
		}
		var wrong []string
		for _, e := range found {
			if len(e.Problems) > 0 {
				wrong = append(wrong, e.id)
			}
		}
		return capture.Mend(l.app, l.excluded, wrong)
	}
	return c
}

func (l *Log) epochCommand() *cobra.Command {
	return &cobra.Command{
		Use: "epoch", Short: "Begin a new epoch: all devices start over", Args: cobra.NoArgs,
		Long: "Begin a new epoch: all devices start over. Needed when an older copy of the data was put in place by hand together\n" +
			"with its file " + markFile + ". Other restores are noticed. A running server follows at once.\n\n" +
			"Exit codes: 0 done, 1 it failed, 2 wrong usage.",
		Example: "satchel changes epoch",
		RunE: func(cmd *cobra.Command, _ []string) error {
			epoch, err := l.BeginEpoch()
			if err != nil {
				return err
			}
			if cli.JSON(cmd) {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{"epoch": epoch})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "The epoch is %s now. Devices read everything anew.\n", epoch)
			return err
		},
	}
}

func printExamined(w io.Writer, list []Examined) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "COLLECTION\tRECORDS\tHEADS\tDELETED\tLIST RULE READS")
	for _, e := range list {
		_, _ = fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%s\n", e.Collection, e.Records, e.Heads, e.Deleted, strings.Join(e.Reads, ", "))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, e := range list {
		for _, note := range e.Notes {
			if _, err := fmt.Fprintf(w, "note: %s: %s\n", e.Collection, note); err != nil {
				return err
			}
		}
	}
	return nil
}
