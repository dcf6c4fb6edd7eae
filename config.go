package main

import (
	"errors"
	"time"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/attestation"
	"github.com/satchelbase/satchel/extensions/authcache"
	"github.com/satchelbase/satchel/extensions/health"
	"github.com/satchelbase/satchel/extensions/identities"
	"github.com/satchelbase/satchel/extensions/logs"
	"github.com/satchelbase/satchel/extensions/memory"
	"github.com/satchelbase/satchel/extensions/metrics"
	"github.com/satchelbase/satchel/extensions/ratelimit"
	"github.com/satchelbase/satchel/extensions/records"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

// general holds the settings that belong to no feature.
type general struct {
	Mode      string        `env:"MODE" default:"development" help:"development or production"`
	DataDir   string        `env:"DATA_DIR" default:"pb_data" help:"folder of the databases and files; --dir wins"`
	HTTP      string        `env:"HTTP" default:"127.0.0.1:8090" help:"address of the HTTP server; serve --http wins"`
	PublicURL string        `env:"PUBLIC_URL" default:"" help:"where apps reach the server, such as https://api.example.com"`
	Queries   time.Duration `env:"QUERY_TIMEOUT" default:"30s" help:"longest time for one SQL query"`
}

// Validate refuses an unknown mode: a typing mistake must not switch the safeguards of production off.
func (g general) Validate() error {
	if g.Mode != "development" && g.Mode != "production" {
		return errors.New("MODE: must be development or production")
	}
	return nil
}

func (g general) production() bool { return g.Mode == "production" }

// config is every section of the settings.
type config struct {
	settings    *settings.Settings
	general     general
	api         api.Config
	attestation attestation.Config
	authcache   authcache.Config
	logs        logs.Config
	ratelimit   ratelimit.Config
	records     records.Config
	health      health.Config
	identities  identities.Config
	memory      memory.Config
	metrics     metrics.Config
	store       store.Config
}

func read(s *settings.Settings) config {
	return config{
		settings:    s,
		general:     settings.Section[general](s, ""),
		api:         settings.Section[api.Config](s, "api"),
		attestation: settings.Section[attestation.Config](s, "attestation"),
		authcache:   settings.Section[authcache.Config](s, "authcache"),
		logs:        settings.Section[logs.Config](s, "logs"),
		ratelimit:   settings.Section[ratelimit.Config](s, "ratelimit"),
		records:     settings.Section[records.Config](s, "records"),
		health:      settings.Section[health.Config](s, "health"),
		identities:  settings.Section[identities.Config](s, "identities"),
		memory:      settings.Section[memory.Config](s, "memory"),
		metrics:     settings.Section[metrics.Config](s, "metrics"),
		store:       settings.Section[store.Config](s, "db"),
	}
}
