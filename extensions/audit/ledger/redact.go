package ledger

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
)

const (
	redacted = "REDACTED"

	// MaxText is the longest text of an entry, in bytes; ids have 15, request ids at most 64.
	MaxText = 256

	// maxDetails bounds the JSON of the details, in bytes.
	maxDetails = 8 << 10
)

var (
	// secretKey matches the name of a secret, wherever in the key it stands: "refreshToken", "new_password".
	secretKey = regexp.MustCompile(`(?i)token|passw(or)?d|passphrase|secret|api_?-?key|private_?-?key|authorization|cookie|credential|signature|assertion|jwt|otp|^code$|^pin$|^hash$|^salt$`)

	// secretValue matches what has the shape of a secret: signed tokens, refresh tokens, API keys, password hashes, and
	// the values of Authorization headers.
	secretValue = regexp.MustCompile(`eyJ[A-Za-z0-9_-]{5,}\.[A-Za-z0-9_-]{5,}\.|\brt1\.[A-Za-z0-9._-]+|\bsk_[A-Za-z0-9]{10,}_|\$2[aby]?\$\d\d\$|(?i)\b(bearer|basic)\s+[A-Za-z0-9+/=._~-]{8,}`)
)

// redact returns a copy in which secrets are replaced and long texts cut. It works on what JSON makes of the value, so
// that structs and typed maps hide nothing.
func redact(details map[string]any) (any, error) {
	raw, err := json.Marshal(details)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber() // large integers keep their digits
	var plain any
	if err := d.Decode(&plain); err != nil {
		return nil, err
	}
	return redactValue(plain), nil
}

func redactValue(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for key, value := range v {
			if secretValue.MatchString(key) {
				continue
			}
			if _, isFlag := value.(bool); secretKey.MatchString(key) && !isFlag {
				out[cut(key)] = redacted
				continue
			}
			out[cut(key)] = redactValue(value)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			out[i] = redactValue(item)
		}
		return out
	case string:
		if secretValue.MatchString(v) {
			return redacted
		}
		return cut(v)
	}
	return v
}

// cut shortens a text, between two characters, and makes it valid UTF-8.
func cut(s string) string {
	if len(s) > MaxText {
		s = s[:MaxText]
	}
	return strings.ToValidUTF8(s, "")
}
