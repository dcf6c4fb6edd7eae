//go:build fcmraw

package fcm

import "net/http"

// newWire makes the program without Google's SDK.
func newWire(client *http.Client, endpoint, project string) (wire, error) {
	return newRawWire(client, endpoint, project)
}
