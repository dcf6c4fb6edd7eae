package sessions

import (
	"net/http"
	"regexp"
	"strings"
	"unicode"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
)

// Headers by which an app tells what it runs on.
const (
	DeviceIDHeader   = "X-Device-Id"
	DeviceNameHeader = "X-Device-Name"
)

// Bounds of what a client may tell, in characters.
const (
	maxName      = 100
	maxVersion   = 32
	maxUserAgent = 200
)

// deviceIDPattern takes UUIDs and whatever else an app makes its installation ids of.
var deviceIDPattern = regexp.MustCompile(`^[A-Za-z0-9_.:-]{8,64}$`)

// Device is what a client says about itself. None of it is proof of anything.
type Device struct {
	ID        string // empty unless well-formed
	Name      string
	Platform  string // ios, android, web or other; empty if not told
	Version   string // of the app
	UserAgent string
	Address   string // network of the client: /24 of IPv4, /48 of IPv6
}

func deviceOf(e *core.RequestEvent) Device {
	h := e.Request.Header
	d := Device{
		Name: printable(h.Get(DeviceNameHeader), maxName), Platform: platformOf(h),
		Version: printable(h.Get(api.AppVersionHeader), maxVersion), UserAgent: printable(h.Get("User-Agent"), maxUserAgent),
		Address: audit.Prefix(e.RealIP()),
	}
	if id := h.Get(DeviceIDHeader); deviceIDPattern.MatchString(id) {
		d.ID = id
	}
	return d
}

func platformOf(h http.Header) string {
	switch p := strings.ToLower(strings.TrimSpace(h.Get(api.AppPlatformHeader))); p {
	case "", "ios", "android", "web":
		return p
	default:
		return "other"
	}
}

// printable drops control characters and what is not UTF-8, and cuts at a number of characters.
func printable(s string, limit int) string {
	var out []rune
	for _, r := range strings.ToValidUTF8(s, "") {
		if len(out) == limit {
			break
		}
		if unicode.IsPrint(r) {
			out = append(out, r)
		}
	}
	return strings.TrimSpace(string(out))
}
