package stock

import (
	"fmt"
	"strings"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/security"
)

// Tokens watches over the kinds of tokens that do not sign requests: of files, and of links in mails.
type Tokens struct {
	Sealer

	// Lenient takes tokens without a seal.
	Lenient bool

	// Session is the id of the session that a request belongs to, empty if none.
	Session func(e *core.RequestEvent) string

	// Lives reports whether the session is the user's and has not ended.
	Lives func(app core.App, session, user string) bool
}

// Bind seals the other kinds of tokens where they are made, and asks for the seal where they are used.
func (t Tokens) Bind(app core.App) {
	app.OnFileTokenRequest().Bind(&hook.Handler[*core.FileTokenRequestEvent]{Id: "satchelSessions", Priority: 999, Func: func(e *core.FileTokenRequestEvent) error {
		e.Response.Header().Set("Cache-Control", "no-store")
		token, err := t.Sealer.Bind(e.Record, e.Token, t.Session(e.RequestEvent))
		if err != nil {
			return err
		}
		e.Token = token
		return e.Next()
	}})
	mail := &hook.Handler[*core.MailerRecordEvent]{Id: "satchelSessions", Priority: 999, Func: t.sealMail}
	app.OnMailerRecordPasswordResetSend().Bind(mail)
	app.OnMailerRecordVerificationSend().Bind(mail)
	app.OnMailerRecordEmailChangeSend().Bind(mail)

	app.OnRecordConfirmPasswordResetRequest().BindFunc(func(e *core.RecordConfirmPasswordResetRequestEvent) error {
		if err := t.requireSeal(e.RequestEvent, e.Record); err != nil {
			return err
		}
		return e.Next()
	})
	app.OnRecordConfirmVerificationRequest().BindFunc(func(e *core.RecordConfirmVerificationRequestEvent) error {
		if err := t.requireSeal(e.RequestEvent, e.Record); err != nil {
			return err
		}
		return e.Next()
	})
	app.OnRecordConfirmEmailChangeRequest().BindFunc(func(e *core.RecordConfirmEmailChangeRequestEvent) error {
		if err := t.requireSeal(e.RequestEvent, e.Record); err != nil {
			return err
		}
		return e.Next()
	})
}

// sealMail puts a sealed token in the place of the one that is about to be mailed.
func (t Tokens) sealMail(e *core.MailerRecordEvent) error {
	token, _ := e.Meta["token"].(string)
	if token == "" {
		return e.Next()
	}
	sealed, err := t.Sealer.Bind(e.Record, token, "")
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
func (t Tokens) requireSeal(e *core.RequestEvent, record *core.Record) error {
	if t.Lenient {
		return nil
	}
	var body struct {
		Token string `json:"token" form:"token"`
	}
	if err := e.BindBody(&body); err != nil {
		return e.BadRequestError("An error occurred while loading the submitted data.", err)
	}
	claims, err := security.ParseUnverifiedJWT(body.Token)
	if err != nil || !t.Sealed(record, claims) {
		return e.BadRequestError("Invalid or expired token.", err)
	}
	return nil
}

// filesPattern is PocketBase's route of files, which knows only tokens in the query.
const filesPattern = "GET /api/files/{collection}/{recordId}/{filename}"

// ExchangeFileToken lets the holder of any good credential read protected files: it is turned into a token of the kind
// that the route knows. A token in the query that does not count is taken away; the route then treats the client as a
// guest, as it does with an expired one.
func (t Tokens) ExchangeFileToken(e *core.RequestEvent) error {
	if e.Request.Pattern != filesPattern {
		return nil
	}
	query := e.Request.URL.Query()
	switch presented := query.Get("token"); {
	case presented != "" && !t.goodFileToken(e, presented):
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
func (t Tokens) goodFileToken(e *core.RequestEvent, token string) bool {
	claims, err := security.ParseUnverifiedJWT(token)
	if err != nil {
		return false
	}
	user, _ := claims[core.TokenClaimId].(string)
	if id, _ := claims[ClaimSession].(string); id != "" && !t.Lives(e.App, id, user) {
		return false
	}
	if t.Lenient {
		return true
	}
	record, err := e.App.FindAuthRecordByToken(token, core.TokenTypeFile)
	return err == nil && t.Sealed(record, claims)
}
