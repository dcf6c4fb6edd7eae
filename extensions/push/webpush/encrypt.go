package webpush

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

const (
	// maxBody is what every push service must take (RFC 8030 section 7.2).
	maxBody = 4096

	saltSize   = 16
	headerSize = saltSize + 4 + 1 + 65 // salt, record size, and the sender's key as key id (RFC 8188 section 2.1)
	tagSize    = 16
	authSize   = 16

	// MaxPlain is the longest content, in bytes: one of the rest is the delimiter of the last record.
	MaxPlain = maxBody - headerSize - tagSize - 1
)

// receiver is who can decrypt.
type receiver struct {
	key  *ecdh.PublicKey
	auth []byte
}

func (s Subscription) receiver() (receiver, error) {
	point, err := decode(s.Keys.P256DH)
	if err != nil {
		return receiver{}, errors.New("keys.p256dh is not base64url")
	}
	key, err := ecdh.P256().NewPublicKey(point)
	if err != nil {
		return receiver{}, errors.New("keys.p256dh is no point of P-256")
	}
	auth, err := decode(s.Keys.Auth)
	if err != nil || len(auth) != authSize {
		return receiver{}, errors.New("keys.auth is not 16 bytes in base64url")
	}
	return receiver{key, auth}, nil
}

// decode takes base64url and, because some libraries write it, base64, with or without padding.
func decode(text string) ([]byte, error) {
	return base64.RawURLEncoding.DecodeString(strings.NewReplacer("+", "-", "/", "_").Replace(strings.TrimRight(text, "=")))
}

// encrypt seals the content for the receiver with a key that is used once.
func (r receiver) encrypt(plain []byte) ([]byte, error) {
	private, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key: %w", err)
	}
	salt := make([]byte, saltSize)
	_, _ = rand.Read(salt) // crashes the program rather than fail
	return r.seal(plain, private, salt)
}

// seal is RFC 8291 section 3.4 and one record of RFC 8188.
func (r receiver) seal(plain []byte, private *ecdh.PrivateKey, salt []byte) ([]byte, error) {
	shared, err := private.ECDH(r.key)
	if err != nil {
		return nil, fmt.Errorf("agree on a key: %w", err)
	}
	own := private.PublicKey().Bytes()
	info := "WebPush: info\x00" + string(r.key.Bytes()) + string(own)
	ikm, err := hkdf.Key(sha256.New, shared, r.auth, info, 32)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	key, err := hkdf.Key(sha256.New, ikm, salt, "Content-Encoding: aes128gcm\x00", 16)
	if err != nil {
		return nil, fmt.Errorf("derive key: %w", err)
	}
	nonce, err := hkdf.Key(sha256.New, ikm, salt, "Content-Encoding: nonce\x00", 12)
	if err != nil {
		return nil, fmt.Errorf("derive nonce: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make cipher: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("make cipher: %w", err)
	}
	out := bytes.NewBuffer(make([]byte, 0, headerSize+len(plain)+1+tagSize))
	out.Write(salt)
	_ = binary.Write(out, binary.BigEndian, uint32(maxBody)) // a buffer takes everything
	out.WriteByte(byte(len(own)))
	out.Write(own)
	// The key is used for one message, so a nonce that is derived from it is used once, too.
	return aead.Seal(out.Bytes(), nonce, append(bytes.Clone(plain), 2), nil), nil //nolint:gosec // the nonce of RFC 8188 section 2.3
}
