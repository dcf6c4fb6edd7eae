package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"
)

// browserTimeout bounds one command to the browser.
const browserTimeout = 60 * time.Second

// browser is a page in headless Chromium, driven by the DevTools protocol over a pipe: messages end in a zero byte.
type browser struct {
	in      io.WriteCloser
	answers chan map[string]json.RawMessage
	session string
	last    int
}

// openBrowser starts Chromium with an empty profile. Without Chromium the test is skipped, but not in CI.
func openBrowser(t *testing.T) *browser {
	t.Helper()
	program, err := exec.LookPath("chromium")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	toRead, in := pipe(t)
	out, toWrite := pipe(t)
	profile, err := os.MkdirTemp("", "satchel-browser-") // not t.TempDir: a helper process that writes last must not fail the test
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
		"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe", "--user-data-dir="+profile)
	cmd.Env = append(os.Environ(), "HOME="+profile)
	cmd.ExtraFiles = []*os.File{toRead, toWrite} // file descriptors 3 and 4
	if err := cmd.Start(); err != nil {
		t.Fatalf("start Chromium: %v", err)
	}
	toRead.Close()
	toWrite.Close()
	b := &browser{in: in, answers: make(chan map[string]json.RawMessage)}
	done := make(chan struct{})
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait() // how it ended says nothing about the test
		close(exited)
	}()
	t.Cleanup(func() {
		close(done)
		in.Close() // Chromium ends when its pipe does, and takes its helpers along
		select {
		case <-exited:
		case <-time.After(stopTimeout):
			_ = cmd.Process.Kill()
			<-exited
		}
		out.Close()
		_ = os.RemoveAll(profile)
	})
	go func() {
		r := bufio.NewReader(out)
		for {
			raw, err := r.ReadBytes(0)
			if err != nil {
				return
			}
			var m map[string]json.RawMessage
			if json.Unmarshal(raw[:len(raw)-1], &m) != nil || m["id"] == nil {
				continue // an event
			}
			select {
			case b.answers <- m:
			case <-done:
				return
			}
		}
	}()
	target := b.call(t, "Target.createTarget", map[string]any{"url": "about:blank"})
	attached := b.call(t, "Target.attachToTarget", map[string]any{"targetId": target["targetId"], "flatten": true})
	b.session, _ = attached["sessionId"].(string)
	return b
}

func pipe(t *testing.T) (r, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return r, w
}

// call sends a command and waits for its answer.
func (b *browser) call(t *testing.T, method string, params map[string]any) map[string]any {
	t.Helper()
	result, err := b.try(method, params)
	if err != nil {
		t.Fatalf("%s: %v", method, err)
	}
	return result
}

func (b *browser) try(method string, params map[string]any) (map[string]any, error) {
	b.last++
	message := map[string]any{"id": b.last, "method": method, "params": params}
	if b.session != "" {
		message["sessionId"] = b.session
	}
	raw, err := json.Marshal(message)
	if err != nil {
		return nil, err
	}
	if _, err := b.in.Write(append(raw, 0)); err != nil {
		return nil, err
	}
	timeout := time.After(browserTimeout)
	for {
		select {
		case m := <-b.answers:
			if string(m["id"]) != fmt.Sprint(b.last) {
				continue
			}
			if m["error"] != nil {
				return nil, errors.New(string(m["error"]))
			}
			var result map[string]any
			err := json.Unmarshal(m["result"], &result)
			return result, err
		case <-timeout:
			return nil, errors.New("the browser did not answer")
		}
	}
}

// open loads a page and waits until it is there.
func (b *browser) open(t *testing.T, address string) {
	t.Helper()
	if failed := b.call(t, "Page.navigate", map[string]any{"url": address})["errorText"]; failed != nil {
		t.Fatalf("open %s: %v", address, failed)
	}
	eventually(t, "load "+address, browserTimeout, func() bool {
		return b.run(t, "document.readyState === 'complete' && location.href") == address
	})
}

// run evaluates JavaScript in the page, awaits it, and returns its value.
func (b *browser) run(t *testing.T, script string) any {
	t.Helper()
	got := b.call(t, "Runtime.evaluate", map[string]any{"expression": script, "awaitPromise": true, "returnByValue": true})
	if failed := got["exceptionDetails"]; failed != nil {
		raw, _ := json.Marshal(failed)
		t.Fatalf("script failed: %s", raw)
	}
	result, _ := got["result"].(map[string]any)
	return result["value"]
}
