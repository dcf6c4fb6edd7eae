package sessions

import (
	"fmt"
	"strings"

	"github.com/golang-jwt/jwt/v5"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/security"

	"github.com/satchelbase/satchel/extensions/sessions/login"
	"github.com/satchelbase/satchel/extensions/sessions/stock"
)

// Harden seals a token that PocketBase has made for a record, of any of its kinds. It is for tokens that are made outside
// of a request.
func (s *Sessions) Harden(record *core.Record, token string) (string, error) {
	return s.seals.Bind(record, token, "")
}

// accepts decides by the setting whether a stock token of authentication, verified by PocketBase, counts.
func (s *Sessions) accepts(record *core.Record, claims jwt.MapClaims) bool {
	switch s.cfg.StockTokens {
	case StockOn:
		return true
	case StockOff:
		return record.IsSuperuser() && s.seals.Sealed(record, claims)
	}
	return s.seals.Sealed(record, claims)
}

// bindStockTokens seals the other kinds of tokens where they are made, and asks for the seal where they are used.
func (s *Sessions) bindStockTokens(app core.App) {
	app.OnFileTokenRequest().Bind(&hook.Handler[*core.FileTokenRequestEvent]{Id: "satchelSessions", Priority: 999, Func: func(e *core.FileTokenRequestEvent) error {
		noStore(e.RequestEvent)
		session := ""
		if c := Current(e.RequestEvent); c != nil {
			session = c.SessionID
		}
		token, err := s.seals.Bind(e.Record, e.Token, session)
		if err != nil {
			return err
		}
		e.Token = token
		return e.Next()
	}})
	mail := &hook.Handler[*core.MailerRecordEvent]{Id: "satchelSessions", Priority: 999, Func: s.sealMail}
	app.OnMailerRecordPasswordResetSend().Bind(mail)
	app.OnMailerRecordVerificationSend().Bind(mail)
	app.OnMailerRecordEmailChangeSend().Bind(mail)

	app.OnRecordConfirmPasswordResetRequest().BindFunc(func(e *core.RecordConfirmPasswordResetRequestEvent) error {
		if err := s.requireSeal(e.RequestEvent, e.Record); err != nil {
			return err
		}
		return e.Next()
	})
	app.OnRecordConfirmVerificationRequest().BindFunc(func(e *core.RecordConfirmVerificationRequestEvent) error {
		if err := s.requireSeal(e.RequestEvent, e.Record); err != nil {
			return err
		}
		return e.Next()
	})
	app.OnRecordConfirmEmailChangeRequest().BindFunc(func(e *core.RecordConfirmEmailChangeRequestEvent) error {
		if err := s.requireSeal(e.RequestEvent, e.Record); err != nil {
			return err
		}
		return e.Next()
	})
}

// sealMail puts a sealed token in the place of the one that is about to be mailed.
func (s *Sessions) sealMail(e *core.MailerRecordEvent) error {
	token, _ := e.Meta["token"].(string)
	if token == "" {
		return e.Next()
	}
	sealed, err := s.seals.Bind(e.Record, token, "")
	if err != nil {
		return err
	}
	e.Meta["token"] = sealed
	for _, text := range []*string{&e.Message.Subject, &e.Message.HTML, &e.Message.Text} {
		*text = strings.ReplaceAll(*text, token, sealed)
	}
	return e.Next()
}

// requireSeal looks at the mailed token in the body of a request. PocketBase has verified it.
func (s *Sessions) requireSeal(e *core.RequestEvent, record *core.Record) error {
	if s.cfg.StockTokens == StockOn {
		return nil
	}
	var body struct {
		Token string `json:"token" form:"token"`
	}
	if err := e.BindBody(&body); err != nil {
		return e.BadRequestError("An error occurred while loading the submitted data.", err)
	}
	claims, err := security.ParseUnverifiedJWT(body.Token)
	if err != nil || !s.seals.Sealed(record, claims) {
		return e.BadRequestError("Invalid or expired token.", err)
	}
	return nil
}

// filesPattern is PocketBase's route of files, which knows only tokens in the query.
const filesPattern = "GET /api/files/{collection}/{recordId}/{filename}"

// exchangeFileToken lets the holder of any good credential read protected files: it is turned into a token of the kind
// that the route knows. A token in the query that does not count is taken away; the route then treats the client as a
// guest, as it does with an expired one.
func (s *Sessions) exchangeFileToken(e *core.RequestEvent) error {
	if e.Request.Pattern != filesPattern {
		return nil
	}
	query := e.Request.URL.Query()
	switch presented := query.Get("token"); {
	case presented != "" && !s.goodFileToken(e, presented):
		query.Del("token")
	case presented == "" && e.Auth != nil:
		token, err := e.Auth.NewFileToken()
		if err != nil {
			return fmt.Errorf("make file token: %w", err)
		}
		query.Set("token", token)
	default:
		return nil
	}
	e.Request.URL.RawQuery = query.Encode()
	return nil
}

// goodFileToken leaves the signature to the route.
func (s *Sessions) goodFileToken(e *core.RequestEvent, token string) bool {
	claims, err := security.ParseUnverifiedJWT(token)
	if err != nil {
		return false
	}
	if id, _ := claims[stock.ClaimSession].(string); id != "" {
		l, err := login.Find(e.App.ConcurrentDB(), id)
		if err != nil || !l.Alive(s.now()) || l.Record != claims[core.TokenClaimId] {
			return false
		}
	}
	if s.cfg.StockTokens == StockOn {
		return true
	}
	record, err := e.App.FindAuthRecordByToken(token, core.TokenTypeFile)
	return err == nil && s.seals.Sealed(record, claims)
}
