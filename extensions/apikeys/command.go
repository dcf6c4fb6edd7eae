package apikeys

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/cli"
)

func (s *service) command(h *extensions.Host) *cobra.Command {
	c := &cobra.Command{
		Use:   "apikeys",
		Short: "Make, list and revoke the keys of other servers",
		Long: "Make, list and revoke the keys with which other servers call this one. A key is shown once, when it is made.\n" +
			"Scopes: " + strings.Join(s.scopes(), ", ") + ". Where one ends in a star, a key may have it as it is, or narrower.\n\n" +
			"Exit codes: 0 done, 1 it failed, 2 the command line is wrong.",
	}
	c.AddCommand(s.createCommand(h), listCommand(h), s.revokeCommand(h))
	return c
}

func (s *service) createCommand(h *extensions.Host) *cobra.Command {
	var w wish
	var networks []string
	var expires string
	c := &cobra.Command{
		Use:     "create NAME",
		Short:   "Make a key and show it, once",
		Example: "satchel apikeys create gateway --scope introspect --expires 90d --network 192.0.2.0/24",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			w.name = args[0]
			life, err := parseLife(expires)
			if err != nil {
				return err
			}
			if life > 0 {
				w.expires = s.now().Add(life)
			}
			if cmd.Flags().Changed("rate") && w.rate == 0 {
				w.rate = -1 // nobody means the default by saying none
			}
			if wrong := s.check(&w, networks); len(wrong) > 0 {
				return failure(wrong[0])
			}
			k, text, err := s.create(h.App, audit.Entry{}, w)
			if err != nil {
				return err
			}
			if cli.JSON(cmd) {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(made{k, text})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n\nThis is the key %s (%s). It cannot be shown again: store it now.\nNext: send it as  Authorization: Bearer %s...\n",
				text, k.Name, k.ID, text[:len(prefix)+idLength+1])
			return err
		},
	}
	c.Flags().StringSliceVar(&w.scopes, "scope", nil, "what the key may do: "+strings.Join(s.scopes(), ", "))
	c.Flags().StringVar(&expires, "expires", "", "how long the key is good for, such as 90d or 12h; without it, until it is revoked")
	c.Flags().IntVar(&w.rate, "rate", 0, "requests a minute; without it, SATCHEL_APIKEYS_RATE")
	c.Flags().StringSliceVar(&networks, "network", nil, "network from which the key is good, such as 192.0.2.0/24; without it, everywhere")
	return c
}

// failure says at the terminal what is wrong with a wish.
func failure(m mistake) error {
	what, next := "the name is not usable", "satchel apikeys create gateway --scope "+ScopeIntrospect
	switch m.field {
	case "scopes":
		what, next = "the scopes are not usable", "add: --scope "+ScopeIntrospect
	case "expiresAt":
		what, next = "the time is not usable", "use: --expires 90d"
	case "rate":
		what, next = "the rate is not usable", "use: --rate 300"
	case "networks":
		what, next = "the network is not usable", "use: --network 192.0.2.0/24"
	}
	return cli.Fail(cli.ExitUsage, what, m.text, next)
}

// listed bounds what the command reads at a time.
const listed = 1000

func listCommand(h *extensions.Host) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List all keys, without their secrets",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			keys := []Key{}
			for cursor := ""; ; {
				some, next, err := page(h.App, listed, cursor)
				if err != nil {
					return err
				}
				keys = append(keys, some...)
				if cursor = next; next == "" {
					break
				}
			}
			if cli.JSON(cmd) {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string][]Key{"keys": keys})
			}
			return printKeys(cmd.OutOrStdout(), keys)
		},
	}
}

func (s *service) revokeCommand(h *extensions.Host) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "End a key for good; a running server refuses it at once",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			k, done, err := s.revoke(h.App, audit.Entry{}, args[0])
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
	_, _ = fmt.Fprintln(t, "ID\tNAME\tSCOPES\tSTATE\tRATE\tNETWORKS\tCREATED\tEXPIRES\tLAST USED")
	for _, k := range keys {
		rate, networks := "default", make([]string, len(k.Networks))
		if k.Rate > 0 {
			rate = strconv.Itoa(k.Rate) + "/min"
		}
		for i, n := range k.Networks {
			networks[i] = n.String()
		}
		if len(networks) == 0 {
			networks = []string{"all"}
		}
		_, _ = fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", k.ID, k.Name, strings.Join(k.Scopes, ","), k.state(time.Now()),
			rate, strings.Join(networks, ","), k.Created.Format(time.RFC3339), when(k.Expires), when(k.LastUsed))
	}
	return t.Flush()
}

func when(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return t.Format(time.RFC3339)
}
