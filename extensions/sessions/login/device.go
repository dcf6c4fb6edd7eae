package login

import (
	"fmt"
	"net/http"
	"strings"
	"time"
	"unicode"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
)

// DeviceNameHeader carries what the user calls the device.
const DeviceNameHeader = "X-Device-Name"

// MaxName is the longest name of a device, in characters.
const MaxName = 100

// Bounds of what else a client may tell, in characters.
const (
	maxVersion   = 32
	maxUserAgent = 200
)

// Device is what a client says about itself. None of it is proof of anything.
type Device struct {
	ID        string // empty unless well-formed
	Name      string
	Platform  string // ios, android, web or other; empty if not told
	Version   string // of the app
	UserAgent string
	Address   string // network of the client: /24 of IPv4, /48 of IPv6
}

// DeviceOf reads what the headers of a request say.
func DeviceOf(e *core.RequestEvent) Device {
	h := e.Request.Header
	return Device{
		ID: api.DeviceID(e.Request), Name: Printable(h.Get(DeviceNameHeader), MaxName), Platform: platformOf(h),
		Version: Printable(h.Get(api.AppVersionHeader), maxVersion), UserAgent: Printable(h.Get("User-Agent"), maxUserAgent),
		Address: api.Network(e.RealIP()),
	}
}

func platformOf(h http.Header) string {
	switch p := strings.ToLower(strings.TrimSpace(h.Get(api.AppPlatformHeader))); p {
	case "", "ios", "android", "web":
		return p
	default:
		return "other"
	}
}

// Printable drops control characters and what is not UTF-8, and cuts at a number of characters.
func Printable(s string, limit int) string {
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

// NewDevice reports whether the user has had other sessions, none of them on the device of this one: what the app says it
// is, or else the program it runs.
func NewDevice(app core.App, l *Login) (bool, error) {
	same, value := `user_agent`, l.UserAgent
	if l.DeviceID != "" {
		same, value = `device_id`, l.DeviceID
	}
	var seen struct {
		Others int `db:"others"`
		Known  int `db:"known"`
	}
	err := app.ConcurrentDB().NewQuery(`SELECT count(*) AS others, COALESCE(sum(` + same + ` = {:value}), 0) AS known FROM ` + Table + `
		WHERE collection = {:collection} AND record = {:record} AND id <> {:id} AND actor = ''`).
		Bind(dbx.Params{"value": value, "collection": l.Collection, "record": l.Record, "id": l.ID}).One(&seen)
	return seen.Others > 0 && seen.Known == 0, err
}

// Known reports whether a session of the user, an old one included, has been on the device.
func Known(app core.App, record *core.Record, deviceID string) (bool, error) {
	if !api.IsDeviceID(deviceID) {
		return false, nil
	}
	var n int
	err := app.ConcurrentDB().NewQuery(`SELECT count(*) FROM ` + Table + `
		WHERE collection = {:collection} AND record = {:record} AND device_id = {:device} AND actor = ''`).
		Bind(dbx.Params{"collection": record.Collection().Id, "record": record.Id, "device": deviceID}).Row(&n)
	return n > 0, err
}

// LastUse is when a session of the user signed in or refreshed for the last time, the zero time if none is left. An
// impersonation is no use of the account.
func LastUse(app core.App, collection, record string) (time.Time, error) {
	var ms int64
	err := app.ConcurrentDB().NewQuery(`SELECT COALESCE(max(l.used_at), 0) FROM ` + Table + ` l WHERE ` + Owned + ` AND l.actor = ''`).
		Bind(dbx.Params{"collection": collection, "record": record}).Row(&ms)
	if err != nil {
		return time.Time{}, fmt.Errorf("find last use: %w", err)
	}
	if ms == 0 {
		return time.Time{}, nil
	}
	return time.UnixMilli(ms), nil
}
