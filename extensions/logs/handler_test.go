package logs_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/logs"
	"github.com/satchelbase/satchel/extensions/settings"
)

func TestSettings(t *testing.T) {
	for _, test := range []struct {
		env  string
		want string
	}{
		{"SATCHEL_LOGS_FORMAT=json", ""},
		{"SATCHEL_LOGS_LEVEL=debug", ""},
		{"SATCHEL_LOGS_REQUESTS=none", ""},
		{"SATCHEL_LOGS_FORMAT=xml", "SATCHEL_LOGS_FORMAT: must be auto, text or json"},
		{"SATCHEL_LOGS_LEVEL=loud", "SATCHEL_LOGS_LEVEL: "},
		{"SATCHEL_LOGS_REQUESTS=some", "SATCHEL_LOGS_REQUESTS: must be auto, all, errors or none"},
	} {
		s := settings.Load([]string{test.env})
		settings.Section[logs.Config](s, "logs")
		err := s.Err()
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.env, err, test.want)
		}
	}
}

func TestFormats(t *testing.T) {
	file, err := os.CreateTemp(t.TempDir(), "log")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	for _, test := range []struct {
		format string
		json   bool
	}{{logs.FormatText, false}, {logs.FormatJSON, true}, {logs.FormatAuto, true}} {
		if err := file.Truncate(0); err != nil {
			t.Fatal(err)
		}
		cfg := defaults()
		cfg.Format = test.format
		slog.New(logs.Handler(file, cfg)).Info("hello", slog.Int("n", 1))
		got, err := os.ReadFile(file.Name())
		if err != nil {
			t.Fatal(err)
		}
		got = bytes.TrimLeft(got, "\x00")
		if json.Valid(got) != test.json || !bytes.Contains(got, []byte("hello")) {
			t.Errorf("%s: %s", test.format, got)
		}
	}
}

func TestLevel(t *testing.T) {
	var out bytes.Buffer
	cfg := defaults()
	cfg.Level = slog.LevelWarn
	log := slog.New(logs.Handler(&out, cfg))
	log.Info("quiet")
	log.Warn("loud")
	if text := out.String(); strings.Contains(text, "quiet") || !strings.Contains(text, "loud") {
		t.Errorf("log: %s", text)
	}
}

// TestInjection writes what could break a line or steer a terminal, everywhere a client or a programmer can put it.
func TestInjection(t *testing.T) {
	evil := "a\nlevel=ERROR msg=forged\r\x1b[31m\u009b31m\u202e\u2028\u2029\x00\x7f\xff\U000e0041"
	for _, format := range []string{logs.FormatText, logs.FormatJSON} {
		t.Run(format, func(t *testing.T) {
			var out bytes.Buffer
			cfg := defaults()
			cfg.Format = format
			log := slog.New(logs.Handler(&out, cfg)).With(slog.String("with", evil)).WithGroup("g")
			log.Info(evil, slog.String("value", evil), slog.Any("error", errors.New(evil)), slog.Any("map", map[string]string{evil: evil}), slog.String(evil, "key")) //nolint:sloglint // the message is the test
			body, ok := strings.CutSuffix(out.String(), "\n")
			if !ok {
				t.Fatal("the line has no end")
			}
			for _, r := range body {
				if unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
					t.Errorf("%U is in the line %q", r, body)
				}
			}
			if format == logs.FormatJSON && !json.Valid([]byte(body)) {
				t.Errorf("the line is not JSON: %s", body)
			}
		})
	}
}

func TestHandlerRedacts(t *testing.T) {
	var out bytes.Buffer
	slog.New(logs.Handler(&out, defaults())).Info("calling https://h.example/?token="+secret,
		slog.String("url", "https://u:"+secret+"@h.example/"), slog.String("apiKey", secret),
		slog.Group("request", slog.Any("error", fmt.Errorf("get: %w", errors.New("access_token="+secret)))))
	if strings.Contains(out.String(), secret) {
		t.Errorf("a secret is in the line: %s", out.String())
	}
}

// blocked is a standard error that nobody reads.
type blocked struct {
	release chan struct{}
	out     *sink
}

func (b blocked) Write(p []byte) (int, error) {
	<-b.release
	return b.out.Write(p)
}

// TestNeverBlocks sends more requests than lines may wait while nobody takes the lines.
func TestNeverBlocks(t *testing.T) {
	w := blocked{make(chan struct{}), &sink{}}
	x := install(defaults(), w)
	x.StopTimeout = time.Minute // the race detector is slow
	app := apptest.New(t, x, routes())
	const clients, each = 8, 700
	transport := &http.Transport{MaxIdleConnsPerHost: clients}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	var group sync.WaitGroup
	for range clients {
		group.Go(func() {
			for range each {
				resp, err := client.Get(app.URL + "/api/v1/routes/ok")
				if err != nil {
					t.Errorf("a request waited for the log: %v", err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				_ = resp.Body.Close()
			}
		})
	}
	group.Wait()
	dropped := x.Metrics[0].Read()
	close(w.release)
	w.out.wait(t, func(m map[string]any) bool { return m["msg"] == "request lines were dropped" })
	var written float64
	for deadline := time.Now().Add(5 * time.Second); written+dropped < clients*each && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		written = 0
		for _, m := range w.out.lines(t) {
			if isRequest(m) {
				written++
			}
		}
	}
	if dropped == 0 || written+dropped != clients*each {
		t.Errorf("%v written and %v dropped of %d", written, dropped, clients*each)
	}
}

// TestStopWritesTheRest holds that the last lines before a stop are not lost.
func TestStopWritesTheRest(t *testing.T) {
	out := &sink{}
	t.Run("server", func(t *testing.T) {
		app := apptest.New(t, install(defaults(), out), routes())
		for range 200 {
			app.Do(t, apptest.Request{Path: "/api/v1/routes/ok"})
		}
	})
	if n := len(out.lines(t)); n != 200 {
		t.Errorf("%d of 200 lines were written", n)
	}
}
