package push_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/idempotency"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/internal/stubs/apns"
	"github.com/satchelbase/satchel/extensions/internal/stubs/loopback"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/push"
	"github.com/satchelbase/satchel/extensions/push/credentials"
	"github.com/satchelbase/satchel/extensions/push/sender"
	"github.com/satchelbase/satchel/extensions/settings"
)

type fixture struct {
	*apptest.App

	push    *push.Push
	stub    *apns.Server
	dir     string
	audited []string
	stale   bool // nobody has signed in lately
}

func start(t *testing.T) *fixture {
	t.Helper()
	authority, err := loopback.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	stub, err := apns.Start(apns.Options{Address: "127.0.0.1:0", SandboxAddress: "127.0.0.1:0", Authority: authority})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stub.Close() })
	f := &fixture{stub: stub, dir: t.TempDir()}
	cfg := settings.Defaults[push.Config]()
	cfg.APNsEndpoint, cfg.APNsSandboxEndpoint, cfg.AllowLoopback, cfg.CAFile = stub.Production.URL, stub.Sandbox.URL, true, f.file(t, "ca.pem", authority.PEM())
	vault, queue := secret.Fixed([]byte(strings.Repeat("k", 32))), jobs.New(settings.Defaults[jobs.Config]())
	f.push = push.New(cfg, push.Deps{
		Jobs: queue, Vault: vault,
		Audit: func(_ core.App, _ *core.RequestEvent, action, outcome string, _ *core.Record, details map[string]any) error {
			text, err := json.Marshal(details)
			f.audited = append(f.audited, action+" "+outcome+" "+string(text))
			return err
		},
	})
	ops := operations.New()
	ops.Add(f.push.Operations())
	f.App = apptest.New(t, api.New(settings.Defaults[api.Config]()), queue.Extension(jobs.Deps{Vault: vault}),
		ops.Extension(operations.Deps{
			Recent: func(*core.RequestEvent) error {
				if f.stale {
					return api.ErrForbidden
				}
				return nil
			},
			Audit: func(_ core.App, e audit.Entry) error {
				text, err := json.Marshal(e.Details)
				f.audited = append(f.audited, e.Action+" "+e.Outcome+" "+string(text))
				return err
			},
		}),
		idempotency.New(settings.Defaults[idempotency.Config](), idempotency.Deps{Route: ops.Policy, Before: ops.Prepare}), f.push.Extension())
	return f
}

