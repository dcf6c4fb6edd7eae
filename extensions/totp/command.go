package totp

import (
	"fmt"

	"github.com/pocketbase/pocketbase/core"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/cli"
)

func (f *factor) command(h *extensions.Host) *cobra.Command {
	c := &cobra.Command{
		Use:   "totp",
		Short: "Help users who lost their second factor",
	}
	var collection string
	reset := &cobra.Command{
		Use:   "reset EMAIL",
		Short: "Switch a user's second factor off",
		Long: "Switch a user's second factor off, with its recovery codes. Make sure first that it is the user who asks. The\n" +
			"server may be running.\n\nExit codes: 0 done, 1 it failed, 2 the command line is wrong.",
		Example: "satchel totp reset ada@example.com",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.reset(h.App, collection, args[0]); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s signs in without a second factor now.\n", args[0])
			return err
		},
	}
	reset.Flags().StringVar(&collection, "collection", "users", "collection of the user")
	c.AddCommand(reset)
	return c
}

func (f *factor) reset(app core.App, collection, email string) error {
	record, err := app.FindAuthRecordByEmail(collection, email)
	if err != nil {
		return cli.Fail(cli.ExitError, "the user was not found", "the collection "+collection+" has no "+email, "name the collection with --collection")
	}
	return app.RunInTransaction(func(tx core.App) error {
		found, err := remove(tx, record)
		if err != nil {
			return err
		}
		if !found {
			return cli.Fail(cli.ExitError, "nothing to reset", email+" has no second factor", "")
		}
		return f.audit(tx, nil, "totp.reset", success, record, nil)
	})
}
