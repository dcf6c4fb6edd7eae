package sessions

import (
	"encoding/json"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/security"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/sessions/login"
	"github.com/satchelbase/satchel/extensions/sessions/signing"
)

// command is `satchel auth`.
func (s *Sessions) command() *cobra.Command {
	keys := &cobra.Command{Use: "keys", Short: "Show and rotate the keys that sign access tokens"}
	keys.AddCommand(s.listCommand(), s.rotateCommand())
	auth := &cobra.Command{Use: "auth", Short: "Manage signing keys and sessions"}
	auth.AddCommand(keys, s.secretsCommand(), s.revokeCommand())
	return auth
}

func (s *Sessions) listCommand() *cobra.Command {
	c := &cobra.Command{Use: "list", Short: "List the signing keys", Args: cobra.NoArgs}
	c.Flags().Bool("json", false, "machine-readable output")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		keys, err := s.ring.List()
		if err != nil {
			return err
		}
		if cli.JSON(cmd) {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(keys)
		}
		w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "ID\tALGORITHM\tSTATE\tCREATED\tACTIVE SINCE\tRETIRED")
		for _, k := range keys {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", k.ID, k.Algorithm, k.State, day(k.Created), day(k.Activated), day(k.Retired))
		}
		return w.Flush()
	}
	return c
}

func day(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Format(time.DateOnly)
}

func (s *Sessions) rotateCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "rotate", Args: cobra.NoArgs, Short: "Sign with the next key from now on",
		Long: "The key that signs now is retired: tokens that it has signed stay good until they expire.\nWith --drop they do not: use it when the key may have leaked. Apps then refresh once.",
	}
	now := c.Flags().Bool("now", false, "do it; keys rotate by themselves every 90 days")
	drop := c.Flags().Bool("drop", false, "remove the retired keys at once")
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		if !*now {
			return cli.Fail(cli.ExitUsage, "nothing was rotated", "keys rotate by themselves every 90 days", "to do it at once: satchel auth keys rotate --now")
		}
		if err := s.ring.Rotate(*drop); err != nil {
			return err
		}
		if err := s.record(s.app, nil, "sessions.key_rotated", audit.Success, audit.Party{Kind: audit.System}, "", map[string]any{"drop": *drop}); err != nil {
			return err
		}
		keys, err := s.ring.List()
		if err != nil {
			return err
		}
		for _, k := range keys {
			if k.State == signing.Active {
				fmt.Fprintf(cmd.OutOrStdout(), "%s signs now\n", k.ID)
			}
		}
		return nil
	}
	return c
}

// secretsCommand changes the secrets of PocketBase's own tokens.
func (s *Sessions) secretsCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "rotate-secrets", Args: cobra.NoArgs, Short: "Change the secrets of all of PocketBase's own tokens",
		Long: "Every stock token, and every link in a mail that was not followed yet, stops working.\nSessions stay: apps that use refresh tokens notice nothing.",
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		collections, err := s.app.FindAllCollections(core.CollectionTypeAuth)
		if err != nil {
			return err
		}
		err = s.app.RunInTransaction(func(tx core.App) error {
			for _, collection := range collections {
				for _, token := range []*core.TokenConfig{
					&collection.AuthToken, &collection.FileToken, &collection.PasswordResetToken, &collection.EmailChangeToken, &collection.VerificationToken,
				} {
					token.Secret = security.RandomString(secretLength)
				}
				if err := tx.Save(collection); err != nil {
					return fmt.Errorf("save %s: %w", collection.Name, err)
				}
			}
			return s.record(tx, nil, "sessions.secrets_rotated", audit.Success, audit.Party{Kind: audit.System}, "", map[string]any{"collections": len(collections)})
		})
		if err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "changed the secrets of %d collections\n", len(collections))
		return nil
	}
	return c
}

// secretLength is PocketBase's own.
const secretLength = 50

// revokeCommand signs a user out everywhere, or everybody: after a backup was restored, sessions that were ended since it
// was made live again.
func (s *Sessions) revokeCommand() *cobra.Command {
	c := &cobra.Command{Use: "revoke [EMAIL]", Args: cobra.MaximumNArgs(1), Short: "End all sessions of a user, or of everybody"}
	collection := c.Flags().String("collection", "users", "collection of the user")
	all := c.Flags().Bool("all", false, "end the sessions of everybody, admins included")
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if *all == (len(args) == 1) {
			return cli.Fail(cli.ExitUsage, "no session was ended", "it takes either an e-mail address or --all", "see: satchel auth revoke --help")
		}
		if *all {
			n, err := s.endEverything()
			if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "ended all sessions: %d\n", n)
			}
			return err
		}
		record, err := s.app.FindAuthRecordByEmail(*collection, args[0])
		if err != nil {
			return cli.Fail(cli.ExitError, "no session was ended", "there is no such user in "+*collection, "check the address, or name another collection with --collection")
		}
		if err := s.EndAll(s.app, record, reasonRevoked); err != nil {
			return err
		}
		fmt.Fprintf(cmd.OutOrStdout(), "ended all sessions of %s\n", args[0])
		return nil
	}
	return c
}

func (s *Sessions) endEverything() (n int, err error) {
	err = s.app.RunInTransaction(func(tx core.App) error {
		ids, err := login.End(tx, s.now(), reasonRevoked, `true`, nil)
		if err != nil {
			return err
		}
		n = len(ids)
		return s.record(tx, nil, "sessions.ended", audit.Success, audit.Party{Kind: audit.System}, "", map[string]any{"count": n, "reason": reasonRevoked})
	})
	return n, err
}
