// Package logs writes structured logs to standard error and takes the place of PocketBase's activity logger.
//
// One line is written for every request, and the same request is handed to PocketBase's log, so that the dashboard's
// page of logs shows what it always did. Requests that fail in a way an operator must see are events: failed
// authentication (event=auth_failed) and failed writes (event=write_failed) are warnings, and everything answered with
// 5xx is an error with its cause. Records of PocketBase's own log from the level of warnings up appear here too, up to
// three seconds late, because that is how often PocketBase passes them on.
//
// A request is never blocked: lines wait in a bounded queue and are dropped, and counted, when nobody takes them.
// Tokens, passwords and the like are replaced wherever a line shows an address or an error, and no value can break a
// line or steer a terminal.
//
// Settings: SATCHEL_LOGS_*. Tables and routes: none. Metric: satchel_logs_dropped_total.
package logs

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/mattn/go-isatty"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
)

// Formats of a line.
const (
	FormatAuto = "auto"
	FormatText = "text"
	FormatJSON = "json"
)

// Which requests get a line. Events and answers of 5xx always do.
const (
	RequestsAll    = "all"
	RequestsErrors = "errors"
	RequestsNone   = "none"
)

// Config is read from SATCHEL_LOGS_*.
type Config struct {
	Format string `env:"FORMAT" default:"auto" help:"form of a log line: text, json, or auto (text on a terminal, else json)"`

	Level slog.Level `env:"LEVEL" default:"info" help:"lowest level that is written: debug, info, warn or error"`

	Requests string `env:"REQUESTS" default:"all" help:"requests that get a line: all, errors (status 400 and up) or none; failed logins, failed writes and 5xx always do"`
}

// Validate reports values that cannot work.
func (c Config) Validate() error {
	switch c.Format {
	case FormatAuto, FormatText, FormatJSON:
	default:
		return errors.New("FORMAT: must be auto, text or json")
	}
	switch c.Requests {
	case RequestsAll, RequestsErrors, RequestsNone:
	default:
		return errors.New("REQUESTS: must be all, errors or none")
	}
	return nil
}

// New returns the extension. The logger of its host should write through [Handler].
func New(cfg Config) extensions.Extension {
	p := newPipeline(cfg)
	return extensions.Extension{
		Name:     "logs",
		Settings: cfg,
		Bind: func(h *extensions.Host) error {
			mirror(h)
			return nil
		},
		Middlewares: []*hook.Handler[*core.RequestEvent]{requestLogger(p.lines)},
		Start: func(_ context.Context, h *extensions.Host) error {
			p.start(h)
			return nil
		},
		Stop: p.stop,
		Metrics: []extensions.Metric{{
			Name: "satchel_logs_dropped_total", Help: "Requests that are missing in a log because it was too slow.",
			Counter: true, Read: func() float64 { return float64(p.dropped()) },
		}},
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
	switch {
	case a.Value.Kind() == slog.KindString:
		a.Value = slog.StringValue(redactText(a.Value.String()))
	case a.Value.Kind() == slog.KindAny:
		if err, ok := a.Value.Any().(error); ok && err != nil {
			a.Value = slog.StringValue(redactText(err.Error()))
		}
	}
	if holdsSecretWord(a.Key) && a.Value.Kind() == slog.KindString {
		a.Value = slog.StringValue(redacted)
	}
	return a
}
