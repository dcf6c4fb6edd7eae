package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/satchelbase/satchel/extensions/account"
	"github.com/satchelbase/satchel/extensions/anonymous"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/apikeys"
	"github.com/satchelbase/satchel/extensions/attestation"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/authcache"
	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/guard"
	"github.com/satchelbase/satchel/extensions/health"
	"github.com/satchelbase/satchel/extensions/idempotency"
	"github.com/satchelbase/satchel/extensions/identities"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/live"
	"github.com/satchelbase/satchel/extensions/logs"
	"github.com/satchelbase/satchel/extensions/memory"
	"github.com/satchelbase/satchel/extensions/metrics"
	"github.com/satchelbase/satchel/extensions/passkeys"
	"github.com/satchelbase/satchel/extensions/passwords"
	"github.com/satchelbase/satchel/extensions/push"
	"github.com/satchelbase/satchel/extensions/ratelimit"
	"github.com/satchelbase/satchel/extensions/records"
	"github.com/satchelbase/satchel/extensions/secrets"
	"github.com/satchelbase/satchel/extensions/sessions"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
	"github.com/satchelbase/satchel/extensions/sync"
	"github.com/satchelbase/satchel/extensions/teams"
	"github.com/satchelbase/satchel/extensions/totp"
)

// general holds the settings that belong to no feature.
type general struct {
	Mode      string        `env:"MODE" default:"development" help:"development or production"`
	DataDir   string        `env:"DATA_DIR" default:"pb_data" help:"folder of the databases and files; --dir wins"`
	HTTP      string        `env:"HTTP" default:"127.0.0.1:8090" help:"address of the HTTP server; serve --http wins"`
	PublicURL string        `env:"PUBLIC_URL" default:"" help:"where apps reach the server, such as https://api.example.com"`
	Queries   time.Duration `env:"QUERY_TIMEOUT" default:"30s" help:"longest time for one SQL query"`

	MasterKey         secrets.Key `env:"MASTER_KEY" secret:"true" help:"seals what a copy of the database must not reveal: 32 bytes in base64 or hexadecimal"`
	MasterKeyPrevious secrets.Key `env:"MASTER_KEY_PREVIOUS" secret:"true" help:"the master key before the present one, for satchel secrets rewrap"`
}

// Validate refuses an unknown mode: a typing mistake must not switch the safeguards of production off. It refuses what
// cannot be a master key as well.
func (g general) Validate() error {
	var problems []error
	if g.Mode != "development" && g.Mode != "production" {
		problems = append(problems, errors.New("MODE: must be development or production"))
	}
	if err := g.MasterKey.Check(); err != nil {
		problems = append(problems, fmt.Errorf("MASTER_KEY: %w", err))
	}
	if err := g.MasterKeyPrevious.Check(); err != nil {
		problems = append(problems, fmt.Errorf("MASTER_KEY_PREVIOUS: %w", err))
	}
	return errors.Join(problems...)
}

func (g general) production() bool { return g.Mode == "production" }

// config is every section of the settings.
type config struct {
	settings    *settings.Settings
	general     general
	account     account.Config
	anonymous   anonymous.Config
	api         api.Config
	apikeys     apikeys.Config
	attestation attestation.Config
	audit       audit.Config
	authcache   authcache.Config
	changes     changes.Config
	logs        logs.Config
	passwords   passwords.Config
	push        push.Config
	ratelimit   ratelimit.Config
	records     records.Config
	secrets     secrets.Config
	guard       guard.Config
	health      health.Config
	idempotency idempotency.Config
	identities  identities.Config
	jobs        jobs.Config
	live        live.Config
	sessions    sessions.Config
	memory      memory.Config
	metrics     metrics.Config
	passkeys    passkeys.Config
	store       store.Config
	teams       teams.Config
	sync        sync.Config
	totp        totp.Config
}

func read(s *settings.Settings) config {
	g := settings.Section[general](s, "")
	return config{
		settings:    s,
		general:     g,
		secrets:     secrets.Config{MasterKey: g.MasterKey, MasterKeyFile: s.SecretFile("SATCHEL_MASTER_KEY"), Previous: g.MasterKeyPrevious},
		account:     settings.Section[account.Config](s, "account"),
		anonymous:   settings.Section[anonymous.Config](s, "anonymous"),
		api:         settings.Section[api.Config](s, "api"),
		apikeys:     settings.Section[apikeys.Config](s, "apikeys"),
		attestation: settings.Section[attestation.Config](s, "attestation"),
		audit:       settings.Section[audit.Config](s, "audit"),
		authcache:   settings.Section[authcache.Config](s, "authcache"),
		changes:     settings.Section[changes.Config](s, "changes"),
		logs:        settings.Section[logs.Config](s, "logs"),
		passwords:   settings.Section[passwords.Config](s, "passwords"),
		push:        settings.Section[push.Config](s, "push"),
		ratelimit:   settings.Section[ratelimit.Config](s, "ratelimit"),
		records:     settings.Section[records.Config](s, "records"),
		guard:       settings.Section[guard.Config](s, "guard"),
		idempotency: settings.Section[idempotency.Config](s, "idempotency"),
		jobs:        settings.Section[jobs.Config](s, "jobs"),
		live:        settings.Section[live.Config](s, "live"),
		identities:  settings.Section[identities.Config](s, "identities"),
		health:      settings.Section[health.Config](s, "health"),
		sessions:    settings.Section[sessions.Config](s, "sessions"),
		memory:      settings.Section[memory.Config](s, "memory"),
		metrics:     settings.Section[metrics.Config](s, "metrics"),
		passkeys:    settings.Section[passkeys.Config](s, "passkeys"),
		store:       settings.Section[store.Config](s, "db"),
		teams:       settings.Section[teams.Config](s, "teams"),
		sync:        settings.Section[sync.Config](s, "sync"),
		totp:        settings.Section[totp.Config](s, "totp"),
	}
}
