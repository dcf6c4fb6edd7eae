package account

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/pocketbase/pocketbase/core"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/account/ownership"
	"github.com/satchelbase/satchel/extensions/cli"
)

func (a *Accounts) command(h *extensions.Host) *cobra.Command {
	c := &cobra.Command{
		Use:   "account",
		Short: "Export and delete accounts, and show what belongs to one",
		Long: "Export and delete accounts for people who cannot do it in the app, and show what belongs to an account.\n\n" +
			"Exit codes: 0 done, 1 it failed, 2 the command line is wrong.",
	}
	c.AddCommand(a.exportCommand(h), a.deleteCommand(h), a.mapCommand(h))
	return c
}

func (a *Accounts) exportCommand(h *extensions.Host) *cobra.Command {
	var output string
	c := &cobra.Command{
		Use:   "export ID",
		Short: "Write all data of an account to a zip file",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			account, err := findAccount(h.App, args[0])
			if err != nil {
				return err
			}
			if output == "" {
				output = "account-" + account.Id + ".zip"
			}
			file, err := os.OpenFile(output, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if err != nil {
				return cli.Fail(cli.ExitError, "the file cannot be made", err.Error(), "choose another one with --output")
			}
			defer func() {
				if err = errors.Join(err, file.Close()); err != nil {
					_ = os.Remove(output)
				}
			}()
			var records int64
			if err := a.write(cmd.Context(), file, account, func(done int64) { records = done }); err != nil {
				return err
			}
			if err := a.deps.Audit(h.App, nil, "account.exported", "success", account, nil); err != nil {
				return err
			}
			if cli.JSON(cmd) {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"file": output, "records": records})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%d records are in %s. It is not encrypted: hand it over and delete it.\n", records, output)
			return err
		},
	}
	c.Flags().StringVar(&output, "output", "", "the file; by default account-ID.zip in this folder")
	return c
}

func (a *Accounts) deleteCommand(h *extensions.Host) *cobra.Command {
	var yes bool
	c := &cobra.Command{
		Use:   "delete ID",
		Short: "Delete an account with all its data, now and for good",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			account, err := findAccount(h.App, args[0])
			if err != nil {
				return err
			}
			if !yes {
				return cli.Fail(cli.ExitUsage, "nothing was deleted", "what is deleted cannot be brought back",
					"see what goes with it: satchel account map; then: satchel account delete "+account.Id+" --yes")
			}
			if err := a.deleteNow(cmd.Context(), h.App, account); err != nil {
				return cli.Fail(cli.ExitError, "the account is not deleted yet", err.Error(), "mend what is in the way and run this again")
			}
			if cli.JSON(cmd) {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{"deleted": account.Id})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "The account %s of %s is deleted.\n", account.Id, account.Collection().Name)
			return err
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "delete without a question")
	return c
}

// deleteNow deletes an account in this process, also one whose deletion is scheduled or was given up.
func (a *Accounts) deleteNow(ctx context.Context, app core.App, account *core.Record) error {
	var run string
	err := app.RunInTransaction(func(tx core.App) error {
		d, err := a.pending(tx, account)
		if err != nil {
			return err
		}
		if d != nil {
			run = d.Run
			return nil
		}
		if d, err = a.request(tx, account, 0); err != nil {
			return err
		}
		run = d.Run
		return a.deps.Audit(tx, nil, "account.delete", "success", account, nil)
	})
	if err != nil {
		return err
	}
	return a.deps.Jobs.Do(ctx, run)
}

// findAccount looks in all collections of users.
func findAccount(app core.App, id string) (*core.Record, error) {
	collections, err := app.FindAllCollections(core.CollectionTypeAuth)
	if err != nil {
		return nil, fmt.Errorf("find collections: %w", err)
	}
	for _, c := range collections {
		if c.Name == core.CollectionNameSuperusers {
			continue
		}
		record, err := app.FindRecordById(c, id)
		if err == nil {
			return record, nil
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return nil, fmt.Errorf("find account: %w", err)
		}
	}
	return nil, cli.Fail(cli.ExitError, "there is no such account", "no record of users has the id "+id, "the dashboard shows the ids")
}

func (a *Accounts) mapCommand(h *extensions.Host) *cobra.Command {
	return &cobra.Command{
		Use:   "map",
		Short: "Show what is exported and deleted with an account, for each collection",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			lines, err := a.describe(h.App)
			if err != nil {
				return err
			}
			if cli.JSON(cmd) {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string][]ownership.Line{"map": lines})
			}
			return printMap(cmd.OutOrStdout(), lines)
		},
	}
}

// describe lists the plans for all collections of users.
func (a *Accounts) describe(app core.App) ([]ownership.Line, error) {
	collections, err := app.FindAllCollections(core.CollectionTypeAuth)
	if err != nil {
		return nil, fmt.Errorf("find collections: %w", err)
	}
	lines := []ownership.Line{}
	for _, c := range collections {
		if c.Name == core.CollectionNameSuperusers {
			continue
		}
		p, err := a.plan(app, c)
		if err != nil {
			return nil, err
		}
		lines = append(lines, p.Describe()...)
	}
	return lines, nil
}

func printMap(w io.Writer, lines []ownership.Line) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "ACCOUNTS\tCOLLECTION\tBY\tEXPORTED\tWHEN THE ACCOUNT IS DELETED\tWARNING")
	for _, l := range lines {
		exported := "no"
		if l.Export {
			exported = "yes"
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", l.Accounts, l.Collection, l.By, exported, l.Delete, l.Warning)
	}
	return t.Flush()
}

// checkMap tells of relations to accounts that nobody has decided on.
func (a *Accounts) checkMap(_ context.Context, h *extensions.Host) extensions.Result {
	lines, err := a.describe(h.App)
	if err != nil {
		return extensions.Result{Level: extensions.Fail, Message: err.Error(), Next: "mend the map of accounts in hooks/"}
	}
	var open []string
	for _, l := range lines {
		if l.Warning != "" {
			open = append(open, l.Collection+"."+l.By+" ("+l.Warning+")")
		}
	}
	if len(open) > 0 {
		return extensions.Result{Level: extensions.Warn, Message: strings.Join(open, "; "), Next: "satchel account map"}
	}
	return extensions.Result{Message: fmt.Sprintf("%d collections belong to accounts", len(lines))}
}
