// Package logs writes structured logs to standard error and takes the place of PocketBase's activity logger.
//
// A line is written for every request on a terminal, else for those that fail (REQUESTS). Requests that fail in a way an
// operator must see are events: failed authentication (event=auth_failed) and failed writes (event=write_failed) are
// warnings, and everything answered with 5xx is an error with its cause. Records of PocketBase's own log from the level of warnings up appear here too, up to
// three seconds late, because that is how often PocketBase passes them on.
//
// The same requests are stored in PocketBase's table _logs of auxiliary.db, in PocketBase's form, so that the
// dashboard's page of logs and /api/logs work as they do there, and under the dashboard's settings (days, level, IP, id,
// size of a record). All failures but 429 are stored, and as many others as STORE_PER_SECOND allows: everything on a quiet
// server, a sample on a busy one. The rows of up to a second are one INSERT. It goes past PocketBase's models: model
// hooks on _logs see PocketBase's own records only. PocketBase deletes rows by age; when auxiliary.db outgrows MAX_SIZE,
// the oldest rows go first.
//
// A request is never blocked, and does not pay for any of this but for copying what it knows into a bounded queue. When
// nobody takes the entries, successes are dropped first, then failures; both are counted. A crash loses the rows of the
// last second. Tokens, passwords and the like are replaced wherever a line or a row shows an address or an error, and no
// value can break a line or steer a terminal.
//
// Settings: SATCHEL_LOGS_*. Tables and routes: none of its own. Metrics: satchel_logs_*.
package logs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/settings"
)

// Formats of a line.
const (
	FormatAuto = "auto"
	FormatText = "text"
	FormatJSON = "json"
)

// Which requests get a line. Events and answers of 5xx always do.
const (
	RequestsAuto   = "auto"
	RequestsAll    = "all"
	RequestsErrors = "errors"
	RequestsNone   = "none"
)

// Config is read from SATCHEL_LOGS_*.
type Config struct {
	Format string `env:"FORMAT" default:"auto" help:"form of a log line: text, json, or auto (text on a terminal, else json)"`

	Level slog.Level `env:"LEVEL" default:"info" help:"lowest level that is written: debug, info, warn or error"`

	Requests string `env:"REQUESTS" default:"auto" help:"requests that get a line: all, errors (status 400 and up), none, or auto (all on a terminal, else errors); failed logins, failed writes and 5xx always do"`

	StorePerSecond int `env:"STORE_PER_SECOND" default:"10" help:"successful requests a second that are stored for the dashboard, ten times as many after a pause; failures but 429 always are"`

	MaxSize settings.Bytes `env:"MAX_SIZE" default:"256MB" help:"size of auxiliary.db above which the oldest stored logs are deleted; 0 turns the limit off"`
}

// Validate reports values that cannot work.
func (c Config) Validate() error {
	switch c.Format {
	case FormatAuto, FormatText, FormatJSON:
	default:
		return errors.New("FORMAT: must be auto, text or json")
	}
	switch c.Requests {
	case RequestsAuto, RequestsAll, RequestsErrors, RequestsNone:
	default:
		return errors.New("REQUESTS: must be auto, all, errors or none")
	}
	if c.StorePerSecond < 0 {
		return errors.New("STORE_PER_SECOND: must not be negative")
	}
	if c.MaxSize != 0 && c.MaxSize < leastMaxSize {
		return fmt.Errorf("MAX_SIZE: must be 0 or at least %s", settings.Bytes(leastMaxSize))
	}
	return nil
}

// New returns the extension. The logger of its host should write through [Handler].
func New(cfg Config) extensions.Extension {
	shown := cfg
	if cfg.Requests == RequestsAuto {
		// A person at a terminal wants to see what happens; a journal would be filled by a busy server.
		shown.Requests = RequestsErrors
		if isTerminal(os.Stderr) {
			shown.Requests = RequestsAll
		}
	}
	p := newPipeline(shown)
	return extensions.Extension{
		Name:     "logs",
		Settings: cfg,
		Bind: func(h *extensions.Host) error {
			mirror(h)
			return nil
		},
		Middlewares: []*hook.Handler[*core.RequestEvent]{p.middleware()},
		Start: func(ctx context.Context, h *extensions.Host) error {
			p.start(ctx, h)
			return nil
		},
		Stop: p.stop,
		Metrics: []extensions.Metric{
			{
				Name: "satchel_logs_dropped_total", Help: "Requests that are missing in a log because it was too slow or failed.",
				Counter: true, Read: func() float64 { return float64(p.dropped()) },
			},
			{
				Name: "satchel_logs_stored_total", Help: "Requests that were stored for the dashboard.",
				Counter: true, Read: func() float64 { return float64(p.stored.Load()) },
			},
			{
				Name: "satchel_logs_skipped_total", Help: "Successful requests that were not stored because of SATCHEL_LOGS_STORE_PER_SECOND.",
				Counter: true, Read: func() float64 { return float64(p.skipped.Load()) },
			},
		},
	}
}

// Handler returns the slog handler of the whole program. It is safe for concurrent use; w receives one call of Write
// for each record. Every string and error that it writes is redacted.
func Handler(w io.Writer, cfg Config) slog.Handler {
	opts := &slog.HandlerOptions{Level: cfg.Level, ReplaceAttr: tidy}
	out := escaper{w}
	if cfg.Format == FormatText || cfg.Format == FormatAuto && isTerminal(w) {
		return slog.NewTextHandler(out, opts)
	}
	return slog.NewJSONHandler(out, opts)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(interface{ Fd() uintptr })
	return ok && isatty.IsTerminal(f.Fd())
}

// tidy hides secrets in a line and puts its time into UTC.
func tidy(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime {
		return slog.String(a.Key, a.Value.Time().UTC().Format(time.RFC3339Nano))
	}
	if len(groups) == 0 && a.Key == slog.LevelKey {
		return a
	}
	switch a.Value.Kind() {
	case slog.KindString:
		a.Value = slog.StringValue(redactText(a.Value.String()))
	case slog.KindAny:
		switch v := a.Value.Any().(type) {
		case clean:
			a.Value = slog.StringValue(string(v))
			return a
		case error:
			a.Value = slog.StringValue(redactText(v.Error()))
		}
	default:
		return a
	}
	if a.Value.Kind() == slog.KindString && holdsSecretWord(a.Key) {
		a.Value = slog.StringValue(redacted)
	}
	return a
}

// clean is text that has been redacted or cannot hold a secret: to look for one again is most of the work for a line.
type clean string
