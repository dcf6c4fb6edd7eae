package logs

import (
	"net/http"
	"testing"
)

// A flood of refusals must not fill the disk with rows.
func TestRefusalsAreSampled(t *testing.T) {
	for status, want := range map[int]bool{http.StatusOK: false, http.StatusTooManyRequests: false, http.StatusBadRequest: true, http.StatusInternalServerError: true} {
		if got := (&entry{status: status}).failed(); got != want {
			t.Errorf("status %d is always stored: %v", status, got)
		}
	}
}
