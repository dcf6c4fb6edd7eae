package apikeys

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/cli"
)

// Bounds of --expires.
const (
	minLife = time.Minute
	maxLife = 10 * 365 * 24 * time.Hour
)

func command(h *extensions.Host, record appendFunc) *cobra.Command {
	c := &cobra.Command{
		Use:   "apikeys",
		Short: "Make, list and revoke the keys of other servers",
		Long: "Make, list and revoke the keys with which other servers call this one. A key is shown once, when it is made.\n" +
			"Scopes: " + strings.Join(scopes(), ", ") + " (ask what a token is worth, and revoke it).\n\n" +
			"Exit codes: 0 done, 1 it failed, 2 the command line is wrong.",
	}
	c.AddCommand(createCommand(h, record), listCommand(h), revokeCommand(h, record))
	return c
}

func createCommand(h *extensions.Host, record appendFunc) *cobra.Command {
	var allowed []string
	var expires string
	c := &cobra.Command{
		Use:     "create NAME",
		Short:   "Make a key and show it, once",
		Example: "satchel apikeys create gateway --scope introspect --expires 90d",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := checkName(args[0])
			if err != nil {
				return err
			}
			if allowed, err = checkScopes(allowed); err != nil {
				return err
			}
			life, err := parseLife(expires)
			if err != nil {
				return err
			}
			k, text, err := create(h.App, record, name, allowed, life)
			if err != nil {
				return err
			}
			if cli.JSON(cmd) {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(struct {
					Key
					Text string `json:"key"`
				}{k, text})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n\nThis is the key %s (%s). It cannot be shown again: store it now.\nNext: send it as  Authorization: Bearer %s...\n",
				text, k.Name, k.ID, text[:len(prefix)+idLength+1])
			return err
		},
	}
	c.Flags().StringSliceVar(&allowed, "scope", nil, "what the key may do: "+strings.Join(scopes(), ", "))
	c.Flags().StringVar(&expires, "expires", "", "how long the key is good for, such as 90d or 12h; without it, until it is revoked")
	return c
}

func listCommand(h *extensions.Host) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List all keys, without their secrets",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			keys, err := list(h.App)
			if err != nil {
				return err
			}
			if cli.JSON(cmd) {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string][]Key{"keys": keys})
			}
			return printKeys(cmd.OutOrStdout(), keys)
		},
	}
}

func revokeCommand(h *extensions.Host, record appendFunc) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "End a key for good; a running server refuses it at once",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, done, err := revoke(h.App, record, args[0])
			if errors.Is(err, errNotFound) {
				return cli.Fail(cli.ExitError, "there is no such key", "no key has the id that was given", "satchel apikeys list shows the ids")
			}
			if err != nil {
				return err
			}
			if cli.JSON(cmd) {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(k)
			}
			text := "The key %s (%s) is revoked.\n"
			if !done {
				text = "The key %s (%s) was revoked already; nothing was changed.\n"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), text, k.Name, k.ID)
			return err
		},
	}
}

func checkName(name string) (string, error) {
	name = strings.TrimSpace(name)
	if name == "" || utf8.RuneCountInString(name) > maxName || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return "", cli.Fail(cli.ExitUsage, "the name is not usable", fmt.Sprintf("it must have 1 to %d printable characters", maxName), "satchel apikeys create gateway --scope "+ScopeIntrospect)
	}
	return name, nil
}

func checkScopes(wanted []string) ([]string, error) {
	slices.Sort(wanted)
	wanted = slices.Compact(wanted)
	for _, s := range wanted {
		if !slices.Contains(scopes(), s) {
			return nil, cli.Fail(cli.ExitUsage, fmt.Sprintf("there is no scope %q", s), "a key may do what its scopes name", "use: --scope "+strings.Join(scopes(), " or --scope "))
		}
	}
	if len(wanted) == 0 {
		return nil, cli.Fail(cli.ExitUsage, "the key has no scope", "a key without a scope may do nothing", "add: --scope "+ScopeIntrospect)
	}
	return wanted, nil
}

// parseLife reads "90d" or a duration of Go. Empty has no end.
func parseLife(text string) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	life, err := time.ParseDuration(text)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n int
		n, err = strconv.Atoi(days)
		life = time.Duration(min(max(n, 0), int(maxLife.Hours()))) * 24 * time.Hour
	}
	if err != nil || life < minLife || life > maxLife {
		return 0, cli.Fail(cli.ExitUsage, fmt.Sprintf("%q is not a usable time", text), "it must lie between a minute and ten years", "use: --expires 90d")
	}
	return life, nil
}

func printKeys(w io.Writer, keys []Key) error {
	if len(keys) == 0 {
		_, err := fmt.Fprintf(w, "There are no keys.\nNext: satchel apikeys create gateway --scope %s\n", ScopeIntrospect)
		return err
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(t, "ID\tNAME\tSCOPES\tSTATE\tCREATED\tEXPIRES\tLAST USED")
	for _, k := range keys {
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", k.ID, k.Name, strings.Join(k.Scopes, ","), k.state(time.Now()),
			k.Created.Format(time.RFC3339), when(k.Expires), when(k.LastUsed))
	}
	return t.Flush()
}

func when(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return t.Format(time.RFC3339)
}
