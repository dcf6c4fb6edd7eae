package program

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"runtime/debug"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/cmd"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
)

// installerLifetime is how long the link for the first admin works.
const installerLifetime = 30 * time.Minute

// Commands are the commands of the program itself; the extensions bring the others.
func Commands(h *extensions.Host, info Info) []*cobra.Command {
	return []*cobra.Command{Version(info.Version), serve(h, info), superuser(h.App)}
}

// superuser is PocketBase's command, which counts its arguments only after the data folder has been created.
func superuser(app core.App) *cobra.Command {
	group := cmd.NewSuperuserCommand(app)
	for _, c := range group.Commands() {
		switch c.Name() {
		case "upsert", "create", "update":
			c.Args = cobra.ExactArgs(2)
		case "delete", "otp":
			c.Args = cobra.ExactArgs(1)
		}
	}
	return group
}

func serve(h *extensions.Host, info Info) *cobra.Command {
	var httpAddr, httpsAddr string
	c := &cobra.Command{
		Use: "serve [domain...]", Short: "Start the server",
		Example: "satchel serve\nsatchel serve --http 127.0.0.1:8091\nsatchel serve api.example.com",
		Args:    cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, domains []string) error {
			if len(domains) > 0 && httpsAddr == "" {
				httpsAddr = "0.0.0.0:443"
			}
			if httpAddr == "" {
				httpAddr = info.HTTP
				if len(domains) > 0 {
					httpAddr = "0.0.0.0:80"
				}
			}
			scheme := "http://"
			if httpsAddr != "" {
				scheme = "https://"
			}
			h.App.OnServe().Bind(&hook.Handler[*core.ServeEvent]{Id: "satchelWelcome", Priority: -9998, Func: welcome(h, info, scheme)})
			err := apis.Serve(h.App, apis.ServeConfig{HttpAddr: httpAddr, HttpsAddr: httpsAddr, CertificateDomains: domains})
			if errors.Is(err, http.ErrServerClosed) {
				return nil
			}
			return err
		},
	}
	c.Flags().StringVar(&httpAddr, "http", "", "TCP address of the HTTP server (default "+info.HTTP+", or 0.0.0.0:80 with domains)")
	c.Flags().StringVar(&httpsAddr, "https", "", "TCP address of the HTTPS server (default 0.0.0.0:443 with domains)")
	return c
}

// welcome says where the server is. The link for the first admin holds a token: it is shown on a terminal only, so that
// it never ends up in a journal or a container's log.
func welcome(h *extensions.Host, info Info, scheme string) func(e *core.ServeEvent) error {
	terminal := isatty.IsTerminal(os.Stdout.Fd())
	return func(e *core.ServeEvent) error {
		e.InstallerFunc = func(_ core.App, superuser *core.Record, baseURL string) error {
			if !terminal {
				h.Logger.Info("no admin exists yet", slog.String("next", "satchel superuser upsert EMAIL PASSWORD"))
				return nil
			}
			token, err := superuser.NewStaticAuthToken(installerLifetime)
			if err == nil && info.Harden != nil {
				token, err = info.Harden(superuser, token)
			}
			if err != nil {
				return fmt.Errorf("create installer token: %w", err)
			}
			return printf(os.Stdout, "\n  Create the first admin (works for 30 minutes):\n             %s/_/#/pbinstall/%s\n", baseURL, token)
		}
		if err := e.Next(); err != nil {
			return err
		}
		base := scheme + e.Server.Addr
		if !terminal {
			h.Logger.Info("server started", slog.String("url", base), slog.String("version", info.Version), slog.String("dataDir", h.App.DataDir()))
			return nil
		}
		return printf(os.Stdout, "\nsatchel %s  data %s\n\n  API        %s/api/v1\n  Health     %s/api/v1/health\n  Dashboard  %s/_/\n",
			info.Version, h.App.DataDir(), base, base, base)
	}
}

func printf(w io.Writer, format string, args ...any) error {
	_, err := fmt.Fprintf(w, format, args...)
	return err
}

// pocketBaseVersion reads the linked version from the build information.
func pocketBaseVersion() string {
	if build, ok := debug.ReadBuildInfo(); ok {
		for _, dep := range build.Deps {
			if dep.Path == "github.com/pocketbase/pocketbase" {
				return dep.Version
			}
		}
	}
	return "unknown"
}
