package logs

import (
	"log/slog"
	"maps"
	"slices"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
)

// mirror shows what PocketBase logs for itself, from warnings up. Its logger cannot be wrapped, so the records are seen
// when they are stored; none are stored while the admin keeps logs for zero days.
func mirror(h *extensions.Host) {
	h.App.OnModelAfterCreateSuccess(core.LogsTableName).BindFunc(func(e *core.ModelEvent) error {
		l, ok := e.Model.(*core.Log)
		if ok && l.Level >= int(slog.LevelWarn) && h.Logger.Enabled(e.Context, slog.Level(l.Level)) {
			r := slog.NewRecord(l.Created.Time(), slog.Level(l.Level), l.Message, 0)
			for _, name := range slices.Sorted(maps.Keys(l.Data)) {
				r.AddAttrs(slog.Any(name, l.Data[name]))
			}
			// There is nowhere to report that the log cannot be written.
			_ = h.Logger.Handler().Handle(e.Context, r)
		}
		return e.Next()
	})
}
