package passwords

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
)

// Our hashing and that of golang.org/x/crypto/bcrypt accept each other's hashes and refuse the same passwords.
func FuzzBcrypt(f *testing.F) {
	for _, p := range []string{"", "a", "correct-horse-battery", strings.Repeat("x", 71), strings.Repeat("x", 72), strings.Repeat("x", 73) + "y", "pä\x00ss", "\xff\xfe"} {
		f.Add(p, "other")
		f.Add(p, p+"y")
	}
	f.Fuzz(func(t *testing.T, password, other string) {
		if len(password) > 255 || len(other) > 255 {
			return
		}
		ours, err := newHash(t.Context(), password, minCost)
		if err != nil {
			t.Fatal(err)
		}
		for _, candidate := range []string{password, other, password + "\x00"} {
			want := bcrypt.CompareHashAndPassword([]byte(ours.String()), []byte(candidate)) == nil
			if got, err := ours.matches(t.Context(), candidate); got != want || err != nil {
				t.Errorf("%q against %q: %v, %v, want %v", candidate, password, got, err, want)
			}
		}
		if len(password) > 72 {
			return // theirs does not hash it
		}
		theirs, err := bcrypt.GenerateFromPassword([]byte(password), minCost+1)
		if err != nil {
			t.Fatal(err)
		}
		h, ok := parseHash(string(theirs))
		if !ok || h.cost != minCost+1 || h.String() != string(theirs) {
			t.Fatalf("parsed %s as %+v", theirs, h)
		}
		if ok, err := h.matches(t.Context(), password); !ok || err != nil {
			t.Errorf("%q does not match its hash: %v", password, err)
		}
	})
}

func TestParseHash(t *testing.T) {
	const rest = "$abcdefghijklmnopqrstuu" + "ABCDEFGHIJKLMNOPQRSTUVWXYZ./012"
	for text, want := range map[string]bool{
		"$2a$10" + rest: true, "$2b$31" + rest: true, "$2y$04" + rest: true, "$2$12" + rest: true,
		"": false, "$2a$03" + rest: false, "$2a$32" + rest: false, "$2a$99" + rest: false, "$3a$10" + rest: false, "$2a$10" + rest + "x": false,
		"$2a$1" + rest: false, "x$2a$10" + rest: false, "$2a$10" + rest[1:]: false, "plain": false,
	} {
		if _, ok := parseHash(text); ok != want {
			t.Errorf("%q: %v", text, ok)
		}
	}
}

// A client that has gone does not keep a processor busy.
func TestHashingEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newHash(ctx, "x", 14); !errors.Is(err, context.Canceled) {
		t.Errorf("err %v", err)
	}
}

// While a password is hashed, what is ready to run goes first, also with one processor.
func TestHashingMakesRoom(t *testing.T) {
	for _, processors := range []int{1, 2} {
		before := runtime.GOMAXPROCS(processors)
		var turns atomic.Int64
		done := make(chan struct{})
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for {
				select {
				case <-done:
					return
				default:
					turns.Add(1)
					runtime.Gosched()
				}
			}
		}()
		begin := time.Now()
		if _, err := newHash(t.Context(), "x", 10); err != nil {
			t.Error(err)
		}
		took := time.Since(begin)
		close(done)
		<-ended
		runtime.GOMAXPROCS(before)
		// Without room the other goroutine gets one turn every 10 ms, when the scheduler steps in.
		if least := int64(took/(10*time.Millisecond)) + 5; turns.Load() < least {
			t.Errorf("%d processors: %d turns in %s", processors, turns.Load(), took)
		}
	}
}

func BenchmarkHash(b *testing.B) {
	b.Run("ours", func(b *testing.B) {
		for b.Loop() {
			_, _ = newHash(b.Context(), "correct-horse-battery", 10)
		}
	})
	b.Run("theirs", func(b *testing.B) {
		for b.Loop() {
			_, _ = bcrypt.GenerateFromPassword([]byte("correct-horse-battery"), 10)
		}
	})
}
