package records

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
)

const (
	cursorVersion = 1

	// cursorDays is how long a cursor is good. Its age is counted in whole days, so that the same page of unchanged data
	// has the same cursor, and hence the same ETag, all day.
	cursorDays = 30

	// maxCursorKey bounds the sort values in a cursor, in bytes, so that the URL that carries it stays below the 8 KB
	// that proxies commonly accept.
	maxCursorKey = 2048

	tagSize = aes.BlockSize
)

var (
	errCursorForeign = errors.New("cursor was not made here for this list")
	errCursorExpired = errors.New("cursor has expired")
	errCursorKey     = errors.New("sort value cannot be put into a cursor")
)

// sealer makes cursors that are opaque and bound to a list. Opaque matters: a sort value may be one that the viewer must
// not see, such as a hidden e-mail address. The construction is SIV (RFC 5297) with HMAC-SHA-256 in the place of CMAC:
// the MAC over context and text is also the IV, so equal positions make equal cursors.
type sealer struct {
	mac   []byte
	block cipher.Block
}

func newSealer(secret []byte) (*sealer, error) {
	mac, err := hkdf.Key(sha256.New, secret, nil, "records cursor mac", sha256.Size)
	if err != nil {
		return nil, err
	}
	enc, err := hkdf.Key(sha256.New, secret, nil, "records cursor encryption", sha256.Size)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(enc)
	if err != nil {
		return nil, err
	}
	return &sealer{mac: mac, block: block}, nil
}

func (s *sealer) tag(context, text []byte) []byte {
	h := hmac.New(sha256.New, s.mac)
	var size [8]byte
	binary.BigEndian.PutUint64(size[:], uint64(len(context)))
	_, _ = h.Write(size[:])
	_, _ = h.Write(context)
	_, _ = h.Write(text)
	return h.Sum(nil)[:tagSize]
}

// seal writes the key, the sort values of a row, as a cursor for the list that context describes.
func (s *sealer) seal(context []byte, key []any, now time.Time) (string, error) {
	text := binary.AppendUvarint(nil, uint64(day(now)))
	text, err := appendKey(text, key)
	if err != nil {
		return "", err
	}
	if len(text) > maxCursorKey {
		return "", fmt.Errorf("%w: it has more than %d bytes", errCursorKey, maxCursorKey)
	}
	out := append([]byte{cursorVersion}, s.tag(context, text)...)
	iv := out[1 : 1+tagSize]
	cipher.NewCTR(s.block, iv).XORKeyStream(text, text)
	return base64.RawURLEncoding.EncodeToString(append(out, text...)), nil
}

// open returns the key in a cursor, or why the cursor does not count.
func (s *sealer) open(context []byte, cursor string, now time.Time) ([]any, error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(cursor) // skips line breaks, which no cursor has
	if err != nil || strings.ContainsAny(cursor, "\r\n") || len(raw) <= 1+tagSize || raw[0] != cursorVersion {
		return nil, errCursorForeign
	}
	tag, text := raw[1:1+tagSize], raw[1+tagSize:]
	cipher.NewCTR(s.block, tag).XORKeyStream(text, text)
	if !hmac.Equal(tag, s.tag(context, text)) {
		return nil, errCursorForeign
	}
	made, n := binary.Uvarint(text)
	if n <= 0 {
		return nil, errCursorForeign
	}
	// One day into the future is the difference between the clocks of two machines.
	if age := day(now) - int64(made); age < -1 || age > cursorDays {
		return nil, errCursorExpired
	}
	return parseKey(text[n:])
}

func day(t time.Time) int64 { return t.Unix() / int64((24 * time.Hour).Seconds()) }

// The values of a key keep SQLite's storage class and every bit, so that a comparison with the column is exact.
const (
	kindInteger = 'i'
	kindReal    = 'r'
	kindText    = 't'
	kindBlob    = 'b'
)

func appendKey(out []byte, key []any) ([]byte, error) {
	for _, v := range key {
		switch v := v.(type) {
		case int64:
			out = binary.AppendVarint(append(out, kindInteger), v)
		case float64:
			out = binary.BigEndian.AppendUint64(append(out, kindReal), math.Float64bits(v))
		case string:
			out = append(binary.AppendUvarint(append(out, kindText), uint64(len(v))), v...)
		case []byte:
			out = append(binary.AppendUvarint(append(out, kindBlob), uint64(len(v))), v...)
		default:
			return nil, fmt.Errorf("%w: it is a %T", errCursorKey, v)
		}
	}
	return out, nil
}

func parseKey(in []byte) ([]any, error) {
	var key []any
	for len(in) > 0 {
		kind := in[0]
		in = in[1:]
		switch kind {
		case kindInteger:
			v, n := binary.Varint(in)
			if n <= 0 {
				return nil, errCursorForeign
			}
			key, in = append(key, v), in[n:]
		case kindReal:
			if len(in) < 8 {
				return nil, errCursorForeign
			}
			key, in = append(key, math.Float64frombits(binary.BigEndian.Uint64(in))), in[8:]
		case kindText, kindBlob:
			size, n := binary.Uvarint(in)
			if n <= 0 || size > uint64(len(in)-n) {
				return nil, errCursorForeign
			}
			value := in[n : n+int(size)]
			in = in[n+int(size):]
			if kind == kindText {
				key = append(key, string(value))
			} else {
				key = append(key, value)
			}
		default:
			return nil, errCursorForeign
		}
	}
	return key, nil
}
