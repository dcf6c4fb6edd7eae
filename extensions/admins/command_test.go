package admins_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions/admins"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/sessions"
)

// run executes the command as the program does and returns its output.
func (w *world) run(t testing.TB, args ...string) (string, error) {
	t.Helper()
	root := &cobra.Command{Use: "satchel", SilenceErrors: true, SilenceUsage: true}
	root.PersistentFlags().Bool("json", false, "")
	root.AddCommand(admins.New(admins.Deps{Audit: audit.NewLog(secret.Fixed(bytes.Repeat([]byte{7}, secret.KeySize))).Append}).Commands(w.Host)...)
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetArgs(append([]string{"admins"}, args...))
	err := root.Execute()
	return out.String(), err
}

func TestCommands(t *testing.T) {
	w := start(t)
	if out, err := w.run(t, "list"); err != nil || !strings.Contains(out, "There are no admins") {
		t.Errorf("%q, %v", out, err)
	}
	out, err := w.run(t, "add", "ada@example.test", "--role", "owner")
	password, rest, _ := strings.Cut(out, "\n")
	if err != nil || !strings.Contains(rest, "ada@example.test, who is owner now") {
		t.Fatalf("%q, %v", out, err)
	}
	ada, _ := w.trySignIn(t, admins.Collection, "ada@example.test", password)
	w.expect(t, "ada", "GET", "/api/v1/gate/owner", ada, nil, 204, "")

	out, err = w.run(t, "add", "bob@example.test", "--json")
	var made struct{ ID, Email, Role, Password string }
	if jsonErr := json.Unmarshal([]byte(out), &made); err != nil || jsonErr != nil || made.Role != "viewer" || made.Password == "" {
		t.Fatalf("%q, %v, %v", out, err, jsonErr)
	}
	bob, _ := w.trySignIn(t, admins.Collection, "bob@example.test", made.Password)
	if out, err := w.run(t, "role", "bob@example.test", "operator"); err != nil || !strings.Contains(out, "is operator now") {
		t.Errorf("%q, %v", out, err)
	}
	w.expect(t, "a running server has ended bob's session", "GET", "/api/v1/gate/viewer", bob, nil, 401, sessions.ErrTokenRevoked.Name)
	bob, _ = w.trySignIn(t, admins.Collection, "bob@example.test", made.Password)
	w.expect(t, "bob", "GET", "/api/v1/gate/operator", bob, nil, 204, "")
	if out, err := w.run(t, "list"); err != nil || !strings.Contains(out, "operator") || strings.Contains(out, made.Password) {
		t.Errorf("%q, %v", out, err)
	}
	if out, err := w.run(t, "remove", "bob@example.test", "--json"); err != nil || !strings.Contains(out, made.ID) {
		t.Errorf("%q, %v", out, err)
	}
	w.expect(t, "bob is gone", "GET", "/api/v1/gate/viewer", bob, nil, 401, "")
	var listed struct{ Admins []struct{ Email string } }
	out, err = w.run(t, "list", "--json")
	if jsonErr := json.Unmarshal([]byte(out), &listed); err != nil || jsonErr != nil || len(listed.Admins) != 1 {
		t.Errorf("%q, %v, %v", out, err, jsonErr)
	}
	if got := w.text(t, "SELECT group_concat(action || ' ' || actor_kind, ', ') FROM audit_entries WHERE action LIKE 'admins.%'"); got != "admins.added system, admins.added system, admins.changed system, admins.removed system" {
		t.Errorf("%s", got)
	}
}

func TestCommandMistakes(t *testing.T) {
	w := start(t)
	w.add(t, admins.Collection, "boss@example.test", admins.Owner)
	for _, c := range []struct {
		exit int
		args []string
	}{
		{cli.ExitUsage, []string{"add", "ada@example.test", "--role", "king"}},
		{cli.ExitUsage, []string{"role", "boss@example.test", "king"}},
		{cli.ExitError, []string{"add", "no-address"}},
		{cli.ExitError, []string{"add", "boss@example.test"}},
		{cli.ExitError, []string{"role", "nobody@example.test", "viewer"}},
		{cli.ExitError, []string{"remove", "nobody@example.test"}},
		{cli.ExitError, []string{"role", "boss@example.test", "viewer"}},
		{cli.ExitError, []string{"remove", "boss@example.test"}},
	} {
		_, err := w.run(t, c.args...)
		f, ok := errors.AsType[*cli.Failure](err)
		if !ok || f.Exit != c.exit || f.Next == "" {
			t.Errorf("%q: %v", c.args, err)
		}
	}
	if got := w.text(t, "SELECT group_concat(role) FROM admins"); got != "owner" {
		t.Errorf("%s", got)
	}
}

// The migration takes nobody's collection for its own, and can be taken back.
func TestMigration(t *testing.T) {
	w := start(t)
	m := admins.New(admins.Deps{Audit: audit.NewLog(secret.Fixed(bytes.Repeat([]byte{7}, secret.KeySize))).Append}).Migrations[0]
	if err := w.RunInTransaction(m.Down); err != nil {
		t.Fatal(err)
	}
	if err := w.RunInTransaction(m.Up); err != nil {
		t.Fatal(err)
	}
	if err := w.RunInTransaction(m.Down); err != nil {
		t.Fatal(err)
	}
	theirs := core.NewAuthCollection(admins.Collection)
	theirs.CreateRule = new("")
	theirs.Fields.Add(&core.TextField{Name: "role"})
	if err := w.Save(theirs); err != nil {
		t.Fatal(err)
	}
	if err := w.RunInTransaction(m.Up); err == nil || !strings.Contains(err.Error(), "rename it") {
		t.Errorf("%v", err)
	}
	w.add(t, admins.Collection, "eve@example.test", admins.Owner)
	w.expect(t, "an account of another collection", "GET", "/api/v1/gate/viewer", w.signIn(t, admins.Collection, "eve@example.test"), nil, 403, admins.ErrRoleMissing.Name)
}

// What an admin does for others is found by an index.
func TestActingIsIndexed(t *testing.T) {
	w := start(t)
	var plan []struct {
		Detail string `db:"detail"`
	}
	err := w.DB().NewQuery("EXPLAIN QUERY PLAN SELECT l.id FROM sessions_logins l WHERE l.actor <> '' AND l.actor = 'x' AND l.actor_collection = 'y'").All(&plan)
	if err != nil || len(plan) != 1 || !strings.Contains(plan[0].Detail, "sessions_logins_actor") {
		t.Errorf("%+v, %v", plan, err)
	}
}
