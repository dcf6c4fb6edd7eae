package api

import (
	"net/http"
	"net/netip"
	"regexp"
)

// DeviceHeader carries the id that an app makes up when it is installed, such as a UUID.
const DeviceHeader = "X-Device-Id"

// deviceIDPattern is long enough that nobody guesses an id, and short enough to be stored.
var deviceIDPattern = regexp.MustCompile(`^[A-Za-z0-9_.:-]{16,64}$`)

// DeviceID is the id of the client's device, empty unless it is well-formed: 16 to 64 letters, digits or one of "_.:-". It
// proves nothing.
func DeviceID(r *http.Request) string {
	if id := r.Header.Get(DeviceHeader); IsDeviceID(id) {
		return id
	}
	return ""
}

// IsDeviceID reports whether a text may be the id of a device.
func IsDeviceID(id string) bool { return deviceIDPattern.MatchString(id) }

// Bits of an address that are kept: enough to tell networks apart, too few to tell people.
const (
	ipv4Bits = 24
	ipv6Bits = 48
)

// Network shortens an address to its network, "192.0.2.0/24" or "2001:db8::/48". A prefix is shortened in the same way;
// anything else is empty.
func Network(address string) string {
	addr, err := netip.ParseAddr(address)
	if err != nil {
		p, err := netip.ParsePrefix(address)
		if err != nil {
			return ""
		}
		addr = p.Addr()
	}
	addr = addr.Unmap().WithZone("")
	bits := ipv6Bits
	if addr.Is4() {
		bits = ipv4Bits
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return ""
	}
	return p.String()
}
