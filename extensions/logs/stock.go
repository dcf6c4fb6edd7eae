package logs

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"net/url"
	"slices"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
)

// stockRecord is the request as PocketBase's activity logger would log it: the names are those that the dashboard
// filters and shows. Only secrets are left out.
func (x *entry) stockRecord(withID bool) slog.Record {
	level := slog.LevelInfo
	if x.err != nil {
		level = slog.LevelError
	}
	message := x.url
	if plain, err := url.PathUnescape(x.url); err == nil {
		message = plain
	}
	r := slog.NewRecord(x.at, level, escapeControl(x.method+" "+message), 0)
	r.AddAttrs(slog.String("type", "request"), slog.Float64("execTime", x.milliseconds()))
	if x.meta != nil {
		r.AddAttrs(slog.Any("meta", x.meta))
	}
	r.AddAttrs(stockError(x.err)...)
	r.AddAttrs(
		slog.String("url", x.url), slog.String("method", x.method), slog.Int("status", x.status),
		slog.String("referer", x.referer), slog.String("userAgent", x.userAgent), slog.String("auth", x.auth),
		slog.String("requestId", x.id),
	)
	if x.authID != "" && withID {
		r.AddAttrs(slog.String("authId", x.authID))
	}
	if x.ip != "" {
		r.AddAttrs(slog.String("userIP", x.ip), slog.String("remoteIP", x.remoteIP)) //nolint:sloglint // PocketBase's names
	}
	return r
}

// stockError describes an error as PocketBase does: the public message alone if the error is PocketBase's own, all of
// it if it was wrapped, and the internal reason as details.
func stockError(err error) []slog.Attr {
	if err == nil {
		return nil
	}
	var stock *router.ApiError
	if !errors.As(err, &stock) {
		return []slog.Attr{slog.String("error", redactText(err.Error()))}
	}
	details := stock.RawData()
	if cause, ok := details.(error); ok && redactText(cause.Error()) != cause.Error() {
		details = redactText(cause.Error())
	}
	return []slog.Attr{slog.String("error", redactText(err.Error())), slog.Any("details", details)}
}

// toStock hands a request to PocketBase's log, unless the admin turned logs off or the route asks to log failures only.
func toStock(ctx context.Context, app core.App, x *entry) {
	logs := app.Settings().Logs
	if logs.MaxDays == 0 || x.err == nil && x.quiet {
		return
	}
	handle(ctx, app.Logger(), x.stockRecord(logs.LogAuthId))
}

// mirror shows what PocketBase logs for itself, from warnings up. Its logger cannot be wrapped, so the records are seen
// when they are stored; none are stored while the admin keeps logs for zero days.
func mirror(h *extensions.Host) {
	h.App.OnModelAfterCreateSuccess(core.LogsTableName).BindFunc(func(e *core.ModelEvent) error {
		if l, ok := e.Model.(*core.Log); ok && l.Level >= int(slog.LevelWarn) && l.Data["type"] != "request" {
			r := slog.NewRecord(l.Created.Time(), slog.Level(l.Level), l.Message, 0)
			for _, name := range slices.Sorted(maps.Keys(l.Data)) {
				r.AddAttrs(slog.Any(name, l.Data[name]))
			}
			handle(e.Context, h.Logger, r)
		}
		return e.Next()
	})
}
