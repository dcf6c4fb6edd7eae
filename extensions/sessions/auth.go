package sessions

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"
	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/security"

	"github.com/satchelbase/satchel/extensions/sessions/login"
	"github.com/satchelbase/satchel/extensions/sessions/refresh"
	"github.com/satchelbase/satchel/extensions/sessions/signing"
)

// onAuth is where every way of signing in comes by: passwords, one-time codes, OAuth2 and our own. PocketBase asks for a
// second factor after this hook has begun, so the session is stored first and taken back if the answer is not a sign-in.
func (s *Sessions) onAuth(e *core.RecordAuthRequestEvent) error {
	noStore(e.RequestEvent)
	if e.AuthMethod == "" {
		return s.onOther(e)
	}
	l := s.begin(e.Record, login.DeviceOf(e.RequestEvent), methods(e))
	if err := l.Insert(e.App); err != nil {
		return err
	}
	err := s.answer(e, l)
	if err != nil {
		if _, dropErr := e.App.NonconcurrentDB().Delete(login.Table, dbx.HashExp{"id": l.ID}).Execute(); dropErr != nil {
			err = errors.Join(err, fmt.Errorf("take session back: %w", dropErr))
		}
		return err
	}
	s.settle(e, l)
	return nil
}

// methods are those by which the user signs in: with a second factor, the first one too. Whether the two count is
// PocketBase's decision, which is still to come.
func methods(e *core.RecordAuthRequestEvent) string {
	var body struct {
		MFAID string `json:"mfaId" form:"mfaId"`
	}
	_ = e.BindBody(&body) // PocketBase reads it again and says what is wrong with it
	id := cmp.Or(e.Request.URL.Query().Get("mfaId"), body.MFAID)
	if id == "" {
		return e.AuthMethod
	}
	mfa, err := e.App.FindMFAById(id)
	if err != nil || mfa.RecordRef() != e.Record.Id || mfa.CollectionRef() != e.Record.Collection().Id {
		return e.AuthMethod
	}
	return mfa.Method() + " " + e.AuthMethod
}

// answer puts the tokens into PocketBase's answer and lets it be written.
func (s *Sessions) answer(e *core.RecordAuthRequestEvent, l *login.Login) error {
	grant, err := s.grant(l)
	if err != nil {
		return err
	}
	if e.Token, err = s.seals.Bind(e.Record, e.Token, l.ID); err != nil {
		return err
	}
	if s.cfg.StockTokens == StockOff && !e.Record.IsSuperuser() {
		e.Token = grant.AccessToken
	}
	if e.Meta, err = withSession(e.Meta, grant); err != nil {
		return err
	}
	s.signIns.Store(e.Record, l)
	defer s.signIns.Delete(e.Record)
	return e.Next()
}

// settle does what follows a sign-in. The client has its tokens already, so what fails here is logged and left to the
// next sign-in.
func (s *Sessions) settle(e *core.RecordAuthRequestEvent, l *login.Login) {
	if err := s.enforceLimit(e.App, l); err != nil {
		s.logger.Warn("the limit of sessions could not be enforced", "error", err)
	}
	s.notify(e, l)
}

// enforceLimit ends the sessions used longest ago beyond the limit.
func (s *Sessions) enforceLimit(app core.App, l *login.Login) error {
	now := s.now()
	_, err := login.End(app, now, reasonLimit, `l.id IN (SELECT o.id FROM `+login.Table+` o
		WHERE o.collection = {:collection} AND o.record = {:record} AND o.actor = '' AND o.idle_until > {:now} AND o.expires_at > {:now}
			AND NOT EXISTS (SELECT 1 FROM `+login.Ended+` x WHERE x.id = o.id)
		ORDER BY o.used_at DESC, o.created_at DESC, o.id LIMIT -1 OFFSET {:limit})`,
		dbx.Params{"collection": l.Collection, "record": l.Record, "limit": s.cfg.Limit})
	return err
}

