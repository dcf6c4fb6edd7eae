package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"text/template"
	"time"

	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/internal/stubs/apns"
	"github.com/satchelbase/satchel/extensions/internal/stubs/expo"
	"github.com/satchelbase/satchel/extensions/internal/stubs/fcm"
	"github.com/satchelbase/satchel/extensions/internal/stubs/inbox"
	"github.com/satchelbase/satchel/extensions/internal/stubs/loopback"
	"github.com/satchelbase/satchel/extensions/internal/stubs/mail"
	"github.com/satchelbase/satchel/extensions/internal/stubs/webpush"
)

// stubPorts is how many ports the stubs take, one after the other.
const stubPorts = 7

func stubs() *cobra.Command {
	var port int
	var dir string
	var latency time.Duration
	c := &cobra.Command{
		Use: "stubs", Short: "Run APNs, FCM, Web Push, Expo and a mail server on loopback, and show what arrives", Args: cobra.NoArgs,
		Long: "Run stand-ins for APNs, FCM with its OAuth server, a browser's push service, Expo and a mail server on loopback,\n" +
			"until Ctrl-C. They check requests as the real ones do, deliver nothing, and show what arrived on a page. The command\n" +
			"prints the settings for a server in development mode and the commands that connect it. No account is needed.\n\n" +
			"Tokens that begin with dead00 are of devices that are gone, bad000 of none, 429429 make the provider busy and 503503\n" +
			"out of order.\n\n" +
			"Exit codes: 0 stopped, 1 it cannot listen or write its files, 2 a flag is not acceptable.",
		Example: "satchel dev stubs\nsatchel dev stubs --port 9510 --dir stubs",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if port != 0 && (port < 1024 || port > 65535-stubPorts) {
				return cli.Fail(cli.ExitUsage, "the port is not usable", "it must be 0 or between 1024 and 65528", "use: --port 9410")
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return runStubs(ctx, cmd.OutOrStdout(), port, dir, latency)
		},
	}
	c.Flags().IntVar(&port, "port", 9410, "first of the seven ports to listen on; 0 is any free ones")
	c.Flags().StringVar(&dir, "dir", "", "where to keep the certificate and the credentials (default: a folder for temporary files, removed at the end)")
	c.Flags().DurationVar(&latency, "latency", 0, "how long each answer of a push provider takes, such as 50ms")
	return c
}

// running are the stubs of one run.
type running struct {
	page    *http.Server
	closers []io.Closer
	view    stubView

	providers []interface{ SetLatency(d time.Duration) }
}

// stubView is what the command prints.
type stubView struct {
	Page, APNs, Sandbox, FCM, WebPush, Expo, Mail string
	CA, Key, Account                              string
	KeyID, TeamID, Topic                          string
}

// runStubs runs them until the context ends.
func runStubs(ctx context.Context, out io.Writer, port int, dir string, latency time.Duration) error {
	if dir == "" {
		made, err := os.MkdirTemp("", "satchel-stubs-")
		if err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
		defer func() { _ = os.RemoveAll(made) }()
		dir = made
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("find folder: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make folder: %w", err)
	}
	r := &running{}
	defer r.close()
	if err := r.start(port, dir); err != nil {
		return cli.Fail(cli.ExitError, "the stubs cannot start", err.Error(), "choose other ports with --port, or another folder with --dir")
	}
	for _, s := range r.providers {
		s.SetLatency(latency)
	}
	if err := template.Must(template.New("stubs").Parse(stubText)).Execute(out, r.view); err != nil {
		return fmt.Errorf("print settings: %w", err)
	}
	<-ctx.Done()
	return nil
}

func (r *running) close() {
	for _, c := range r.closers {
		_ = c.Close()
	}
}

// start starts all stubs, with the credentials of an earlier run in the same folder.
func (r *running) start(port int, dir string) error {
	address := func(i int) string {
		if port == 0 {
			return "127.0.0.1:0"
		}
		return "127.0.0.1:" + strconv.Itoa(port+i)
	}
	authority, err := loopback.NewAuthority()
	if err != nil {
		return err
	}
	box := &inbox.Inbox{}
	r.view = stubView{
		CA: filepath.Join(dir, "ca.pem"), Key: filepath.Join(dir, "apns.p8"), Account: filepath.Join(dir, "fcm.json"),
		KeyID: apns.KeyID, TeamID: apns.TeamID, Topic: apns.Topic,
	}
	key, err := earlier(r.view.Key)
	if err != nil {
		return err
	}
	account, err := earlier(r.view.Account)
	if err != nil {
		return err
	}
	if err := r.servePage(address(0), box); err != nil {
		return err
	}
	a, err := apns.Start(apns.Options{Address: address(1), SandboxAddress: address(2), Authority: authority, Inbox: box, Key: key})
	if err != nil {
		return err
	}
	r.closers = append(r.closers, a)
	f, err := fcm.Start(fcm.Options{Address: address(3), Authority: authority, Inbox: box, Account: account})
	if err != nil {
		return err
	}
	r.closers = append(r.closers, f)
	w, err := webpush.Start(address(4), authority, box)
	if err != nil {
		return err
	}
	r.closers = append(r.closers, w)
	e, err := expo.Start(address(5), authority, box)
	if err != nil {
		return err
	}
	r.closers = append(r.closers, e)
	m, err := mail.Start(address(6), box)
	if err != nil {
		return err
	}
	r.closers = append(r.closers, m)
	r.providers = append(r.providers, a.Production, a.Sandbox, f, w, e)
	r.view.APNs, r.view.Sandbox, r.view.FCM, r.view.WebPush, r.view.Expo, r.view.Mail = a.Production.URL, a.Sandbox.URL, f.URL, w.URL, e.URL, m.Address
	for name, text := range map[string][]byte{r.view.CA: authority.PEM(), r.view.Key: a.P8(), r.view.Account: f.Account()} {
		if err := os.WriteFile(name, text, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// earlier reads a file that may not be there yet.
func earlier(name string) ([]byte, error) {
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return text, err
}

func (r *running) servePage(address string, box *inbox.Inbox) error {
	listener, err := loopback.Listen(address)
	if err != nil {
		return err
	}
	r.page = &http.Server{Handler: box.Handler(), ReadHeaderTimeout: 10 * time.Second}
	r.closers = append(r.closers, r.page)
	r.view.Page = "http://" + listener.Addr().String()
	go func() { _ = r.page.Serve(listener) }()
	return nil
}

const stubText = `What arrives: {{.Page}}

Settings for the server, in .env:

SATCHEL_PUSH_APNS_ENDPOINT={{.APNs}}
SATCHEL_PUSH_APNS_SANDBOX_ENDPOINT={{.Sandbox}}
SATCHEL_PUSH_FCM_ENDPOINT={{.FCM}}
SATCHEL_PUSH_EXPO_ENDPOINT={{.Expo}}
SATCHEL_PUSH_CA_FILE={{.CA}}
SATCHEL_PUSH_ALLOW_LOOPBACK=true

Connect it:

satchel push connect apns --key-file {{.Key}} --key-id {{.KeyID}} --team-id {{.TeamID}} --topic {{.Topic}}
satchel push connect fcm --account-file {{.Account}}
satchel push connect webpush --subject mailto:admin@example.com
satchel push connect expo

A subscription of a browser, for webpush and unifiedpush:

curl --cacert {{.CA}} -X POST -d '{}' {{.WebPush}}/subscribe

Mail: SMTP at {{.Mail}}, without TLS; any user and password do.

Ctrl-C stops it.
`
