//go:build !fcmraw

package fcm

import (
	"os"
	"strings"
	"testing"
)

// TestSDKVersion holds what Google is told against what is linked.
func TestSDKVersion(t *testing.T) {
	text, err := os.ReadFile("../../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if want := "firebase.google.com/go/v4 v" + sdkVersion + "\n"; !strings.Contains(string(text), want) {
		t.Errorf("go.mod does not pin %q", want)
	}
}
