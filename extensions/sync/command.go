package sync

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/pocketbase/pocketbase/core"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/cli"
)

// patient is what the doctor says about one collection.
type patient struct {
	changes.Examined
	Unsynced string   `json:"unsynced,omitempty"` // why it cannot be synced
	Always   bool     `json:"always"`             // each pull compares all rows that the user sees
	When     []string `json:"when"`               // else: it does when one of these collections has changed
}

func (s *Sync) command(h *extensions.Host) *cobra.Command {
	c := &cobra.Command{
		Use: "sync", Short: "Examine what devices sync",
		Long:    "Examine what devices sync.\n\nExit codes: 0 done, 1 it failed, 2 wrong usage, 3 the doctor found problems.",
		Example: "satchel sync doctor",
	}
	doctor := &cobra.Command{
		Use: "doctor", Short: "Check that devices are told of everything, and what makes it slow", Args: cobra.NoArgs,
		Long: "Check that the triggers of the change log are in place and agree with the records, and show for each collection what a\n" +
			"pull looks at, and which indexes its list rule lacks.\n\nExit codes: 0 all is well, 1 it failed, 2 wrong usage, 3 it found problems.",
		Example: "satchel sync doctor\nsatchel sync doctor --deep",
	}
	deep := doctor.Flags().Bool("deep", false, "compare every id, not only the numbers of records")
	doctor.RunE = func(cmd *cobra.Command, _ []string) error {
		if !changes.Installed(h.App) {
			return cli.Fail(cli.ExitError, "there is no change log yet", "the database is not migrated", "satchel serve")
		}
		examined, problems, err := s.deps.Log.Examine(cmd.Context(), *deep)
		if err != nil {
			return err
		}
		list := make([]patient, len(examined))
		for i, e := range examined {
			if list[i], err = s.examine(h.App, e); err != nil {
				return err
			}
		}
		if cli.JSON(cmd) {
			err = json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"collections": list, "problems": append([]string{}, problems...)})
		} else {
			err = printPatients(cmd.OutOrStdout(), list)
		}
		if err != nil || len(problems) == 0 {
			return err
		}
		return cli.Fail(cli.ExitChecks, fmt.Sprintf("the doctor found %d problems", len(problems)), strings.Join(problems, "\n"), changes.Mending)
	}
	c.AddCommand(doctor)
	return c
}

func (s *Sync) examine(app core.App, e changes.Examined) (patient, error) {
	p := patient{Examined: e, When: []string{}}
	c, err := app.FindCollectionByNameOrId(e.Collection)
	if err != nil {
		return p, fmt.Errorf("find collection: %w", err)
	}
	if p.Unsynced = Unsupported(c); p.Unsynced == "" && c.ListRule == nil {
		p.Unsynced = c.Name + " has no list rule: only superusers see it"
	}
	if p.Unsynced != "" {
		return p, nil
	}
	others, always, err := s.sights.Depends(app, c)
	if err != nil {
		return p, err
	}
	p.Always = always
	for _, id := range others {
		if other, err := app.FindCachedCollectionByNameOrId(id); err == nil {
			p.When = append(p.When, other.Name)
		}
	}
	slices.Sort(p.When)
	return p, nil
}

func printPatients(w io.Writer, list []patient) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "COLLECTION\tRECORDS\tHEADS\tDELETED\tA PULL LOOKS AT")
	for _, p := range list {
		looks := "changed rows"
		switch {
		case p.Unsynced != "":
			looks = "nothing: " + p.Unsynced
		case p.Always:
			looks = "all visible rows"
		case len(p.When) > 0:
			looks = "changed rows; all visible ones after a change of " + strings.Join(p.When, ", ")
		}
		_, _ = fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%s\n", p.Collection, p.Records, p.Heads, p.Deleted, looks)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, p := range list {
		for _, note := range p.Notes {
			if _, err := fmt.Fprintf(w, "note: %s: %s\n", p.Collection, note); err != nil {
				return err
			}
		}
	}
	return nil
}
