package api_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/satchelbase/satchel/extensions/api"
)

func TestDeviceID(t *testing.T) {
	for id, good := range map[string]bool{
		"0d4c2b5e-2f3f-4d57-9a55-1a2b3c4d5e6f": true, "com.example:phone_1": true, strings.Repeat("a", 16): true, strings.Repeat("a", 64): true,
		"": false, "short": false, strings.Repeat("a", 15): false, strings.Repeat("a", 65): false, "sixteen letters?!": false,
		"0d4c2b5e-2f3f-4d57\n": false,
	} {
		r := &http.Request{Header: http.Header{api.DeviceHeader: {id}}}
		if got := api.DeviceID(r); (got != "") != good || good && got != id {
			t.Errorf("%q: %q", id, got)
		}
	}
}

func TestNetwork(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.77": "192.0.2.0/24", "::ffff:192.0.2.77": "192.0.2.0/24", "2001:db8:1:2::3": "2001:db8:1::/48",
		"fe80::1%eth0": "fe80::/48", "192.0.2.0/24": "192.0.2.0/24", "192.0.2.77/32": "192.0.2.0/24", "2001:db8:1::/48": "2001:db8:1::/48",
		"": "", "localhost": "", "192.0.2.77:80": "",
	} {
		if got := api.Network(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
