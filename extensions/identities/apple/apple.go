// Package apple speaks to Apple in the name of an app that offers Sign in with Apple: it trades the code of a sign-in for a
// refresh token, and revokes that token when the account here has gone, as Apple's rules for apps want.
//
// Tokens to revoke wait, sealed, in a table of the feature that uses the package. Revoking twice does no harm, so a crash
// between the call and the row needs no care. While Apple cannot be reached a row waits, up to six hours between attempts
// and about ten days in all.
package apple

import (
	"context"
	"crypto/ecdsa"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
)

// URL is where Apple is.
const URL = "https://appleid.apple.com"

const (
	// secretAge is how long the signature that stands for a password lives; Apple allows six months.
	secretAge = 5 * time.Minute

	maxAnswer = 64 << 10
)

// Bounds of the work on revocations. After the last attempt, about ten days, the row is dropped and an error logged.
const (
	revokeEvery    = time.Minute
	revokeAtOnce   = 20
	revokeAttempts = 48
	revokeMaxDelay = 6 * time.Hour
)

// Client calls Apple. It is safe for concurrent use.
type Client struct {
	Base      string // URL, or a stub's
	Team, Kid string
	Key       *ecdsa.PrivateKey
	HTTP      *http.Client
}

// ParseKey reads the text of a .p8 file. Its error does not hold the key.
func ParseKey(text string) (*ecdsa.PrivateKey, error) {
	key, err := jwt.ParseECPrivateKeyFromPEM([]byte(text))
	if err != nil {
		return nil, errors.New("is not a private key for ES256 in PEM, as in Apple's .p8 file")
	}
	return key, nil
}

// call posts a form and returns the body of a 200.
func (c *Client) call(ctx context.Context, path, clientID string, form url.Values) ([]byte, error) {
	now := time.Now()
	token := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.RegisteredClaims{
		Issuer: c.Team, Subject: clientID, Audience: jwt.ClaimStrings{URL}, IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(secretAge)),
	})
	token.Header["kid"] = c.Kid
	secret, err := token.SignedString(c.Key)
	if err != nil {
		return nil, fmt.Errorf("sign client secret: %w", err)
	}
	form.Set("client_id", clientID)
	form.Set("client_secret", secret)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.Base+path, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	resp, err := c.HTTP.Do(req)
	if err != nil {
		return nil, fmt.Errorf("call Apple: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, maxAnswer))
		return nil, fmt.Errorf("call Apple: status %d", resp.StatusCode)
	}
	return outbound.Read(resp.Body, maxAnswer)
}

// Redeem trades the code of a sign-in for the refresh token, if both belong to the same person.
func (c *Client) Redeem(ctx context.Context, clientID, code, subject string) (string, error) {
	raw, err := c.call(ctx, "/auth/token", clientID, url.Values{"grant_type": {"authorization_code"}, "code": {code}})
	if err != nil {
		return "", err
	}
	var answer struct {
		RefreshToken string `json:"refresh_token"`
		IDToken      string `json:"id_token"`
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		return "", fmt.Errorf("read Apple's answer: %w", err)
	}
	// It came over TLS from Apple itself (OpenID Connect Core 1.0 section 3.1.3.7 item 6).
	claims := jwt.RegisteredClaims{}
	if _, _, err := jwt.NewParser().ParseUnverified(answer.IDToken, &claims); err != nil || claims.Subject != subject || answer.RefreshToken == "" {
		return "", errors.New("the code belongs to another person")
	}
	return answer.RefreshToken, nil
}

// Queue revokes what its table lists. Fields are set before Run.
type Queue struct {
	Table  string // with the columns id, client, sealed, attempts, nextAt
	Client *Client
	Logger *slog.Logger

	// Open returns the token of a row.
	Open func(id, sealed string) ([]byte, error)

	wake chan struct{}
}

// NewQueue returns a queue that can be woken at once.
func NewQueue(table string) *Queue { return &Queue{Table: table, wake: make(chan struct{}, 1)} }

// Note adds a token to a queue's table, in the transaction of app.
func Note(app core.App, table, id, client, sealed string) error {
	_, err := app.DB().Insert(table, dbx.Params{"id": id, "client": client, "sealed": sealed, "attempts": 0, "nextAt": time.Now().UnixMilli()}).Execute()
	if err != nil {
		return fmt.Errorf("note token to revoke: %w", err)
	}
	return nil
}

// Run works until the context ends.
func (q *Queue) Run(ctx context.Context, app core.App) {
	ticker := time.NewTicker(revokeEvery)
	defer ticker.Stop()
	for {
		if err := q.due(ctx, app, time.Now()); err != nil && ctx.Err() == nil {
			q.Logger.LogAttrs(ctx, slog.LevelWarn, "revocations at Apple cannot be read", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		case <-q.wake:
		}
	}
}

// Wake tells Run that there may be something to do before its minute is over.
func (q *Queue) Wake() {
	select {
	case q.wake <- struct{}{}:
	default: // it knows
	}
}

// revocation is a token that is to be revoked. Times are Unix milliseconds.
type revocation struct {
	ID       string `db:"id"`
	Client   string `db:"client"`
	Sealed   string `db:"sealed"`
	Attempts int    `db:"attempts"`
}

// due does what is due.
func (q *Queue) due(ctx context.Context, app core.App, now time.Time) error {
	var due []revocation
	err := app.DB().Select("id", "client", "sealed", "attempts").From(q.Table).
		Where(dbx.NewExp("nextAt <= {:now}", dbx.Params{"now": now.UnixMilli()})).OrderBy("nextAt").Limit(revokeAtOnce).All(&due)
	if err != nil {
		return fmt.Errorf("list revocations: %w", err)
	}
	for _, r := range due {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err := q.revoke(ctx, r)
		if err == nil || r.Attempts+1 >= revokeAttempts {
			if err != nil {
				q.Logger.LogAttrs(ctx, slog.LevelError, "a revocation at Apple was given up", slog.String("link", r.ID), slog.Any("error", err))
			}
			if _, err := app.DB().Delete(q.Table, dbx.HashExp{"id": r.ID}).Execute(); err != nil {
				return fmt.Errorf("delete revocation: %w", err)
			}
			continue
		}
		delay := min(revokeEvery<<min(r.Attempts, 10), revokeMaxDelay)
		_, err = app.DB().Update(q.Table, dbx.Params{"attempts": r.Attempts + 1, "nextAt": now.Add(delay).UnixMilli()}, dbx.HashExp{"id": r.ID}).Execute()
		if err != nil {
			return fmt.Errorf("put revocation off: %w", err)
		}
	}
	return nil
}

func (q *Queue) revoke(ctx context.Context, r revocation) error {
	token, err := q.Open(r.ID, r.Sealed)
	if err != nil {
		return fmt.Errorf("open token: %w", err)
	}
	_, err = q.Client.call(ctx, "/auth/revoke", r.Client, url.Values{"token": {string(token)}, "token_type_hint": {"refresh_token"}})
	return err
}
