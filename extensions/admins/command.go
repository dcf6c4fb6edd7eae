package admins

import (
	"encoding/json"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/core"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/cli"
)

// command is `satchel admins`. What it does, a running server sees at once.
func (s *service) command(h *extensions.Host) *cobra.Command {
	c := &cobra.Command{
		Use:   "admins",
		Short: "Add and remove those who run the app, and change their roles",
		Long: "Add and remove those who run the app, and change their roles: viewer, support, operator, owner.\n" +
			"PocketBase's superusers are owners; satchel superuser manages them.\n\n" +
			"Exit codes: 0 done, 1 it failed, 2 the command line is wrong.",
	}
	c.AddCommand(listCommand(h), addCommand(h), roleCommand(h), removeCommand(h))
	return c
}

func listCommand(h *extensions.Host) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the admins", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var found []*core.Record
			if err := h.App.RecordQuery(CollectionID).OrderBy("email").All(&found); err != nil {
				return fmt.Errorf("list admins: %w", err)
			}
			out := make([]view, len(found))
			for i, admin := range found {
				out[i] = viewOf(admin)
			}
			if cli.JSON(cmd) {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string][]view{"admins": out})
			}
			if len(out) == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "There are no admins besides the superusers.\nNext: satchel admins add ada@example.com --role support")
				return nil
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "EMAIL\tROLE\tID\tCREATED")
			for _, v := range out {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", v.Email, v.Role, v.ID, v.Created.Format(time.DateOnly))
			}
			return w.Flush()
		},
	}
}

func addCommand(h *extensions.Host) *cobra.Command {
	var role string
	c := &cobra.Command{
		Use: "add EMAIL", Short: "Add an admin and show the first password, once", Args: cobra.ExactArgs(1),
		Example: "satchel admins add ada@example.com --role support",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := usableRole(role); err != nil {
				return err
			}
			admin, password, err := draft(h.App, args[0], Role(role), "")
			if err != nil {
				return err
			}
			if err := h.App.Save(admin); err != nil {
				return failure("the admin was not added", err)
			}
			if cli.JSON(cmd) {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(struct { //nolint:gosec // showing it, once, is what the command is for
					view
					Password string `json:"password"`
				}{viewOf(admin), password})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s\n\nThis is the first password of %s, who is %s now. It cannot be shown again.\n%s\n", password, admin.Email(), role, next(h.App))
			return nil
		},
	}
	c.Flags().StringVar(&role, "role", string(Viewer), "viewer, support, operator or owner")
	return c
}

// next is how the new admin gets a password of his own.
func next(app core.App) string {
	if app.Settings().SMTP.Enabled {
		return `Next: hand it over, or let the new admin ask for a mail that sets another (POST /api/collections/admins/request-password-reset).`
	}
	return `Next: hand it over in private; PUT /api/v1/admin/me/password sets another.`
}

func roleCommand(h *extensions.Host) *cobra.Command {
	return &cobra.Command{
		Use: "role EMAIL ROLE", Short: "Change the role of an admin and end the sessions", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := usableRole(args[1]); err != nil {
				return err
			}
			admin, err := byEmail(h.App, args[0])
			if err != nil {
				return err
			}
			admin.Set(roleField, args[1])
			if err := h.App.Save(admin); err != nil {
				return failure("the role was not changed", err)
			}
			if cli.JSON(cmd) {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(viewOf(admin))
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is %s now\n", admin.Email(), args[1])
			return nil
		},
	}
}

func removeCommand(h *extensions.Host) *cobra.Command {
	return &cobra.Command{
		Use: "remove EMAIL", Short: "Remove an admin and end the sessions", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			admin, err := byEmail(h.App, args[0])
			if err != nil {
				return err
			}
			out := viewOf(admin)
			if err := h.App.Delete(admin); err != nil {
				return failure("the admin was not removed", err)
			}
			if cli.JSON(cmd) {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(out)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s is no admin any more\n", out.Email)
			return nil
		},
	}
}

func usableRole(role string) error {
	if Role(role).valid() {
		return nil
	}
	return cli.Fail(cli.ExitUsage, fmt.Sprintf("there is no role %q", role), "the roles are viewer, support, operator and owner", "satchel admins --help")
}

func byEmail(app core.App, email string) (*core.Record, error) {
	admin, err := app.FindAuthRecordByEmail(CollectionID, email)
	if err != nil {
		return nil, cli.Fail(cli.ExitError, "there is no such admin", "no admin has the address "+email, "satchel admins list shows them")
	}
	return admin, nil
}

// failure is what a person can mend; anything else is reported as it is.
func failure(what string, err error) error {
	switch {
	case errors.Is(err, ErrLastOwner):
		return cli.Fail(cli.ExitError, what, "there would be nobody left who may change roles", "satchel superuser upsert EMAIL PASS, or make somebody else an owner")
	case isInvalid(err):
		return cli.Fail(cli.ExitError, what, err.Error(), "satchel admins list shows who is there already")
	}
	return err
}

func isInvalid(err error) bool {
	_, ok := errors.AsType[validation.Errors](err)
	return ok
}
