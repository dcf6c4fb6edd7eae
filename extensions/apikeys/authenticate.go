package apikeys

import (
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
)

// usedEvery is how exact the time of the last use is. A key that is used a hundred times a second must not cost a
// hundred writes.
const usedEvery = time.Minute

// prefix is how every key starts.
const prefix = "sk_"

// FromRequest returns the key that the request presents, as a Bearer token or as the password of HTTP Basic, which is
// how clients of RFC 7662 and RFC 7009 authenticate; empty when there is none. A request that carries Origin comes from
// a page in a browser, where a key has no business, so its key counts as none.
func FromRequest(r *http.Request) string {
	if r.Header.Get("Origin") != "" {
		return ""
	}
	presented := ""
	if _, password, ok := r.BasicAuth(); ok {
		presented = password
		// Clients that follow RFC 6749 section 2.3.1 encode it first, and some encode the underscores. No key has a
		// percent sign.
		if decoded, err := url.QueryUnescape(password); err == nil {
			presented = decoded
		}
	} else if scheme, token, ok := strings.Cut(r.Header.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") {
		presented = strings.TrimSpace(token)
	}
	if !strings.HasPrefix(presented, prefix) {
		return ""
	}
	return presented
}

// Authenticate returns the presented key if it is good and has the scope. Its errors are problems: [ErrInvalid], with a
// challenge, or [ErrScopeMissing]; any other error is the database's. It takes the same time for every wrong secret, and
// says nothing about an id to somebody who does not hold its secret.
func Authenticate(app core.App, presented, scope string) (Key, error) {
	parts := keyPattern.FindStringSubmatch(presented)
	if parts == nil {
		return Key{}, invalid(presented)
	}
	r, err := find(app, parts[1])
	if err != nil && !errors.Is(err, errNotFound) {
		return Key{}, fmt.Errorf("read key: %w", err)
	}
	hash := sha256.Sum256([]byte(parts[2]))
	stored := make([]byte, sha256.Size) // for an unknown id, so that it is compared as well
	copy(stored, r.Hash)
	if subtle.ConstantTimeCompare(hash[:], stored) != 1 || err != nil {
		return Key{}, invalid(presented)
	}
	k, err := r.key()
	if err != nil {
		return Key{}, err
	}
	now := time.Now()
	if !k.live(now) {
		return Key{}, invalid(presented)
	}
	if !k.May(scope) {
		return Key{}, challenge(ErrScopeMissing, `Bearer error="insufficient_scope", scope="`+scope+`"`)
	}
	if k.LastUsed == nil || now.Sub(*k.LastUsed) >= usedEvery {
		if err := touch(app, k.ID, now); err != nil {
			app.Logger().Warn("the last use of an API key was not noted", slog.String("key", k.ID), slog.Any("error", err))
		}
	}
	return k, nil
}

// touch writes the time of the last use unless another request has just done so.
func touch(app core.App, id string, now time.Time) error {
	_, err := app.NonconcurrentDB().Update(table, dbx.Params{"last_used_at": now.Unix()},
		dbx.And(dbx.HashExp{"id": id}, dbx.NewExp("last_used_at <= {:before}", dbx.Params{"before": now.Add(-usedEvery).Unix()}))).Execute()
	return err
}

// invalid names no error in the challenge when nothing was presented (RFC 6750 section 3.1).
func invalid(presented string) error {
	if presented == "" {
		return challenge(ErrInvalid, "Bearer")
	}
	return challenge(ErrInvalid, `Bearer error="invalid_token"`)
}

func challenge(code *extensions.Code, header string) error {
	return &api.Problem{Code: code, Header: http.Header{"Www-Authenticate": {header}}}
}

// Allow returns a check that admits requests with a good key of the scope, for features that take a function.
func Allow(scope string) func(r *http.Request, app core.App) error {
	return func(r *http.Request, app core.App) error {
		_, err := Authenticate(app, FromRequest(r), scope)
		return err
	}
}
