package guard

import (
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions/internal/pb"
)

// PocketBase's words for a wrong password and a wrong code.
const (
	wrongPassword = "Failed to authenticate."
	wrongCode     = "Invalid or expired OTP"
)

var errHidden = errors.New("the reason is not told")

// signInByPassword counts failures. PocketBase has looked for the account, and has not compared the password yet; it
// compares with some other one when there is no account.
func (g *guard) signInByPassword(e *core.RecordAuthWithPasswordRequestEvent) error {
	a, err := g.begin(e.RequestEvent, e.Collection, e.Identity, e.Record)
	if err != nil {
		return err
	}
	err = e.Next()
	if succeeded(err) {
		a.forgive()
		return err
	}
	status := router.ToApiError(err).Status
	switch {
	case status == http.StatusForbidden && e.Record != nil && !e.Record.Verified() && g.mode == Equal:
		// The password was right, but the account is new. Whoever has just signed up must not learn from this answer that
		// the sign-up was real.
		err = e.BadRequestError(wrongPassword, errHidden)
	case status != http.StatusBadRequest:
		a.forgive() // the password was right, or nobody has looked at it
		return err
	}
	g.audit(e.RequestEvent, actionSignIn, "failed", e.Record, map[string]any{"method": core.MFAMethodPassword})
	return err
}

// succeeded reports that the credential was right, be it as the first of two.
func succeeded(err error) bool { return err == nil || errors.Is(err, apis.ErrMFA) }

// signedIn stores successes, of every way to sign in. A refreshed token is none.
func (g *guard) signedIn(e *core.RecordAuthRequestEvent) error {
	method := e.AuthMethod
	if err := e.Next(); err != nil || method == "" {
		return err
	}
	if method == core.MFAMethodOTP {
		// The request for the code was charged too.
		(&attempt{guard: g, charges: g.chargesOf(e.RequestEvent, e.Collection, e.Record.Email())}).forgive()
	}
	g.store(e.RequestEvent, actionSignIn, "ok", e.Record, map[string]any{"method": method})
	return nil
}

// requestCode charges the request as an attempt: the account must be charged before it can be seen whether it exists. For
// an account that does not, it does what PocketBase does for one that does: it hashes a code and writes a row.
func (g *guard) requestCode(e *core.RecordCreateOTPRequestEvent) error {
	form := struct {
		Email string `json:"email" form:"email"`
	}{}
	if err := e.BindBody(&form); err != nil {
		return e.BadRequestError("", err)
	}
	if _, err := g.begin(e.RequestEvent, e.Collection, form.Email, e.Record); err != nil {
		return err
	}
	if e.Record != nil {
		if err := dropOldCodes(e); err != nil {
			return err
		}
		return e.Next()
	}
	core.NewOTP(e.App).SetPassword(e.Password)
	if _, err := countTry(e.App, core.GenerateDefaultRandomId(), 0); err != nil {
		return err
	}
	return e.Next()
}

// maxCodes is one less than the number of live codes with which PocketBase answers the id of an old one. That answer
// would show that the account exists.
const maxCodes = 9

// dropOldCodes makes room for a new code.
func dropOldCodes(e *core.RecordCreateOTPRequestEvent) error {
	codes, err := e.App.FindAllOTPsByRecord(e.Record) // the newest first
	if err != nil {
		return fmt.Errorf("find codes: %w", err)
	}
	for len(codes) >= maxCodes {
		if err := e.App.Delete(codes[len(codes)-1]); err != nil {
			return fmt.Errorf("drop old code: %w", err)
		}
		codes = codes[:len(codes)-1]
	}
	return nil
}

// codeForm is what PocketBase reads, with its limits.
type codeForm struct {
	OTPID    string `json:"otpId" form:"otpId"`
	Password string `json:"password" form:"password"`
}

func (f codeForm) valid() bool {
	return f.OTPID != "" && len(f.OTPID) <= 255 && f.Password != "" && len(f.Password) <= 71
}

