package push

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/push/apns"
	"github.com/satchelbase/satchel/extensions/push/credentials"
	"github.com/satchelbase/satchel/extensions/push/expo"
	"github.com/satchelbase/satchel/extensions/push/fcm"
	"github.com/satchelbase/satchel/extensions/push/sender"
	"github.com/satchelbase/satchel/extensions/push/webpush"
)

// maxFile is far more than any file of credentials has, in bytes.
const maxFile = 64 << 10

// asking is how long a command waits for a provider.
const asking = 15 * time.Second

func (p *Push) command(h *extensions.Host) *cobra.Command {
	c := &cobra.Command{
		Use:   "push",
		Short: "Connect the providers of push notifications, and try them",
		Long: "Connect the providers of push notifications, and try them. Credentials are checked, by asking the provider, before\n" +
			"they are kept, sealed, in the database. A running server uses them within some seconds.\n\n" +
			"Exit codes: 0 done, 1 it failed, 2 the command line or a file is wrong, 3 a provider refuses.",
	}
	connect := &cobra.Command{Use: "connect", Short: "Keep the credentials of a provider, in place of older ones"}
	connect.AddCommand(p.connectAPNs(h), p.connectFCM(h), p.connectWebPush(h), p.connectExpo(h))
	c.AddCommand(connect, p.disconnectCommand(h), p.listCommand(h), p.testCommand(h))
	return c
}

func (p *Push) connectAPNs(h *extensions.Host) *cobra.Command {
	var c apns.Credentials
	var file string
	cmd := &cobra.Command{
		Use: "apns", Short: "Connect Apple's push service, for iOS, iPadOS and macOS", Args: cobra.NoArgs,
		Example: "satchel push connect apns --key-file AuthKey_ABC123DEFG.p8 --key-id ABC123DEFG --team-id DEF123GHIJ --topic com.example.app",
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := readFile(file)
			if err != nil {
				return err
			}
			c.Key = text
			return p.connect(cmd, h, credentials.Set{APNs: &c})
		},
	}
	cmd.Flags().StringVar(&file, "key-file", "", "the .p8 file that Apple lets you download once")
	cmd.Flags().StringVar(&c.KeyID, "key-id", "", "the key's 10 characters, which are in the name of its file")
	cmd.Flags().StringVar(&c.TeamID, "team-id", "", "the 10 characters of the team, which Apple's membership page shows")
	cmd.Flags().StringVar(&c.Topic, "topic", "", "bundle id of the app")
	return required(cmd, "key-file", "key-id", "team-id", "topic")
}

func (p *Push) connectFCM(h *extensions.Host) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "fcm", Short: "Connect Firebase Cloud Messaging, for Android", Args: cobra.NoArgs,
		Example: "satchel push connect fcm --account-file service-account.json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := readFile(file)
			if err != nil {
				return err
			}
			return p.connect(cmd, h, credentials.Set{FCM: &fcm.Credentials{Account: text}})
		},
	}
	cmd.Flags().StringVar(&file, "account-file", "", "the service account's file, from the project settings of the Firebase console")
	return required(cmd, "account-file")
}

func (p *Push) connectWebPush(h *extensions.Host) *cobra.Command {
	var subject string
	var fresh bool
	cmd := &cobra.Command{
		Use: "webpush", Short: "Connect browsers and UnifiedPush, with a key of this server's own", Args: cobra.NoArgs,
		Long: "Connect browsers and UnifiedPush, with a key of this server's own. The key is made at the first time and kept at\n" +
			"later ones: every subscription is bound to it.",
		Example: "satchel push connect webpush --subject mailto:admin@example.com",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := p.open(h); err != nil {
				return notReachable(err)
			}
			set, err := p.keeper.Current(sender.WebPush)
			switch {
			case err == nil && !fresh:
				set.WebPush.Subject = subject
			case err == nil || errors.Is(err, credentials.ErrNotConnected):
				made, err := webpush.Generate(subject)
				if err != nil {
					return unusable(err)
				}
				set = credentials.Set{WebPush: &made}
			default:
				return err
			}
			return p.connect(cmd, h, set)
		},
	}
	cmd.Flags().StringVar(&subject, "subject", "", "whom push services may write to when something is wrong: mailto: or https:")
	cmd.Flags().BoolVar(&fresh, "new-key", false, "make a new key; all subscriptions so far end")
	return required(cmd, "subject")
}

func (p *Push) connectExpo(h *extensions.Host) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use: "expo", Short: "Connect Expo's push service, for apps made with Expo", Args: cobra.NoArgs,
		Example: "satchel push connect expo --access-token-file expo-token.txt",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c := expo.Credentials{}
			if file != "" {
				text, err := readFile(file)
				if err != nil {
					return err
				}
				c.AccessToken = strings.TrimSpace(text)
			}
			return p.connect(cmd, h, credentials.Set{Expo: &c})
		},
	}
	cmd.Flags().StringVar(&file, "access-token-file", "", "file with the access token, if the project asks for one")
	return cmd
}

// required makes the command refuse to run without these flags.
func required(cmd *cobra.Command, names ...string) *cobra.Command {
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		for _, name := range names {
			if !cmd.Flags().Changed(name) {
				return cli.Fail(cli.ExitUsage, "a flag is missing", "--"+name+": "+cmd.Flags().Lookup(name).Usage, cmd.Example)
			}
		}
		return nil
	}
	return cmd
}

