package passwords

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

const leakedPassword = "leaked-horse-battery"

// service speaks the range protocol over TLS and knows one password; what it was asked ends up in asked.
func service(t testing.TB, answer http.HandlerFunc) (h *Hasher, asked *atomic.Value) {
	t.Helper()
	asked = &atomic.Value{}
	digest := sha1.Sum([]byte(leakedPassword))
	sum := strings.ToUpper(hex.EncodeToString(digest[:]))
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.URL.Path)
		if r.Header.Get("Add-Padding") != "true" {
			t.Error("no padding was asked for")
		}
		if answer != nil {
			answer(w, r)
			return
		}
		padding := sha1.Sum([]byte(another))
		padded := strings.ToUpper(hex.EncodeToString(padding[:]))
		fmt.Fprintf(w, "%s:0\r\n", padded[5:])
		for i := range 900 {
			fmt.Fprintf(w, "%035X:%d\r\n", i, i%3)
		}
		if r.URL.Path == "/range/"+sum[:5] {
			fmt.Fprintf(w, "%s:12\r\n", sum[5:])
		}
	}))
	t.Cleanup(server.Close)
	h = NewHasher(config(func(c *Config) { c.RangeURL = server.URL + "/range/" }))
	client := server.Client()
	client.Timeout, client.CheckRedirect = rangeTimeout, h.ranges.client.CheckRedirect
	h.ranges.client = client
	return h, asked
}

func TestLeakedPasswords(t *testing.T) {
	h, asked := service(t, nil)
	app := startWith(t, h)
	ann, token := app.User(t, "ann@example.test")
	_, root := app.Superuser(t)
	app.Settings().Batch.Enabled = true
	reset, err := ann.NewPasswordResetToken()
	if err != nil {
		t.Fatal(err)
	}
	body := map[string]string{"email": "bob@example.test", "password": leakedPassword, "passwordConfirm": leakedPassword, "token": reset, "oldPassword": apptest.Password}
	post := func(path string, body any) apptest.Request {
		return apptest.Request{Method: http.MethodPost, Path: path, Body: body}
	}
	for name, request := range map[string]apptest.Request{
		"sign-up": post(users, body), "stock path": post("/api/collections/users/records", body),
		"reset":  post("/api/v1/collections/users/confirm-password-reset", body),
		"change": {Method: http.MethodPatch, Path: users + "/" + ann.Id, Token: token, Body: body},
		"batch": {Method: http.MethodPost, Path: "/api/v1/batch", Token: root, Body: map[string]any{"requests": []any{
			map[string]any{"method": "POST", "url": "/api/collections/users/records", "body": body},
		}}},
	} {
		if r := app.Do(t, request); r.Status != http.StatusBadRequest || !strings.Contains(string(r.Body), ErrLeaked.Name) || !strings.Contains(string(r.Body), "password") {
			t.Errorf("%s: %d %s", name, r.Status, r.Body)
		}
	}
	if path, _ := asked.Load().(string); len(path) != len("/range/")+5 {
		t.Errorf("the service learned %q", path)
	}
	// What only the padding has is not known.
	body["password"], body["passwordConfirm"] = another, another
	if r := app.Do(t, post(users, body)); r.Status != http.StatusOK {
		t.Errorf("status %d: %s", r.Status, r.Body)
	}
	asked.Store("nothing")
	if r := app.Do(t, credentials("ann@example.test", apptest.Password)); r.Status != http.StatusOK || asked.Load() != "nothing" {
		t.Errorf("a login asked the service %v: %d", asked.Load(), r.Status)
	}
}

// A service that is slow, broken or hostile costs at most a second, once, and keeps nobody out.
func TestLeakedFailsOpen(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"slow":     func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"broken":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) },
		"redirect": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/elsewhere", http.StatusFound) },
		"endless": func(w http.ResponseWriter, _ *http.Request) {
			line := bytes.Repeat([]byte("x"), 1<<10)
			for range 4 << 10 {
				if _, err := w.Write(line); err != nil {
					return
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			h, asked := service(t, answer)
			var log bytes.Buffer
			logger := slog.New(slog.NewTextHandler(&log, nil))
			if h.ranges.leaked(t.Context(), logger, leakedPassword) {
				t.Error("refused")
			}
			path, _ := asked.Load().(string)
			if log.Len() == 0 || strings.Contains(log.String(), strings.TrimPrefix(path, "/range/")) {
				t.Errorf("log: %s", log.String())
			}
			asked.Store("nothing")
			if h.ranges.leaked(t.Context(), logger, leakedPassword) || asked.Load() != "nothing" {
				t.Error("a service that failed was asked again at once")
			}
			h.ranges.resume.Store(time.Now().UnixNano())
			h.ranges.leaked(t.Context(), logger, leakedPassword)
			if asked.Load() == "nothing" {
				t.Error("a service that failed was never asked again")
			}
		})
	}
}