// signInByCode counts every try in the database before PocketBase compares it, and ends the code with the last one.
func (g *guard) signInByCode(e *core.RequestEvent) error {
	form := codeForm{}
	if e.Request.Pattern != "POST /api/collections/{collection}/auth-with-otp" || e.BindBody(&form) != nil || !form.valid() {
		return e.Next() // PocketBase says what is wrong
	}
	c, err := e.App.FindCachedCollectionByNameOrId(e.Request.PathValue("collection"))
	if err != nil || !c.IsAuth() || !c.OTP.Enabled {
		return e.Next()
	}
	a, err := g.begin(e, c, "", nil)
	if err != nil {
		return err
	}
	tries, err := countTry(e.App, form.OTPID, 1)
	if err != nil {
		return err
	}
	if tries > maxTries {
		return e.BadRequestError(wrongCode, errors.New("the code has had all its tries"))
	}
	err = e.Next()
	if succeeded(err) {
		a.forgive()
		return err
	}
	status := router.ToApiError(err).Status
	if status != http.StatusBadRequest && status != http.StatusTooManyRequests {
		a.forgive()
		return err
	}
	return g.wrongCode(e, form, tries, err)
}

// wrongCode makes a try for a code that does not exist take as long as one for a code that does, and tell as little.
func (g *guard) wrongCode(e *core.RequestEvent, form codeForm, tries int, err error) error {
	otp, findErr := e.App.FindOTPById(form.OTPID)
	if findErr != nil {
		otp = nil
	}
	if !pb.OTPCompared(err) {
		core.PasswordFieldValue{Hash: decoyHash}.Validate(form.Password)
	}
	subject := subjectOf(e.App, otp)
	g.audit(e, actionSignIn, "failed", subject, map[string]any{"method": core.MFAMethodOTP})
	if tries >= maxTries {
		if burnErr := g.burn(e, otp, form.OTPID); burnErr != nil {
			return burnErr
		}
		g.audit(e, actionBurned, "ok", subject, map[string]any{"tries": maxTries})
	}
	if router.ToApiError(err).Status == http.StatusTooManyRequests {
		// PocketBase's limit by address and account exists only for accounts that exist.
		return e.BadRequestError(wrongCode, err)
	}
	return err
}

// decoyHash has the cost of PocketBase's codes, 8.
const decoyHash = "$2a$08$uon71rZT3n1vZ85evCplJuNC7a9kskl0FU1HFiJx1lqEd6iFzd54i"

func subjectOf(app core.App, otp *core.OTP) *core.Record {
	collection, id := "", ""
	if otp != nil {
		collection, id = otp.CollectionRef(), otp.RecordRef()
	}
	record, err := app.FindRecordById(collection, id)
	if err != nil {
		return nil
	}
	return record
}

// burn deletes the code. A code that does not exist costs one write too.
func (g *guard) burn(e *core.RequestEvent, otp *core.OTP, id string) error {
	if otp == nil {
		_, err := countTry(e.App, id, 0)
		return err
	}
	g.burned.Add(1)
	if err := e.App.Delete(otp); err != nil {
		return fmt.Errorf("burn code: %w", err)
	}
	return nil
}

// noStore keeps answers about accounts out of every cache, refusals included (RFC 9111 section 5.2.2.5).
func noStore(e *core.RequestEvent) error {
	if aboutAccounts(e) {
		e.Response.Header().Set("Cache-Control", "no-store")
	}
	return e.Next()
}

// aboutAccounts goes by the pattern that the router matched, which cannot be spelled in two ways.
func aboutAccounts(e *core.RequestEvent) bool {
	method, path, _ := strings.Cut(e.Request.Pattern, " ")
	if strings.HasPrefix(path, "/api/v1/auth/") || path == "/api/oauth2-redirect" || path == "/api/batch" || path == "/api/auth/sync" {
		return true
	}
	action, ok := strings.CutPrefix(path, "/api/collections/{collection}/")
	if !ok || method == http.MethodGet || method == http.MethodHead {
		return false
	}
	if action == "records" || action == "records/{id}" {
		c, err := e.App.FindCachedCollectionByNameOrId(e.Request.PathValue("collection"))
		return err == nil && c.IsAuth()
	}
	for _, prefix := range []string{"auth-", "request-", "confirm-", "impersonate/"} {
		if strings.HasPrefix(action, prefix) {
			return true
		}
	}
	return false
}
