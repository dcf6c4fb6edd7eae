package webpush

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"errors"
)

// decrypt reads one record of aes128gcm (RFC 8188 section 2) with the keys of RFC 8291 section 3.4.
func decrypt(to receiver, body []byte) ([]byte, error) {
	if len(body) == 0 {
		return nil, nil // a message without content is allowed
	}
	if len(body) < 21 || len(body) < 21+int(body[20]) {
		return nil, errors.New("the header is cut off")
	}
	salt, size, keyID, sealed := body[:16], binary.BigEndian.Uint32(body[16:20]), body[21:21+int(body[20])], body[21+int(body[20]):]
	if size < 18 || uint32(len(sealed)) > size {
		return nil, errors.New("it has more than one record")
	}
	sender, err := ecdh.P256().NewPublicKey(keyID)
	if err != nil {
		return nil, errors.New("the key id is no point of P-256")
	}
	shared, err := to.private.ECDH(sender)
	if err != nil {
		return nil, err
	}
	info := bytes.Join([][]byte{[]byte("WebPush: info\x00"), to.private.PublicKey().Bytes(), keyID}, nil)
	ikm, err := hkdf.Key(sha256.New, shared, to.auth, string(info), 32)
	if err != nil {
		return nil, err
	}
	key, err := hkdf.Key(sha256.New, ikm, salt, "Content-Encoding: aes128gcm\x00", 16)
	if err != nil {
		return nil, err
	}
	nonce, err := hkdf.Key(sha256.New, ikm, salt, "Content-Encoding: nonce\x00", 12)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, err
	}
	padded, err := aead.Open(nil, nonce, sealed, nil)
	if err != nil {
		return nil, errors.New("the tag does not fit")
	}
	plain, ok := bytes.CutSuffix(bytes.TrimRight(padded, "\x00"), []byte{2}) // the delimiter of the last record
	if !ok {
		return nil, errors.New("the delimiter of the last record is missing")
	}
	return plain, nil
}