// readFile reads a file of credentials: they are no flags, because other users of the machine can read the command line.
func readFile(name string) (string, error) {
	fail := func(err error) error {
		return cli.Fail(cli.ExitUsage, "the file cannot be read", err.Error(), "name the file that the provider gave you")
	}
	f, err := os.Open(name)
	if err != nil {
		return "", fail(err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", fail(err)
	}
	if len(text) > maxFile {
		return "", fail(errors.New("it is too large to be credentials"))
	}
	return string(text), nil
}

func unusable(err error) error {
	return cli.Fail(cli.ExitUsage, "the credentials are not usable", strings.ReplaceAll(err.Error(), "\n", "; "), "see docs/push.md for where to get them")
}

func notReachable(err error) error {
	return cli.Fail(cli.ExitUsage, "the settings do not let providers be reached", err.Error(), "see satchel config print")
}

// connect checks a set, asks the provider, and keeps it. A provider that cannot be asked is no reason to refuse: there
// are networks that let nothing out while a server is set up.
func (p *Push) connect(cmd *cobra.Command, h *extensions.Host, set credentials.Set) error {
	if err := p.open(h); err != nil {
		return notReachable(err)
	}
	s, _, err := p.keeper.Make(set)
	if err != nil {
		return unusable(err)
	}
	defer s.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), asking)
	defer cancel()
	asked := s.Check(ctx)
	if asked.Outcome == sender.Unauthorized || asked.Outcome == sender.Rejected {
		return cli.Fail(cli.ExitChecks, "the provider refuses the credentials", reason(asked), "nothing was kept; "+advice(set.Platform(), asked))
	}
	if err := p.deps.Vault.Unlock(); err != nil {
		return fmt.Errorf("unlock vault: %w", err)
	}
	var entry credentials.Entry
	err = h.App.RunInTransaction(func(tx core.App) error {
		if entry, err = p.keeper.Save(tx, set); err != nil {
			return err
		}
		return p.deps.Audit(tx, nil, "push.connect", "success", nil, map[string]any{"platform": string(entry.Platform)})
	})
	if err != nil {
		return err
	}
	if cli.JSON(cmd) {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"credentials": entry, "checked": asked.Outcome == sender.Accepted})
	}
	state := "the provider accepts them"
	switch {
	case asked.Outcome != sender.Accepted:
		state = "the provider could not be asked (" + reason(asked) + ")"
	case set.WebPush != nil:
		state = "browsers subscribe with the key " + entry.Facts.PublicKey
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "The credentials of %s are kept: %s.\nNext: satchel push test %s TOKEN\n", entry.Platform, state, entry.Platform)
	return err
}

// reason is a result for people.
func reason(r sender.Result) string {
	var parts []string
	for _, text := range []string{r.Code, r.Detail} {
		if text != "" {
			parts = append(parts, text)
		}
	}
	return strings.Join(parts, ": ")
}

// advice is what mends what a provider refuses.
func advice(p sender.Platform, r sender.Result) string {
	switch {
	case p == sender.APNs && r.Code == "InvalidProviderToken":
		return "key id, team id and key do not belong together, or the key was revoked"
	case p == sender.APNs && r.Code == "ExpiredProviderToken":
		return "set this machine's clock"
	case p == sender.APNs && strings.Contains(r.Code, "Topic"):
		return "the key is not for this bundle id"
	case p == sender.APNs && r.Code == "BadDeviceToken":
		return "the token is of the other environment: with --sandbox for apps from Xcode, without for TestFlight and the store"
	case p == sender.FCM && r.Code == "invalid_grant":
		return "the key was deleted, or this machine's clock is wrong"
	case p == sender.FCM && r.Code == "SENDER_ID_MISMATCH":
		return "the token belongs to another Firebase project"
	case p == sender.FCM && r.Outcome == sender.Unauthorized:
		return "switch the Firebase Cloud Messaging API on in the project's settings"
	case p == sender.Expo && r.Outcome == sender.Unauthorized:
		return "give the project's access token with --access-token-file"
	case r.Outcome == sender.Dead:
		return "let the app register again"
	case r.Outcome == sender.Retry:
		return "try again later"
	}
	return "see docs/push.md"
}

func (p *Push) disconnectCommand(h *extensions.Host) *cobra.Command {
	return &cobra.Command{
		Use: "disconnect PLATFORM", Short: "Delete the credentials of apns, fcm, webpush or expo", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := p.open(h); err != nil {
				return notReachable(err)
			}
			var found bool
			err := h.App.RunInTransaction(func(tx core.App) (err error) {
				if found, err = p.keeper.Remove(tx, sender.Platform(args[0])); err != nil || !found {
					return err
				}
				return p.deps.Audit(tx, nil, "push.disconnect", "success", nil, map[string]any{"platform": args[0]})
			})
			if err == nil && !found {
				return cli.Fail(cli.ExitError, "nothing to disconnect", args[0]+" has no credentials", "satchel push list shows what is connected")
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "The credentials of %s are deleted.\n", args[0])
			return err
		},
	}
}

func (p *Push) listCommand(h *extensions.Host) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List what is connected, without secrets", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := p.open(h); err != nil {
				return notReachable(err)
			}
			list, err := credentials.List(h.App)
			if err != nil {
				return err
			}
			if cli.JSON(cmd) {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{"credentials": list})
			}
			if len(list) == 0 {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "No provider is connected.\nNext: satchel push connect --help")
				return err
			}
			t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			_, _ = fmt.Fprintln(t, "PLATFORM\tSAVED\tFACTS")
			for _, e := range list {
				facts, err := json.Marshal(e.Facts)
				if err != nil {
					return err
				}
				_, _ = fmt.Fprintf(t, "%s\t%s\t%s\n", e.Platform, e.Saved.Format(time.RFC3339), facts)
			}
			return t.Flush()
		},
	}
}
