package passkeys

import (
	"encoding/json"
	"io/fs"
	"net/http"
	"strconv"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
)

// Where Apple and Google look for the apps of a domain.
const (
	applePath   = ".well-known/apple-app-site-association"
	androidPath = ".well-known/assetlinks.json"
)

// serveWellKnown adds the files that connect apps with the domain, as far as they are configured and the site does not
// bring its own.
func (k *keeper) serveWellKnown(_ *extensions.Host, e *core.ServeEvent) error {
	apps, err := k.cfg.androidApps()
	if err != nil {
		return err
	}
	if len(k.cfg.AppleApps) > 0 {
		k.serveFile(e, applePath, map[string]any{"webcredentials": map[string]any{"apps": k.cfg.AppleApps}})
	}
	if len(apps) > 0 {
		links := make([]any, len(apps))
		for i, app := range apps {
			links[i] = map[string]any{
				"relation": []string{"delegate_permission/common.get_login_creds"},
				"target": map[string]any{
					"namespace": "android_app", "package_name": app.name, "sha256_cert_fingerprints": []string{app.text()},
				},
			}
		}
		k.serveFile(e, androidPath, links)
	}
	return nil
}

func (k *keeper) serveFile(e *core.ServeEvent, path string, content any) {
	if k.deps.Public != nil {
		if _, err := fs.Stat(k.deps.Public, path); err == nil {
			return
		}
	}
	if e.Router.HasRoute(http.MethodGet, "/"+path) {
		return // a hook of the app serves it
	}
	e.Router.GET("/"+path, func(e *core.RequestEvent) error {
		body, err := json.Marshal(content)
		if err != nil {
			return err
		}
		h := e.Response.Header()
		h.Set("Content-Type", "application/json") // both insist on it
		h.Set("Content-Length", strconv.Itoa(len(body)))
		h.Set("Cache-Control", "max-age=3600")
		_, err = e.Response.Write(body)
		return err
	})
}