// onOther handles what is answered like a sign-in and is none: a refreshed stock token, and PocketBase's impersonation.
func (s *Sessions) onOther(e *core.RecordAuthRequestEvent) error {
	switch {
	case e.Request.Pattern == "POST /api/collections/{collection}/impersonate/{id}":
		return s.onStockImpersonation(e)
	case e.Request.Pattern == "POST /api/collections/{collection}/auth-refresh":
		if err := s.onStockRefresh(e); err != nil {
			return err
		}
	case !signing.IsAccessToken(e.Token):
		token, err := s.seals.Bind(e.Record, e.Token, "")
		if err != nil {
			return err
		}
		e.Token = token
	}
	return e.Next()
}

// onStockRefresh keeps the session of a stock token that is renewed, and counts as use of it.
func (s *Sessions) onStockRefresh(e *core.RecordAuthRequestEvent) error {
	c := Current(e.RequestEvent)
	if c == nil || c.AccessToken { // an access token is answered unchanged
		return nil
	}
	if c.login != nil {
		if err := s.touch(e.RequestEvent, c); err != nil {
			return err
		}
	}
	token, err := s.seals.Bind(e.Record, e.Token, c.SessionID)
	if err != nil {
		return err
	}
	e.Token = token
	return nil
}

// touch notes a use of the session if that is news. What the credential was verified by may be a minute old, and answers
// most calls without the database.
func (s *Sessions) touch(e *core.RequestEvent, c *Credential) error {
	d, now := login.DeviceOf(e), s.now()
	idle := s.cfg.IdleLifetime.Of(cmp.Or(d.Platform, c.login.Platform))
	if _, news := c.login.News(d, now, idle); !news {
		return nil
	}
	l, err := login.Find(e.App.ConcurrentDB(), c.SessionID)
	if err != nil {
		return err
	}
	return l.Touch(e.App, d, now, idle)
}

// grant makes the tokens of the session's present generation.
func (s *Sessions) grant(l *login.Login) (Grant, error) {
	now := s.now()
	expires := now.Add(s.cfg.AccessLifetime.Of(l.Platform))
	if until := l.Until(); expires.After(until) {
		expires = until
	}
	access, err := s.ring.Sign(signing.Claims{
		Issuer: s.issuer, Subject: l.Record, Audience: jwt.ClaimStrings{s.audience()}, IssuedAt: jwt.NewNumericDate(now),
		ExpiresAt: jwt.NewNumericDate(expires), ID: security.RandomString(tokenIDLength),
		ClientID: clientID, Session: l.ID, Generation: l.Generation, Collection: l.Collection, Device: l.DeviceID,
		Methods: l.AMR(), AuthTime: jwt.NewNumericDate(time.UnixMilli(l.AuthAt)), Actor: actorOf(l),
	})
	if err != nil {
		return Grant{}, err
	}
	g := Grant{AccessToken: access, TokenType: "Bearer", ExpiresIn: int(expires.Sub(now).Seconds()), SessionID: l.ID}
	if l.Actor == "" { // an impersonation is not refreshed
		g.RefreshToken = refresh.Mint(s.refreshKey(), l.Salt, l.ID, l.Generation)
	}
	return g, nil
}

const (
	// tokenIDLength is that of the claim jti: 20 characters of 62 are 119 bits.
	tokenIDLength = 20

	// clientID is the claim that RFC 9068 requires; apps are not registered.
	clientID = "app"
)

// withSession adds the tokens to what PocketBase calls meta. After OAuth2 that is a struct.
func withSession(meta any, g Grant) (map[string]any, error) {
	out := map[string]any{}
	switch m := meta.(type) {
	case nil:
	case map[string]any:
		out = m
	default:
		raw, err := json.Marshal(m)
		if err == nil {
			err = json.Unmarshal(raw, &out)
		}
		if err != nil {
			return nil, fmt.Errorf("read meta of sign-in: %w", err)
		}
	}
	out["session"] = g
	return out, nil
}
