package sender

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
)

// Encode is JSON without the escapes for HTML: every byte counts.
func Encode(v any) ([]byte, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(v); err != nil {
		return nil, fmt.Errorf("encode payload: %w", err)
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// Shorten returns a key as its digest if it is longer than limit or no value of a header.
func Shorten(key string, limit int) string {
	if len(key) <= limit && strings.IndexFunc(key, func(r rune) bool { return r < ' ' || r > '~' }) < 0 {
		return key
	}
	return Digest(key)
}

// Digest makes 32 characters of base64url of a key, so that equal keys stay equal.
func Digest(key string) string {
	sum := sha256.Sum256([]byte(key))
	return base64.RawURLEncoding.EncodeToString(sum[:24])
}

// Topic is a key in the form of Web Push's header: 32 characters of base64url (RFC 8030 section 5.4).
func Topic(key string) string {
	other := func(r rune) bool {
		return (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_' && r != '-'
	}
	if key != "" && len(key) <= 32 && strings.IndexFunc(key, other) < 0 {
		return key
	}
	return Digest(key)
}

// APNsPriority is the priority by Apple's numbers. Ten is an error for what shows nothing.
func APNsPriority(n *Notification) int {
	switch {
	case n.Urgency() == PriorityLow:
		return 1
	case n.Urgency() == PriorityNormal || n.Silent:
		return 5
	}
	return 10
}

// APS is the dictionary that Apple defines. FCM passes it on to devices with iOS.
func APS(n *Notification) map[string]any {
	aps := map[string]any{}
	if n.Silent {
		aps["content-available"] = 1
		return aps
	}
	if n.Title != "" || n.Body != "" {
		alert := map[string]string{}
		if n.Title != "" {
			alert["title"] = n.Title
		}
		if n.Body != "" {
			alert["body"] = n.Body
		}
		aps["alert"] = alert
	}
	if n.Badge != nil {
		aps["badge"] = *n.Badge
	}
	if n.Sound != "" {
		aps["sound"] = n.Sound
	}
	if n.Category != "" {
		aps["category"] = n.Category
	}
	if n.Image != "" {
		aps["mutable-content"] = 1 // lets the app's extension fetch it
	}
	return aps
}
