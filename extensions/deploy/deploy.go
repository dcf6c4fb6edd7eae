// Package deploy prints the files that put Satchel on a server: a hardened systemd unit, a Dockerfile and a Compose file
// with Caddy in front for TLS.
//
// The files are templates inside the program, so they fit the version that prints them. They agree on what an operator
// has to know: mode production, data in pb_data below one folder, no root, 30 s to stop (running requests get 20 s), and
// forwarded headers believed from the proxy's address alone.
//
// The commands need no database and change nothing, unless --out names a folder to write to; a file there is replaced
// only with --yes. Values that end up in a file are checked against narrow patterns and refused, never escaped: a line
// break in a unit is a second directive. No tables, routes, settings or error codes.
package deploy

import (
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/cli"
)

//go:embed templates
var templates embed.FS

// New returns the extension.
func New() extensions.Extension {
	return extensions.Extension{
		Name:     "deploy",
		Commands: func(*extensions.Host) []*cobra.Command { return []*cobra.Command{command()} },
	}
}

// output says where the text goes: to standard output, or to a folder.
type output struct {
	dir     string
	replace bool
}

func command() *cobra.Command {
	out := new(output)
	c := &cobra.Command{
		Use: "deploy", Short: "Print a systemd unit, a Dockerfile or a Compose file",
		Long:    "Print what puts this program on a server. Nothing is written or changed without --out.\n\nExit codes: 0 done, 1 a file cannot be written, 2 a value is not acceptable.",
		Example: "satchel deploy systemd > /etc/systemd/system/satchel.service\nsatchel deploy compose --domain api.example.com --out .",
	}
	c.PersistentFlags().StringVar(&out.dir, "out", "", "write the file into this folder instead of printing it")
	c.PersistentFlags().BoolVar(&out.replace, "yes", false, "with --out, replace a file that exists")
	c.AddCommand(systemd(out), docker(out), compose(out))
	return cli.NoDatabase(c)
}

func systemd(out *output) *cobra.Command {
	u := unit{User: defaultUser, Dir: defaultDir}
	c := &cobra.Command{
		Use: "systemd", Short: "Print a hardened systemd unit", Args: cobra.NoArgs,
		Example: "satchel deploy systemd\nsatchel deploy systemd --user api --dir /srv/api",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := u.check(); err != nil {
				return err
			}
			return out.emit(cmd, "satchel.service", u)
		},
	}
	c.Flags().StringVar(&u.User, "user", u.User, "user and group of the service")
	c.Flags().StringVar(&u.Dir, "dir", u.Dir, "folder of the service; the data folder is pb_data inside it")
	return c
}

func docker(out *output) *cobra.Command {
	return &cobra.Command{
		Use: "docker", Short: "Print a Dockerfile for this program", Args: cobra.NoArgs,
		Example: "satchel deploy docker > Dockerfile",
		RunE:    func(cmd *cobra.Command, _ []string) error { return out.emit(cmd, "Dockerfile", nil) },
	}
}

func compose(out *output) *cobra.Command {
	var s site
	c := &cobra.Command{
		Use: "compose --domain NAME", Short: "Print a Compose file with Caddy for TLS", Args: cobra.NoArgs,
		Example: "satchel deploy compose --domain api.example.com > compose.yaml",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := s.check(); err != nil {
				return err
			}
			return out.emit(cmd, "compose.yaml", s)
		},
	}
	c.Flags().StringVar(&s.Domain, "domain", "", "the server's public name; required")
	return c
}

// emit renders the template called name and prints it or writes it to a file of that name.
func (o *output) emit(cmd *cobra.Command, name string, data any) error {
	text, err := render(name, data)
	if err != nil {
		return err
	}
	if o.dir == "" {
		if cli.JSON(cmd) {
			return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{"file": name, "content": text})
		}
		_, err = fmt.Fprint(cmd.OutOrStdout(), text)
		return err
	}
	path := filepath.Join(o.dir, name)
	if err := o.write(path, text); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return cli.Fail(cli.ExitUsage, path+" exists already", "a file is replaced only when asked", "add --yes to replace it, or name another folder with --out")
		}
		return cli.Fail(cli.ExitError, "the file cannot be written", err.Error(), "choose another folder with --out, or leave --out away to print the file")
	}
	if cli.JSON(cmd) {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]string{"file": name, "path": path})
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), path)
	return err
}

func render(name string, data any) (string, error) {
	t, err := template.New(name).ParseFS(templates, "templates/"+name)
	if err != nil {
		return "", fmt.Errorf("parse template %s: %w", name, err)
	}
	var b strings.Builder
	if err := t.Execute(&b, data); err != nil {
		return "", fmt.Errorf("render template %s: %w", name, err)
	}
	return b.String(), nil
}

// write creates the file, and its folder where that is missing. The files hold no secrets.
func (o *output) write(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // an operator's folder, as mkdir makes it
		return err
	}
	mode := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if o.replace {
		mode = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(path, mode, 0o644) //nolint:gosec // other users may read it: systemd and Docker do
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
