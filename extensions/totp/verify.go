package totp

import (
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/pb"
)

// gatePriority is before the app's own hooks (0) and before sessions are made (999): a first step is no sign-in yet.
const gatePriority = -900

// passedKey is where verify notes, on the request, whose second step has succeeded.
const passedKey = "satchelTOTPPassed"

const (
	// maxTries is the number of codes that one mfaId may be tried with.
	maxTries = 5

	// failuresPerLock wrong codes in a row close the second factor, first for lockFirst, then twice as long each time.
	// At the end an attacker who has the password gets five tries a day at a chance of three in a million each.
	failuresPerLock = 5
	lockFirst       = 5 * time.Minute
	lockLongest     = 24 * time.Hour

	// mfaLifetime is for collections that have no duration of PocketBase's MFA.
	mfaLifetime = 10 * time.Minute
)

func lockAfter(failures int64) time.Duration {
	lock := lockFirst
	for n := failures / failuresPerLock; n > 1 && lock < lockLongest; n-- {
		lock *= 2
	}
	return min(lock, lockLongest)
}

func lifetime(c *core.Collection) time.Duration {
	if d := c.MFA.DurationTime(); d > 0 {
		return d
	}
	return mfaLifetime
}

// gate ends the first step of users who have a second factor. Refreshes and impersonation have no method and pass.
func (f *factor) gate(e *core.RecordAuthRequestEvent) error {
	if e.AuthMethod == "" || slices.Contains(f.deps.Exempt, e.AuthMethod) {
		return e.Next()
	}
	if passed, ok := e.Get(passedKey).(string); ok && e.AuthMethod == Method && passed == sealedFor(e.Record) {
		return e.Next()
	}
	enabled, err := Enabled(e.App, e.Record)
	if err != nil {
		return err
	}
	if !enabled {
		return e.Next()
	}
	mfa := core.NewMFA(e.App)
	mfa.SetCollectionRef(e.Record.Collection().Id)
	mfa.SetRecordRef(e.Record.Id)
	mfa.SetMethod(e.AuthMethod)
	if err := e.App.Save(mfa); err != nil {
		return fmt.Errorf("store first step: %w", err)
	}
	// An app that also uses PocketBase's MFA knows by this header which second step is meant (RFC 9110 section 15.5.2).
	e.Response.Header().Set("WWW-Authenticate", "TOTP")
	if err := e.JSON(http.StatusUnauthorized, map[string]string{"mfaId": mfa.Id}); err != nil {
		return err
	}
	return apis.ErrMFA
}

// proof is a code or a recovery code.
type proof struct{ code, recovery string }

func newProof(code, recovery string) (proof, error) {
	if (code == "") == (recovery == "") {
		return proof{}, api.InvalidBody(api.Invalid("code", api.ErrFieldRequired, "give either code or recoveryCode"))
	}
	return proof{code: strings.ReplaceAll(code, " ", ""), recovery: recovery}, nil
}

func (p proof) kind() string {
	if p.recovery != "" {
		return "recovery code"
	}
	return "code"
}

func (f *factor) verify(e *core.RequestEvent) error {
	var in struct {
		MFA      string `json:"mfaId"`
		Code     string `json:"code,omitempty"`
		Recovery string `json:"recoveryCode,omitempty"`
	}
	if err := api.Bind(e, &in); err != nil {
		return err
	}
	p, err := newProof(in.Code, in.Recovery)
	if err != nil {
		return err
	}
	var record *core.Record
	var refused error // answered after the commit, which counts the try
	err = e.App.RunInTransaction(func(tx core.App) error {
		var err error
		record, refused, err = f.redeem(tx, e, in.MFA, p)
		return err
	})
	if err != nil {
		return fmt.Errorf("verify second factor: %w", err)
	}
	if refused != nil {
		return refused
	}
	e.Set(passedKey, sealedFor(record))
	pb.PresentMFA(e, in.MFA)
	err = apis.RecordAuthResponse(e, record, Method, nil)
	// PocketBase's MFA looks at its record of the first step while it answers, and deletes it; without MFA nobody does.
	if dropErr := dropMFA(e.App, in.MFA); dropErr != nil {
		e.App.Logger().Warn("used mfa is left for the sweeper", slog.Any("error", dropErr))
	}
	return err
}

// redeem checks the proof for an mfaId within a transaction that must commit even when the proof is refused.
func (f *factor) redeem(tx core.App, e *core.RequestEvent, id string, p proof) (record *core.Record, refused, err error) {
	mfa, err := tx.FindMFAById(id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, ErrMFA, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("find first step: %w", err)
	}
	record, err = tx.FindRecordById(mfa.CollectionRef(), mfa.RecordRef())
	if errors.Is(err, sql.ErrNoRows) {
		return nil, ErrMFA, nil // deleted in a way that no hook saw
	}
	if err != nil {
		return nil, nil, fmt.Errorf("find user: %w", err)
	}
	r, err := load(tx, record)
	if err != nil {
		return nil, nil, err
	}
	if r == nil || r.ConfirmedAt == 0 || mfa.HasExpired(lifetime(record.Collection())) {
		return nil, ErrMFA, nil
	}
	tries, err := countTry(tx, id, time.Now())
	if err != nil {
		return nil, nil, err
	}
	if tries > maxTries {
		return nil, ErrMFA, dropMFA(tx, id)
	}
	refused, err = f.check(tx, record, r, p)
	switch {
	case err != nil:
		return nil, nil, err
	case refused == nil:
		if err := burn(tx, id); err != nil {
			return nil, nil, err
		}
		return record, nil, f.audit(tx, e, "totp.verified", success, record, map[string]any{"with": p.kind(), "after": mfa.Method()})
	}
	return nil, refused, f.audit(tx, e, "totp.verified", denied, record, map[string]any{"with": p.kind(), "after": mfa.Method(), "try": tries})
}

func dropMFA(app core.App, id string) error {
	mfa, err := app.FindMFAById(id)
	if errors.Is(err, sql.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find mfa: %w", err)
	}
	return app.Delete(mfa)
}

// check takes the proof or refuses it, and notes which, within a transaction that must commit either way.
func (f *factor) check(tx core.App, record *core.Record, r *row, p proof) (refused, err error) {
	now := time.Now()
	if p.recovery != "" {
		ok, err := useCode(tx, record, f.hash(record, p.recovery))
		if err != nil {
			return nil, err
		}
		if ok {
			return nil, accept(tx, record, r, 0)
		}
		return ErrCode, refuse(tx, record, r, now)
	}
	if until := time.Unix(r.LockedUntil, 0); now.Before(until) {
		problem := api.Fail(ErrLocked, "")
		problem.RetryAfter = until.Sub(now)
		return problem, nil
	}
	secret, err := f.deps.Vault.Open(sealedFor(record), r.Secret)
	if err != nil {
		return nil, fmt.Errorf("open secret: %w", err)
	}
	step, ok, err := match(string(secret), p.code, now, r.LastStep)
	if err != nil {
		return nil, err
	}
	if ok {
		return nil, accept(tx, record, r, step)
	}
	return ErrCode, refuse(tx, record, r, now)
}
