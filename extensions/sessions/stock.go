package sessions

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/golang-jwt/jwt/v5"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/security"
)

// What this server adds to PocketBase's tokens. Their signing keys are in the database in the clear, so whoever has a
// copy of it can sign them; the seal needs the master key.
const (
	claimSession = "sid"
	claimSeal    = "smac"
)

// Harden seals a token that PocketBase has made for a record, of any of its kinds. It is for tokens that are made outside
// of a request.
func (s *Sessions) Harden(record *core.Record, token string) (string, error) {
	return s.bindToken(record, token, "")
}

// bindToken signs a stock token anew, with the session and the seal in it.
func (s *Sessions) bindToken(record *core.Record, token, session string) (string, error) {
	claims, err := security.ParseUnverifiedJWT(token) // made by this process
	if err != nil {
		return "", fmt.Errorf("read token: %w", err)
	}
	key, err := stockSecret(record, claims)
	if err != nil {
		return "", err
	}
	delete(claims, claimSession)
	if session != "" {
		claims[claimSession] = session
	}
	seal, err := s.sealOf(record, claims)
	if err != nil {
		return "", err
	}
	claims[claimSeal] = seal
	out, err := jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString([]byte(key))
	if err != nil {
		return "", fmt.Errorf("sign token: %w", err)
	}
	return out, nil
}

// stockSecret is the key that PocketBase verifies a token of this kind with.
func stockSecret(record *core.Record, claims jwt.MapClaims) (string, error) {
	c := record.Collection()
	kind, _ := claims[core.TokenClaimType].(string)
	var secret string
	switch kind {
	case core.TokenTypeAuth:
		secret = c.AuthToken.Secret
	case core.TokenTypeFile:
		secret = c.FileToken.Secret
	case core.TokenTypeVerification:
		secret = c.VerificationToken.Secret
	case core.TokenTypePasswordReset:
		secret = c.PasswordResetToken.Secret
	case core.TokenTypeEmailChange:
		secret = c.EmailChangeToken.Secret
	default:
		return "", fmt.Errorf("%q is no kind of token", kind)
	}
	return record.TokenKey() + secret, nil
}

// sealOf is a MAC over all other claims and the user's token key, so that a seal is of no use after the key has changed.
// JSON objects are written with sorted names, and numbers the same whether they were just made or read.
func (s *Sessions) sealOf(record *core.Record, claims jwt.MapClaims) (string, error) {
	rest := jwt.MapClaims{}
	for name, value := range claims {
		if name != claimSeal {
			rest[name] = value
		}
	}
	text, err := json.Marshal(rest)
	if err != nil {
		return "", fmt.Errorf("seal token: %w", err)
	}
	mac := hmac.New(sha256.New, s.stockKey())
	mac.Write([]byte(record.TokenKey()))
	mac.Write([]byte{0})
	mac.Write(text)
	return base64.RawURLEncoding.EncodeToString(mac.Sum(nil)), nil
}

// sealed reports whether verified claims carry this server's seal.
func (s *Sessions) sealed(record *core.Record, claims jwt.MapClaims) bool {
	presented, _ := claims[claimSeal].(string)
	want, err := s.sealOf(record, claims)
	return err == nil && hmac.Equal([]byte(presented), []byte(want))
}

// accepts decides by the setting whether a stock token of authentication, verified by PocketBase, counts.
func (s *Sessions) accepts(record *core.Record, claims jwt.MapClaims) bool {
	switch s.cfg.StockTokens {
	case StockOn:
		return true
	case StockOff:
		return record.IsSuperuser() && s.sealed(record, claims)
	}
	return s.sealed(record, claims)
}

// bindStockTokens seals the other kinds of tokens where they are made, and asks for the seal where they are used.
func (s *Sessions) bindStockTokens(app core.App) {
	app.OnFileTokenRequest().Bind(&hook.Handler[*core.FileTokenRequestEvent]{Id: "satchelSessions", Priority: 999, Func: func(e *core.FileTokenRequestEvent) error {
		noStore(e.RequestEvent)
		session := ""
		if c := Current(e.RequestEvent); c != nil {
			session = c.SessionID
		}
		token, err := s.bindToken(e.Record, e.Token, session)
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
	sealed, err := s.bindToken(e.Record, token, "")
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
	if err != nil || !s.sealed(record, claims) {
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
		return e.Next()
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
		return e.Next()
	}
	e.Request.URL.RawQuery = query.Encode()
	return e.Next()
}

// goodFileToken leaves the signature to the route.
func (s *Sessions) goodFileToken(e *core.RequestEvent, token string) bool {
	claims, err := security.ParseUnverifiedJWT(token)
	if err != nil {
		return false
	}
	if id, _ := claims[claimSession].(string); id != "" {
		l, err := findLogin(e.App.ConcurrentDB(), id)
		if err != nil || !l.alive(s.now()) || l.Record != claims[core.TokenClaimId] {
			return false
		}
	}
	if s.cfg.StockTokens == StockOn {
		return true
	}
	record, err := e.App.FindAuthRecordByToken(token, core.TokenTypeFile)
	return err == nil && s.sealed(record, claims)
}
