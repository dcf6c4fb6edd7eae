package secrets_test

import (
	"testing"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/secrets"
)

// Other packages need one line to have a vault in their tests.
func TestVaultInTests(t *testing.T) {
	for name, v := range map[string]*secret.Vault{"new": secret.New(), "fixed": secret.Fixed([]byte("a root key"))} {
		t.Run(name, func(t *testing.T) {
			apptest.New(t, secrets.New(secrets.Config{}, v))
			sealed, err := v.Seal("a|b|c", []byte("hunter2"))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := v.Open("a|b|c", sealed); err != nil || string(got) != "hunter2" {
				t.Errorf("opened %q, %v", got, err)
			}
		})
	}
}
