package dev

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/internal/stubs/inbox"
	"github.com/satchelbase/satchel/extensions/push"
	"github.com/satchelbase/satchel/extensions/push/apns"
	"github.com/satchelbase/satchel/extensions/push/sender"
	"github.com/satchelbase/satchel/extensions/settings"
)

// slow is the latency of the stubs.
const slow = 20 * time.Millisecond

// runDir starts the stubs in a folder and returns what they print.
func runDir(t *testing.T, dir string) (printed string, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	read, write := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := runStubs(ctx, write, 0, dir, slow)
		_ = write.CloseWithError(io.EOF)
		done <- err
	}()
	var b bytes.Buffer
	buffer := make([]byte, 1024)
	for !strings.Contains(b.String(), "Ctrl-C") {
		n, err := read.Read(buffer)
		if b.Write(buffer[:n]); err != nil {
			t.Fatalf("the stubs ended: %v", <-done)
		}
	}
	return b.String(), func() error {
		cancel()
		return <-done
	}
}

// The printed settings and files let a sender reach the stubs, which show what arrived. A second run in the same folder
// takes the credentials of the first.
func TestStubs(t *testing.T) {
	dir := t.TempDir()
	var first []byte
	for round := range 2 {
		printed, stop := runDir(t, dir)
		var env []string
		page := ""
		for line := range strings.Lines(printed) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "SATCHEL_") {
				env = append(env, line)
			}
			if address, found := strings.CutPrefix(line, "What arrives: "); found {
				page = address
			}
		}
		loaded := settings.Load(env)
		cfg := settings.Section[push.Config](loaded, "push")
		if err := loaded.Err(); err != nil {
			t.Fatal(err)
		}
		root, err := outbound.ReadCA(cfg.CAFile)
		if err != nil {
			t.Fatal(err)
		}
		key, err := os.ReadFile(filepath.Join(dir, "apns.p8"))
		if err != nil || (round > 0 && !bytes.Equal(first, key)) {
			t.Errorf("the key was made anew: %v", err)
		}
		first = key
		s, err := apns.New(apns.Credentials{Key: string(key), KeyID: "SATCHELDEV", TeamID: "SATCHELTM1", Topic: "com.example.app"}, apns.Options{
			Outbound: outbound.Options{AllowLoopback: cfg.AllowLoopback, Root: root}, Size: 2, Breakers: outbound.NewBreakers(0),
			Production: cfg.APNsEndpoint, Sandbox: cfg.APNsSandboxEndpoint,
		})
		if err != nil {
			t.Fatal(err)
		}
		begun := time.Now()
		r := s.Send(t.Context(), []sender.Push{{Target: sender.Target{Token: strings.Repeat("ab", 32)}, Notification: &sender.Notification{Title: "Hello"}}})[0]
		s.Close()
		if r.Outcome != sender.Accepted {
			t.Errorf("%+v", r)
		}
		if took := time.Since(begun); took < slow {
			t.Errorf("the stub has answered after %v", took)
		}
		resp, err := http.Get(page + "/arrivals")
		if err != nil {
			t.Fatal(err)
		}
		var list []inbox.Arrival
		if err := json.NewDecoder(resp.Body).Decode(&list); err != nil || len(list) != 1 || list[0].Title != "Hello" {
			t.Errorf("arrivals %+v, %v", list, err)
		}
		_ = resp.Body.Close()
		if err := stop(); err != nil {
			t.Error(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "apns.p8"), []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := runStubs(t.Context(), io.Discard, 0, dir, 0); err == nil {
		t.Error("a broken key is taken")
	}
}
