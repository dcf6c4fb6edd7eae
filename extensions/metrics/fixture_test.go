package metrics

import (
	"errors"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
)

// options are what the tests vary.
type options struct {
	cfg     Config
	api     api.Config
	proxied bool
}

func defaults() options {
	return options{cfg: settings.Defaults[Config](), api: settings.Defaults[api.Config]()}
}

// start runs an application with the extension and some routes that end in different ways.
func start(t testing.TB, o options) *apptest.App {
	t.Helper()
	var list []extensions.Extension
	installed := func() []extensions.Extension { return list }
	zoo := extensions.Extension{
		Name: "zoo",
		Metrics: []extensions.Metric{
			{Name: "satchel_zoo_animals_count", Help: "Animals.", Read: func() float64 { return 42 }},
			{Name: "satchel_zoo_legs_total", Help: "Legs.", Counter: true, Labels: []string{"animal", "side"}, Series: func(add func(extensions.Sample)) {
				add(extensions.Sample{Labels: []string{"ape", "left"}, Value: 1})
				add(extensions.Sample{Labels: []string{"ant", "left"}, Value: 3})
			}},
			{Name: "satchel_zoo_sleep_seconds", Help: "Sleep.", Labels: []string{"animal"}, Series: func(add func(extensions.Sample)) {
				add(extensions.Sample{Labels: []string{"cat"}, Distribution: &extensions.Distribution{Count: 3, Sum: 90, Buckets: map[float64]uint64{10: 1, 60: 2}}})
			}},
		},
		Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
			g.GET("/fine/{animal}", func(e *core.RequestEvent) error { return e.NoContent(http.StatusNoContent) })
			g.GET("/broken", func(*core.RequestEvent) error { return errors.New("boom") })
			g.GET("/panic", func(*core.RequestEvent) error { panic("boom") })
			g.GET("/abort", func(*core.RequestEvent) error { panic(http.ErrAbortHandler) })
			g.Any("/any", func(e *core.RequestEvent) error { return e.NoContent(http.StatusNoContent) })
		},
	}
	list = []extensions.Extension{api.New(o.api), New(o.cfg, o.proxied, installed), zoo}
	return apptest.New(t, list...)
}

// page reads /metrics from the same machine and without a token.
func page(t testing.TB, app *apptest.App) string {
	t.Helper()
	r := app.Do(t, apptest.Request{Path: "/metrics"})
	if r.Status != http.StatusOK {
		t.Fatalf("metrics: %d %s", r.Status, r.Body)
	}
	return string(r.Body)
}

// has fails unless each of the lines is on the page.
func has(t testing.TB, page string, lines ...string) {
	t.Helper()
	for _, line := range lines {
		if !strings.Contains("\n"+page, "\n"+line+"\n") {
			t.Errorf("the page lacks %s; it has\n%s", line, strings.Join(regexp.MustCompile(`(?m)^satchel_.*(total|count).*$`).FindAllString(page, -1), "\n"))
		}
	}
}

func loopback() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")} }
