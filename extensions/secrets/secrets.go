// Package secrets gives the vault its key. What must not be read in a copy of the database (signing keys, keys of
// providers, secrets of webhooks) is sealed under a root key; the root key is kept in the database, sealed under the
// master key; the master key lies outside of the data folder, so that neither a backup nor a stolen database opens
// anything.
//
// The master key comes from the first of: SATCHEL_MASTER_KEY, or the file that SATCHEL_MASTER_KEY_FILE names; the systemd
// credential satchel.key; the file satchel.key beside the data folder. In development that file is made where there is
// none. In production mode nothing is made by itself, and the server does not start without a key. Where a root key
// exists already, a missing or other master key stops the server in every mode, and no new one is ever made.
//
// The root key is made at the first use, after the master key is safe on the disk: a crash between the two leaves a key
// file that the next start uses. `secrets rewrap` seals the root key anew under another master key in one statement;
// everything below the root key stays as it is. Commands that do not need the vault work without the key.
//
// Settings: SATCHEL_MASTER_KEY and SATCHEL_MASTER_KEY_PREVIOUS. Table: secrets_keys. Routes and error codes: none.
package secrets

import (
	"github.com/pocketbase/pocketbase/core"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/secret"
)

// Key is the text of a master key, or empty. It does not print.
type Key string

// UnmarshalText takes any text; Check judges it, because a message about a secret is written by the settings otherwise.
func (k *Key) UnmarshalText(text []byte) error {
	*k = Key(text)
	if *k == "" {
		return errEmpty
	}
	return nil
}

// String hides the key.
func (k Key) String() string {
	if k == "" {
		return ""
	}
	return "(secret)"
}

// GoString hides the key.
func (k Key) GoString() string { return k.String() }

// MarshalText hides the key.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// Check reports what is wrong with the text. Its error does not hold the text.
func (k Key) Check() error {
	if k == "" {
		return nil
	}
	_, err := secret.ParseKey(string(k))
	return err
}

// Config says where the master key is. The zero value is that of an empty environment.
type Config struct {
	// MasterKey is SATCHEL_MASTER_KEY, and MasterKeyFile the file it was read from, if any.
	MasterKey     Key
	MasterKeyFile string

	// Previous is SATCHEL_MASTER_KEY_PREVIOUS, which only `secrets rewrap` uses.
	Previous Key

	// KeyFile replaces the file satchel.key beside the data folder.
	KeyFile string

	// sandbox marks an application on a copy of the data.
	sandbox bool
}

// Sandbox is the configuration of an application on a copy of the data in dataDir. It makes no key: without one, the copy
// gets a root key that is forgotten.
func (c Config) Sandbox(dataDir string) Config {
	c.KeyFile, c.sandbox = keyFile(c, dataDir), true
	return c
}

// NewVault returns a vault for New and for the extensions that use it.
func NewVault() *secret.Vault { return secret.New() }

// New returns the extension. It connects the vault; a vault made by secret.Fixed needs no key and stays as it is.
func New(cfg Config, vault *secret.Vault) extensions.Extension {
	return extensions.Extension{
		Name:       "secrets",
		Tables:     []string{table},
		Migrations: []extensions.Migration{{Unix: 1795300000, What: "create", Up: create, Down: drop}},
		Bind: func(h *extensions.Host) error {
			vault.Connect(func() ([]byte, error) { return openRoot(h, newSource(cfg, h)) })
			return nil
		},
		// Before anything is served: a server whose secrets are locked must not begin.
		Serve:  func(*extensions.Host, *core.ServeEvent) error { return vault.Unlock() },
		Checks: []extensions.Check{{Name: "secrets", Offline: true, Run: check(cfg)}},
		Commands: func(h *extensions.Host) []*cobra.Command {
			return []*cobra.Command{command(h, cfg)}
		},
	}
}
