package secret

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
)

// Errors of sealed values.
var (
	ErrOtherKey = errors.New("the value is sealed under another key")
	ErrDamaged  = errors.New("the sealed value is damaged or belongs elsewhere")
)

const (
	version = "v1"

	// maxPlain bounds a secret. The largest honest ones are service account keys of a few KiB.
	maxPlain = 1 << 20

	// kidSize is how many bytes tell one key from another; a clash only costs a worse message.
	kidSize = 8
)

// box seals under one key.
type box struct {
	kid  string
	aead cipher.AEAD
}

// newBox derives the key and its name from a secret; use keeps the boxes of one secret apart.
func newBox(key []byte, use string) (*box, error) {
	block, err := aes.NewCipher(derive(key, "seal|"+use, KeySize))
	if err != nil {
		return nil, fmt.Errorf("make cipher: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("make cipher: %w", err)
	}
	return &box{kid: hex.EncodeToString(derive(key, "kid|"+use, kidSize)), aead: aead}, nil
}

// derive is HKDF-SHA256 (RFC 5869) without salt, which a uniformly random key does not need.
func derive(key []byte, info string, size int) []byte {
	out, err := hkdf.Key(sha256.New, key, nil, "satchel|"+info, size)
	if err != nil {
		panic("secret: derive key: " + err.Error()) // the size is a constant far below the limit
	}
	return out
}

func (b *box) prefix() string { return version + ":" + b.kid + ":" }

// bound is what the tag covers beside the ciphertext: the place of the value, and the text before the ciphertext.
func (b *box) bound(aad string) []byte { return []byte(b.prefix() + aad) }

func (b *box) seal(aad string, plain []byte) (string, error) {
	switch {
	case aad == "":
		return "", errors.New("seal value: its place (aad) is empty")
	case len(plain) > maxPlain:
		return "", fmt.Errorf("seal value: %d bytes are more than %d", len(plain), maxPlain)
	}
	raw := b.aead.Seal(nil, nil, plain, b.bound(aad)) //nolint:gosec // it makes its own nonce and takes none
	return b.prefix() + base64.RawURLEncoding.EncodeToString(raw), nil
}

func (b *box) open(aad, sealed string) ([]byte, error) {
	if len(sealed) > len(b.prefix())+base64.RawURLEncoding.EncodedLen(maxPlain+b.aead.Overhead()) {
		return nil, ErrDamaged
	}
	parts := strings.SplitN(sealed, ":", 3)
	if len(parts) != 3 || parts[0] != version {
		return nil, ErrDamaged
	}
	if parts[1] != b.kid {
		return nil, ErrOtherKey
	}
	// One text for one value: the decoder skips line breaks and, unless strict, ignores spare bits.
	raw, err := base64.RawURLEncoding.Strict().DecodeString(parts[2])
	if err != nil || strings.ContainsAny(parts[2], "\r\n") {
		return nil, ErrDamaged
	}
	plain, err := b.aead.Open(nil, nil, raw, b.bound(aad))
	if err != nil {
		return nil, ErrDamaged
	}
	return plain, nil
}
