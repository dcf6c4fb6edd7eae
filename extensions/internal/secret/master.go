package secret

import (
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// rootPlace is where the sealed root key lives.
const rootPlace = "secrets_keys|sealed|root"

// errNotAKey does not repeat the text, which may be a key with a slip in it.
var errNotAKey = errors.New("must be 32 random bytes in base64 or hexadecimal, such as `satchel secrets generate` prints")

// ParseKey reads a master key: 32 bytes in hexadecimal or in base64 of either alphabet, padded or not. White space
// around it is ignored. A key of one repeated byte is refused as a placeholder. The error never holds the text.
func ParseKey(text string) ([]byte, error) {
	text = strings.TrimSpace(text)
	key, err := hex.DecodeString(text)
	if err != nil || len(key) != KeySize {
		text = strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(text, "="))
		key, err = base64.RawStdEncoding.Strict().DecodeString(text)
	}
	if err != nil || len(key) != KeySize || strings.ContainsAny(text, "\r\n") {
		return nil, errNotAKey
	}
	if strings.Count(string(key), string(key[:1])) == KeySize {
		return nil, errors.New("is one repeated byte; make a random key with `satchel secrets generate`")
	}
	return key, nil
}

// FormatKey writes a master key as ParseKey reads it, in base64.
func FormatKey(key []byte) string { return base64.StdEncoding.EncodeToString(key) }

// SealRoot seals a root key under a master key.
func SealRoot(master, root []byte) (string, error) {
	b, err := newBox(master, "root")
	if err != nil {
		return "", err
	}
	return b.seal(rootPlace, root)
}

// OpenRoot opens a sealed root key. The error is [ErrOtherKey] for another master key and [ErrDamaged] for a value that
// was changed.
func OpenRoot(master []byte, sealed string) ([]byte, error) {
	b, err := newBox(master, "root")
	if err != nil {
		return nil, err
	}
	root, err := b.open(rootPlace, sealed)
	if err != nil {
		return nil, err
	}
	if len(root) != KeySize {
		return nil, fmt.Errorf("open root key: %d bytes: %w", len(root), ErrDamaged)
	}
	return root, nil
}
