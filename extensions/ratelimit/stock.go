package ratelimit

import (
	"context"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
)

const stockLimiterHelp = "Satchel limits requests itself; change the SATCHEL_RATELIMIT_* settings instead"

// disableStockLimiter keeps PocketBase's limiter off: whatever the stored settings say once they are loaded, and with an
// error for the admin who turns it on.
func disableStockLimiter(app core.App) {
	app.OnSettingsReload().BindFunc(func(e *core.SettingsReloadEvent) error {
		if err := e.Next(); err != nil {
			return err
		}
		if limits := &e.App.Settings().RateLimits; limits.Enabled {
			limits.Enabled = false
		}
		return nil
	})
	app.OnSettingsUpdateRequest().BindFunc(func(e *core.SettingsUpdateRequestEvent) error {
		if e.NewSettings.RateLimits.Enabled {
			p := api.Fail(ErrStockLimiter, stockLimiterHelp)
			p.Errors = []api.FieldError{{Field: "rateLimits.enabled", Code: ErrStockLimiter.Name, Message: stockLimiterHelp}}
			return p
		}
		return e.Next()
	})
}

func checkStockLimiter(_ context.Context, h *extensions.Host) extensions.Result {
	if h.App.Settings().RateLimits.Enabled {
		return extensions.Result{
			Level: extensions.Warn, Message: "PocketBase's own limiter was turned on by code of this app and limits requests a second time",
			Next: "set Settings().RateLimits.Enabled to false",
		}
	}
	return extensions.Result{Level: extensions.OK, Message: "off, and kept off: " + stockLimiterHelp}
}
