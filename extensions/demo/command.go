package demo

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/cli"
)

// outcome is what the command answers, also as JSON.
type outcome struct {
	Status      string       `json:"status"` // loaded, present, removed or absent
	Collections []collection `json:"collections"`
	Users       []login      `json:"users"`
	Next        string       `json:"next"`
}

type collection struct {
	Name    string `json:"name"`
	Records int64  `json:"records"`
}

// login has a password only right after loading: it cannot be read back.
type login struct {
	Email    string `json:"email"`
	Password string `json:"password,omitempty"`
}

func command(h *extensions.Host) *cobra.Command {
	var remove, yes bool
	c := &cobra.Command{
		Use:   "demo",
		Short: "Load a small team-chat-and-tasks app to play with, or remove it",
		Long: "Load a small team-chat-and-tasks app: three users, two teams, rooms, messages with images and tasks.\n" +
			"Running it again changes nothing. With --remove all of it is deleted, and nothing else.\n\n" +
			"Exit codes: 0 done, 1 it failed, 2 the command line is wrong.",
		Example: "satchel demo\nsatchel demo --json\nsatchel demo --remove",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if h.Production && !yes {
				return cli.Fail(cli.ExitUsage, "demo data is not touched in production without consent",
					"it adds or deletes three users, two teams and four collections of the live app", "if that is what you want, add --yes")
			}
			done, err := run(h, remove)
			if err != nil {
				return err
			}
			if cli.JSON(cmd) {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(done)
			}
			return done.print(cmd.OutOrStdout())
		},
	}
	c.Flags().BoolVar(&remove, "remove", false, "delete the demo's collections, teams, users and files")
	c.Flags().BoolVar(&yes, "yes", false, "do it in production, too")
	return c
}

func run(h *extensions.Host, remove bool) (outcome, error) {
	if remove {
		return removeAll(h.App)
	}
	password := DevelopmentPassword
	if h.Production {
		password = rand.Text()
	}
	return load(h.App, password)
}

// print is the answer for a person.
func (o outcome) print(w io.Writer) error {
	title := map[string]string{
		"loaded":  "The demo is loaded.",
		"present": "The demo is loaded already; nothing was changed.",
		"removed": "The demo is removed:",
		"absent":  "There is no demo here; nothing was changed.",
	}[o.Status]
	var text strings.Builder
	text.WriteString(title + "\n\n")
	for _, c := range o.Collections {
		fmt.Fprintf(&text, "  %-20s %4d records\n", c.Name, c.Records)
	}
	for _, u := range o.Users {
		line := fmt.Sprintf("  %-20s user", u.Email)
		if u.Password != "" {
			line += ", password " + u.Password
		}
		text.WriteString(line + "\n")
	}
	if len(o.Collections)+len(o.Users) > 0 {
		text.WriteString("\n")
	}
	_, err := fmt.Fprintf(w, "%sNext: %s\n", text.String(), o.Next)
	return err
}
