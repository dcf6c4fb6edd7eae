// Package dev holds commands for development: providers on loopback that speak the real protocols, so that an app can be
// built and tested without an account anywhere. The commands need no database and listen on loopback alone.
//
// No tables, routes, settings or error codes.
package dev

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/internal/stubs/idp"
)

// New returns the extension.
func New() extensions.Extension {
	return extensions.Extension{
		Name:     "dev",
		Commands: func(*extensions.Host) []*cobra.Command { return []*cobra.Command{command()} },
	}
}

func command() *cobra.Command {
	c := &cobra.Command{Use: "dev", Short: "Run stand-ins for providers on loopback"}
	c.AddCommand(identityProvider(), stubs())
	return cli.NoDatabase(c)
}

func identityProvider() *cobra.Command {
	var address, caFile string
	c := &cobra.Command{
		Use: "idp", Short: "Run an identity provider on loopback that signs any token it is asked for", Args: cobra.NoArgs,
		Long: "Run an OpenID Connect provider on loopback, with a certificate authority of its own, until Ctrl-C. It prints the\n" +
			"settings that make a server in development mode accept its tokens, and signs whatever it is asked to.\n\n" +
			"Exit codes: 0 stopped, 1 it cannot listen or write the certificate, 2 a flag is not acceptable.",
		Example: "satchel dev idp\nsatchel dev idp --http 127.0.0.1:9400 --ca-file idp.pem",
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return serve(ctx, cmd.OutOrStdout(), address, caFile)
		},
	}
	c.Flags().StringVar(&address, "http", "127.0.0.1:0", "loopback address to listen on; port 0 is any free one")
	c.Flags().StringVar(&caFile, "ca-file", "", "where to write the certificate authority (default: a file in the folder for temporary files, removed at the end)")
	return c
}

// serve runs the provider until the context ends.
func serve(ctx context.Context, out io.Writer, address, caFile string) error {
	provider, err := idp.Start(address)
	if err != nil {
		return cli.Fail(cli.ExitError, "the provider cannot start", err.Error(), "choose another loopback address with --http")
	}
	defer func() { _ = provider.Close() }()
	if caFile == "" {
		dir, err := os.MkdirTemp("", "satchel-idp-")
		if err != nil {
			return fmt.Errorf("make folder for the certificate: %w", err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		caFile = filepath.Join(dir, "ca.pem")
	}
	if caFile, err = filepath.Abs(caFile); err != nil {
		return fmt.Errorf("find certificate: %w", err)
	}
	if err := os.WriteFile(caFile, provider.CAPEM(), 0o600); err != nil {
		return fmt.Errorf("write certificate: %w", err)
	}
	_, err = fmt.Fprintf(out, `Identity provider %[1]s
Certificate authority %[2]s

Settings for the server, in .env:

SATCHEL_IDENTITIES_PROVIDERS=oidc
SATCHEL_IDENTITIES_OIDC_ISSUER=%[1]s
SATCHEL_IDENTITIES_OIDC_AUDIENCES=%[3]s
SATCHEL_IDENTITIES_EMAIL_TRUST=oidc
SATCHEL_IDENTITIES_CA_FILE=%[2]s
SATCHEL_IDENTITIES_ALLOW_LOOPBACK=true

A token (add nonce, aud, name, alg or email_verified=false as you need them):

curl --cacert %[2]s -X POST '%[1]s/token-for?sub=ada&email=ada@example.com'

Ctrl-C stops it.
`, provider.Issuer, caFile, idp.Audience)
	if err != nil {
		return fmt.Errorf("print settings: %w", err)
	}
	<-ctx.Done()
	return nil
}