func (f *fixture) file(t *testing.T, name string, text []byte) string {
	t.Helper()
	path := filepath.Join(f.dir, name)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// run runs satchel push with arguments and returns what it printed and its failure.
func (f *fixture) run(t *testing.T, args ...string) (string, *cli.Failure) {
	t.Helper()
	c := f.push.Extension().Commands(f.Host)[0]
	c.PersistentFlags().Bool("json", false, "")
	var out bytes.Buffer
	c.SetArgs(args)
	c.SetOut(&out)
	c.SilenceErrors, c.SilenceUsage = true, true
	err := c.ExecuteContext(t.Context())
	var failure *cli.Failure
	if err != nil && !errors.As(err, &failure) {
		t.Fatalf("%v: %v", args, err)
	}
	return out.String(), failure
}

func (f *fixture) connect(t *testing.T, keyID string) (string, *cli.Failure) {
	t.Helper()
	return f.run(t, "connect", "apns", "--key-file", f.file(t, "key.p8", f.stub.P8()), "--key-id", keyID, "--team-id", apns.TeamID, "--topic", apns.Topic)
}

func (f *fixture) send(t *testing.T) sender.Result {
	t.Helper()
	s, err := f.push.Sender(t.Context(), sender.APNs)
	if err != nil {
		t.Fatal(err)
	}
	return s.Send(t.Context(), []sender.Push{{Target: sender.Target{Token: strings.Repeat("ab", 32)}, Notification: &sender.Notification{Title: "Hello"}}})[0]
}

func TestConnect(t *testing.T) {
	f := start(t)
	if _, err := f.push.Sender(t.Context(), sender.APNs); !errors.Is(err, credentials.ErrNotConnected) {
		t.Errorf("before: %v", err)
	}
	if _, failed := f.connect(t, "short"); failed == nil || failed.Exit != cli.ExitUsage || !strings.Contains(failed.Why, "keyId") {
		t.Errorf("a wrong form: %+v", failed)
	}
	if _, failed := f.connect(t, "OTHERKEYID"); failed == nil || failed.Exit != cli.ExitChecks || failed.Why != "InvalidProviderToken" {
		t.Errorf("refused by the provider: %+v", failed)
	}
	if list, err := credentials.List(f.App); err != nil || len(list) != 0 {
		t.Errorf("refused credentials are kept: %v, %v", list, err)
	}
	out, failed := f.connect(t, apns.KeyID)
	if failed != nil || !strings.Contains(out, "the provider accepts them") {
		t.Fatalf("%s %+v", out, failed)
	}
	if r := f.send(t); r.Outcome != sender.Accepted {
		t.Errorf("%+v", r)
	}

	// The key is nowhere in the clear.
	var data, facts string
	if err := f.DB().NewQuery("SELECT data, facts FROM "+credentials.Table).Row(&data, &facts); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(data+facts, "PRIVATE") || !strings.HasPrefix(data, "v1:") || !strings.Contains(facts, apns.Topic) {
		t.Errorf("the row: %s %s", data, facts)
	}

	// A new key replaces the old one without a restart.
	if err := f.stub.Rotate(); err != nil {
		t.Fatal(err)
	}
	if r := f.send(t); r.Outcome != sender.Unauthorized {
		t.Errorf("the old key: %+v", r)
	}
	if _, failed := f.connect(t, apns.KeyID); failed != nil {
		t.Fatalf("%+v", failed)
	}
	if r := f.send(t); r.Outcome != sender.Accepted {
		t.Errorf("the new key: %+v", r)
	}
	if out, failed := f.run(t, "disconnect", "apns"); failed != nil || !strings.Contains(out, "deleted") {
		t.Errorf("%s %+v", out, failed)
	}
	if _, failed := f.run(t, "disconnect", "apns"); failed == nil || failed.Exit != cli.ExitError {
		t.Errorf("twice: %+v", failed)
	}
	if _, err := f.push.Sender(t.Context(), sender.APNs); !errors.Is(err, credentials.ErrNotConnected) {
		t.Errorf("after: %v", err)
	}
	want := `push.connect success {"platform":"apns"}`
	if got := strings.Join(f.audited, "\n"); got != want+"\n"+want+"\n"+`push.disconnect success {"platform":"apns"}` {
		t.Errorf("audited:\n%s", got)
	}
}

// A row that cannot be read takes its own platform away and no other.
func TestDamage(t *testing.T) {
	f := start(t)
	if _, failed := f.connect(t, apns.KeyID); failed != nil {
		t.Fatalf("%+v", failed)
	}
	if _, failed := f.run(t, "connect", "webpush", "--subject", "mailto:admin@satchel.dev"); failed != nil {
		t.Fatalf("%+v", failed)
	}
	// A value that is moved to another row does not open there.
	_, err := f.NonconcurrentDB().NewQuery("UPDATE " + credentials.Table + " SET version = 'x', data = (SELECT data FROM " + credentials.Table + " WHERE platform = 'apns') WHERE platform = 'webpush'").Execute()
	if err != nil {
		t.Fatal(err)
	}
	if r := f.send(t); r.Outcome != sender.Accepted {
		t.Errorf("%+v", r)
	}
	if s, err := f.push.Sender(t.Context(), sender.WebPush); !errors.Is(err, secret.ErrDamaged) || s != nil {
		t.Errorf("the damaged one: %v, %v", s, err)
	}
}

// A provider that cannot be asked does not keep a server from being set up.
func TestConnectLater(t *testing.T) {
	f := start(t)
	f.stub.BehaveAll(loopback.Down)
	if out, failed := f.connect(t, apns.KeyID); failed != nil || !strings.Contains(out, "could not be asked (ServiceUnavailable)") {
		t.Errorf("%s %+v", out, failed)
	}
}

// The key that subscriptions are bound to stays, unless a new one is asked for.
func TestWebPushKey(t *testing.T) {
	f := start(t)
	key := func(args ...string) string {
		t.Helper()
		if out, failed := f.run(t, append([]string{"connect", "webpush", "--subject", "mailto:admin@satchel.dev"}, args...)...); failed != nil {
			t.Fatalf("%s %+v", out, failed)
		}
		list, err := credentials.List(f.App)
		if err != nil || len(list) != 1 {
			t.Fatalf("%v, %v", list, err)
		}
		return list[0].Facts.PublicKey
	}
	first := key()
	if second := key(); first == "" || second != first {
		t.Errorf("the key is another one: %s, %s", first, second)
	}
	if third := key("--new-key"); third == first {
		t.Error("the key is the old one")
	}
	if _, failed := f.run(t, "connect", "webpush", "--subject", "mailto:admin@localhost"); failed == nil || failed.Exit != cli.ExitUsage {
		t.Errorf("%+v", failed)
	}
	if s, err := f.push.Sender(t.Context(), sender.UnifiedPush); err != nil || s == nil {
		t.Errorf("UnifiedPush: %v", err)
	}
}

func TestTry(t *testing.T) {
	f := start(t)
	if _, failed := f.run(t, "test"); failed == nil || failed.Why != "no provider is connected" {
		t.Errorf("%+v", failed)
	}
	if _, failed := f.run(t, "test", "apns", "00"); failed == nil || failed.Exit != cli.ExitError {
		t.Errorf("%+v", failed)
	}
	if _, failed := f.connect(t, apns.KeyID); failed != nil {
		t.Fatalf("%+v", failed)
	}
	good, dead := strings.Repeat("ab", 32), "dead00"+strings.Repeat("ab", 29)
	for _, c := range []struct {
		args []string
		out  string
		exit int
		next string
	}{
		{[]string{"test"}, "apns accepted", 0, ""},
		{[]string{"test", "apns", good}, "apns accepted", 0, ""},
		{[]string{"test", "apns", good, "--sandbox", "--silent", "--data", "a=b", "--json"}, `"outcome":"accepted"`, 0, ""},
		{[]string{"test", "apns", dead}, "apns dead", cli.ExitChecks, "let the app register again"},
		{[]string{"test", "apns", "bad000" + good}, "apns rejected", cli.ExitChecks, "the token is of the other environment: with --sandbox for apps from Xcode, without for TestFlight and the store"},
		{[]string{"test", "apns", good, "--data", "aps=b"}, "", cli.ExitUsage, "see --help"},
		{[]string{"test", "--token-file", f.file(t, "token", []byte(good))}, "", cli.ExitUsage, "satchel push test webpush --token-file subscription.json"},
	} {
		out, failed := f.run(t, c.args...)
		exit, next := 0, ""
		if failed != nil {
			exit, next = failed.Exit, failed.Next
		}
		if !strings.Contains(out, c.out) || exit != c.exit || next != c.next {
			t.Errorf("%v: %s, %+v", c.args, out, failed)
		}
	}
	if f.stub.Sandbox.Requests() != 1 {
		t.Errorf("%d requests in the sandbox", f.stub.Sandbox.Requests())
	}
	if out, failed := f.run(t, "list"); failed != nil || !strings.Contains(out, apns.Topic) || strings.Contains(out, "PRIVATE") {
		t.Errorf("%s %+v", out, failed)
	}
}

func TestConfig(t *testing.T) {
	for key, env := range map[string]string{
		"CONCURRENCY": "SATCHEL_PUSH_CONCURRENCY=0", "FCM_ENDPOINT": "SATCHEL_PUSH_FCM_ENDPOINT=http://127.0.0.1", "EXPO_ENDPOINT": "SATCHEL_PUSH_EXPO_ENDPOINT=https://127.0.0.1/",
	} {
		s := settings.Load([]string{env})
		settings.Section[push.Config](s, "push")
		if err := s.Err(); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s: %v", env, err)
		}
	}
}

// What is for development stops a server in production.
func TestProduction(t *testing.T) {
	f := start(t)
	for want, change := range map[string]func(c *push.Config){
		"":             func(*push.Config) {},
		"ENDPOINT":     func(c *push.Config) { c.ExpoEndpoint = "https://127.0.0.1:1" },
		"_CA_FILE":     func(c *push.Config) { c.CAFile = filepath.Join(f.dir, "ca.pem") },
		"_LOOPBACK":    func(c *push.Config) { c.AllowLoopback = true },
		"SANDBOX/PUSH": func(c *push.Config) { c.APNsSandboxEndpoint = "https://127.0.0.1:1" },
	} {
		cfg := settings.Defaults[push.Config]()
		change(&cfg)
		x := push.New(cfg, push.Deps{Jobs: jobs.New(settings.Defaults[jobs.Config]()), Vault: secret.Fixed([]byte("k"))}).Extension()
		err := x.Serve(&extensions.Host{App: f.App, Production: true, Logger: f.Host.Logger}, nil)
		if (err == nil) != (want == "") {
			t.Errorf("%s: %v", want, err)
		}
	}
}
