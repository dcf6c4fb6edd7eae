package pace_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/pace"
)

func TestRest(t *testing.T) {
	for held, want := range map[time.Duration]time.Duration{0: 0, 5 * time.Millisecond: 15 * time.Millisecond, time.Second: 50 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			begun := time.Now()
			if err := pace.Rest(t.Context(), held); err != nil || time.Since(begun) != want {
				t.Errorf("after %v: %v, %v", held, time.Since(begun), err)
			}
		})
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := pace.Rest(ended, time.Second); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
