// Package secret seals what must not be read in a copy of the database, and derives keys.
//
// It is an envelope. A random root key is kept in the database, sealed under the master key, which lies outside of it.
// Everything else is sealed with, or derived from, the root key: a new master key means sealing one value anew, and what
// was derived stays the same. Sealed values are text, "v1:<kid>:<nonce, ciphertext and tag in base64url>", AES-256-GCM
// with random nonces (NIST SP 800-38D section 8.2.2, good for 2^32 values of one key); kid tells which key it was.
//
// The package opens no database and knows no policy: where the master key comes from is the business of the extension
// secrets. Settings, tables and routes: none.
package secret

import (
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
)

// KeySize is the length of every key, in bytes (AES-256).
const KeySize = 32

// ErrNotConnected says that a vault was used before the extension secrets was installed.
var ErrNotConnected = errors.New("the vault is not connected to a database")

// Vault seals secrets and derives keys. It is safe for concurrent use, and usable once the application is open: it
// unlocks itself at the first use, and the server unlocks it before it takes requests. Commands that open the database
// need not have the master key, so an extension must not use the vault in Bind, in a migration or in OnBootstrap.
type Vault struct {
	mu   sync.RWMutex
	open func() (root []byte, err error)
	keys *derived
}

// derived is what an unlocked vault works with.
type derived struct {
	root []byte
	box  *box
}

// New returns a locked vault for the extension secrets to connect. It reads nothing.
func New() *Vault { return &Vault{} }

// Fixed returns an unlocked vault with the given root key, for tests and for programs without a database. Connecting it
// changes nothing. It panics on an empty key.
func Fixed(root []byte) *Vault {
	v := &Vault{}
	if err := v.adopt(root); err != nil {
		panic("secret: " + err.Error())
	}
	return v
}

// Connect says how to get the root key; open is called at the first use, and again after it has failed. An unlocked
// vault ignores it.
func (v *Vault) Connect(open func() (root []byte, err error)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.open = open
}

// Unlock gets the root key, if that has not happened yet. Its error is the one of the function given to Connect.
func (v *Vault) Unlock() error {
	_, err := v.unlocked()
	return err
}

func (v *Vault) unlocked() (*derived, error) {
	v.mu.RLock()
	keys := v.keys
	v.mu.RUnlock()
	if keys != nil {
		return keys, nil
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.keys != nil {
		return v.keys, nil
	}
	if v.open == nil {
		return nil, ErrNotConnected
	}
	root, err := v.open()
	if err != nil {
		return nil, err
	}
	if err := v.adopt(root); err != nil {
		return nil, err
	}
	return v.keys, nil
}

// adopt derives the keys from the root key. The caller holds the lock, or is the only one who knows the vault.
func (v *Vault) adopt(root []byte) error {
	if len(root) == 0 {
		return errors.New("the root key is empty")
	}
	b, err := newBox(root, "values")
	if err != nil {
		return err
	}
	v.keys = &derived{root: append([]byte{}, root...), box: b}
	return nil
}

// Seal returns the sealed form of plain, at most 1 MiB. aad says what and whose value it is, "table|column|row": the
// sealed value opens for the same aad only, so that it cannot be moved to another place.
func (v *Vault) Seal(aad string, plain []byte) (string, error) {
	keys, err := v.unlocked()
	if err != nil {
		return "", fmt.Errorf("unlock vault: %w", err)
	}
	return keys.box.seal(aad, plain)
}

// Open returns what was sealed for the same aad. The error is [ErrOtherKey] for a value of another root key and
// [ErrDamaged] for one that was changed or belongs elsewhere.
func (v *Vault) Open(aad, sealed string) ([]byte, error) {
	keys, err := v.unlocked()
	if err != nil {
		return nil, fmt.Errorf("unlock vault: %w", err)
	}
	return keys.box.open(aad, sealed)
}

// Key derives 32 bytes for a purpose (HKDF-SHA256, RFC 5869). The same purpose has the same key for ever, whatever the
// master key is. It panics if the vault cannot be unlocked, which cannot happen in a server that has started; elsewhere
// ask Unlock first. Keep the key rather than derive it for every request.
func (v *Vault) Key(purpose string) []byte {
	keys, err := v.unlocked()
	if err != nil {
		panic(fmt.Sprintf("secret: derive key for %s: %v", purpose, err))
	}
	return derive(keys.root, "key|"+purpose, KeySize)
}

// NewKey returns a random key.
func NewKey() []byte {
	key := make([]byte, KeySize)
	_, _ = rand.Read(key) // crashes the program rather than fail
	return key
}
