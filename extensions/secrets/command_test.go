package secrets_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/secrets"
)

// command executes `satchel secrets ...` and returns what it prints.
func (p process) command(args ...string) (string, error) {
	p.t.Helper()
	cmd := p.x.Commands(p.host)[0]
	cmd.PersistentFlags().Bool("json", false, "")
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	var out bytes.Buffer
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(p.t.Context())
	return out.String(), err
}

func TestGenerate(t *testing.T) {
	i := newInstallation(t)
	p := i.closed(secrets.Config{}, true)
	first, err := p.command("generate")
	if err != nil {
		t.Fatal(err)
	}
	second, err := p.command("generate")
	if err != nil || first == second {
		t.Errorf("two keys: %v", err)
	}
	if _, err := secret.ParseKey(first); err != nil {
		t.Error(err)
	}
	out, err := p.command("generate", "--json")
	var got struct{ Key string }
	if err != nil || json.Unmarshal([]byte(out), &got) != nil {
		t.Fatalf("%s %v", out, err)
	}
	if _, err := secret.ParseKey(got.Key); err != nil {
		t.Error(err)
	}

	if out, err := p.command("generate", "--out", i.keyFile()); err != nil || out != i.keyFile()+"\n" {
		t.Errorf("%q, %v", out, err)
	}
	before, err := secret.ReadKeyFile(i.keyFile(), true)
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.command("generate", "--out", i.keyFile())
	if f, ok := errors.AsType[*cli.Failure](err); !ok || f.Exit != cli.ExitUsage {
		t.Errorf("an existing file: %v", err)
	}
	if after, err := secret.ReadKeyFile(i.keyFile(), true); err != nil || !bytes.Equal(before, after) {
		t.Error("the file was replaced")
	}
	_, err = p.command("generate", "--out", filepath.Join(i.dataDir(), "satchel.key"))
	refused(t, err, "part of every backup")
	_, err = p.command("generate", "--out", filepath.Join(i.root, "none", "satchel.key"))
	if f, ok := errors.AsType[*cli.Failure](err); !ok || f.Exit != cli.ExitError {
		t.Errorf("no folder: %v", err)
	}
	if exists(i.dataDir()) {
		t.Error("the command made the data folder")
	}
}

func TestCheckCommand(t *testing.T) {
	i := newInstallation(t)
	_, err := i.closed(secrets.Config{}, true).command("check")
	refused(t, err, "there is no master key")
	right := newKey()
	if out, err := i.closed(secrets.Config{MasterKey: right}, true).command("check"); err != nil || !strings.Contains(out, "nothing is sealed yet") {
		t.Errorf("%q, %v", out, err)
	}
	if exists(i.dataDir()) {
		t.Error("the command made the data folder")
	}
	if err := i.run(secrets.Config{MasterKey: right}, true).serve(); err != nil {
		t.Fatal(err)
	}
	out, err := i.closed(secrets.Config{MasterKey: right}, true).command("check", "--json")
	if err != nil || !strings.Contains(out, `"status":"ok"`) || strings.Contains(out, string(right)) {
		t.Errorf("%q, %v", out, err)
	}
	_, err = i.closed(secrets.Config{MasterKey: newKey()}, true).command("check")
	refused(t, err, "not the one")
}

// A new master key changes one value: everything that was sealed or derived stays.
func TestRewrap(t *testing.T) {
	i := newInstallation(t)
	old, other := newKey(), newKey()
	before := i.run(secrets.Config{MasterKey: old}, true)
	if out, err := before.command("rewrap", "--json"); err != nil || !strings.Contains(out, "absent") {
		t.Errorf("nothing sealed: %q, %v", out, err)
	}
	sealed, err := before.vault.Seal(place, []byte("hunter2"))
	if err != nil {
		t.Fatal(err)
	}
	derived, stored := before.vault.Key("x"), before.stored()
	if out, err := before.command("rewrap", "--json"); err != nil || !strings.Contains(out, "unchanged") {
		t.Errorf("the same key: %q, %v", out, err)
	}

	// Without the old key, or with a wrong one, nothing changes.
	_, err = i.run(secrets.Config{MasterKey: other}, true).command("rewrap")
	if f, ok := errors.AsType[*cli.Failure](err); !ok || f.Exit != cli.ExitUsage || !strings.Contains(f.Next, "SATCHEL_MASTER_KEY_PREVIOUS") {
		t.Errorf("no old key: %v", err)
	}
	_, err = i.run(secrets.Config{MasterKey: other, Previous: newKey()}, true).command("rewrap")
	refused(t, err, "SATCHEL_MASTER_KEY_PREVIOUS")
	_, err = i.run(secrets.Config{Previous: old}, false).command("rewrap")
	refused(t, err, "is missing")
	if exists(i.keyFile()) || before.stored() != stored {
		t.Fatal("a refused rewrap changed something")
	}

	out, err := i.run(secrets.Config{MasterKey: other, Previous: old}, true).command("rewrap")
	if err != nil || !strings.Contains(out, "under the new master key") || strings.Contains(out, string(other)) {
		t.Fatalf("%q, %v", out, err)
	}
	after := i.run(secrets.Config{MasterKey: other}, true)
	if err := after.serve(); err != nil {
		t.Fatal(err)
	}
	if got, err := after.vault.Open(place, sealed); err != nil || string(got) != "hunter2" || !bytes.Equal(after.vault.Key("x"), derived) {
		t.Errorf("after the rewrap: %q, %v", got, err)
	}
	refused(t, i.run(secrets.Config{MasterKey: old}, true).serve(), "not the one")

	// The process that ran meanwhile goes on.
	if got, err := before.vault.Open(place, sealed); err != nil || string(got) != "hunter2" {
		t.Errorf("the running process: %q, %v", got, err)
	}
}

// The way of an operator who keeps the key in the file.
func TestRewrapOfTheFile(t *testing.T) {
	i := newInstallation(t)
	if err := i.run(secrets.Config{}, false).serve(); err != nil {
		t.Fatal(err)
	}
	moved := filepath.Join(i.root, "old.key")
	if err := os.Rename(i.keyFile(), moved); err != nil {
		t.Fatal(err)
	}
	if _, err := i.closed(secrets.Config{}, false).command("generate", "--out", i.keyFile()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(moved)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := i.run(secrets.Config{Previous: secrets.Key(text)}, false).command("rewrap"); err != nil {
		t.Fatal(err)
	}
	if err := i.run(secrets.Config{}, true).serve(); err != nil {
		t.Error(err)
	}
}
