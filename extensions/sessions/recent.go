package sessions

import (
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit"
	"github.com/satchelbase/satchel/extensions/sessions/login"
)

// RequireRecent refuses a request whose user has not shown a credential lately: a phone that was left unlocked, or a
// stolen token, must not be enough to change how one signs in. An impersonation never has.
func (s *Sessions) RequireRecent() *hook.Handler[*core.RequestEvent] {
	return &hook.Handler[*core.RequestEvent]{Id: "satchelRecentAuth", Func: func(e *core.RequestEvent) error {
		if err := s.Recent(e); err != nil {
			return err
		}
		return e.Next()
	}}
}

// Recent is the judgement of [Sessions.RequireRecent].
func (s *Sessions) Recent(e *core.RequestEvent) error {
	if e.Auth == nil {
		return api.ErrUnauthorized
	}
	c := Current(e)
	if c == nil || c.SessionID == "" || c.Actor != nil {
		return ErrRecentAuth
	}
	l, err := login.Find(e.App.ConcurrentDB(), c.SessionID)
	if err != nil {
		return err
	}
	if s.now().Sub(time.UnixMilli(l.AuthAt)) > s.cfg.Recent {
		return api.Fail(ErrRecentAuth, "POST "+api.Prefix+"/auth/reauthenticate, or sign in again")
	}
	return nil
}

// handleReauthenticate takes the password, or a one-time code that was mailed (otpId and code), and makes the session
// recent.
func (s *Sessions) handleReauthenticate(e *core.RequestEvent) error {
	var body struct {
		Password string `json:"password,omitempty"`
		OTPID    string `json:"otpId,omitempty"`
		Code     string `json:"code,omitempty"`
	}
	if err := api.Bind(e, &body); err != nil {
		return err
	}
	if (body.Password == "") == (body.OTPID == "" || body.Code == "") {
		return api.Fail(api.ErrValidation, "give either password, or otpId and code")
	}
	c := Current(e)
	if c == nil || c.SessionID == "" || c.Actor != nil {
		return api.Fail(ErrRecentAuth, "the token belongs to no session of the user")
	}
	if err := s.requireOneFactor(e); err != nil {
		return err
	}
	method := "password"
	var good bool
	var err error
	if body.Password != "" {
		good, err = s.rightPassword(e, body.Password)
	} else {
		method = "otp"
		good, err = s.spendOTP(e, body.OTPID, body.Code)
	}
	if err != nil {
		return err
	}
	if !good {
		if err := s.record(e.App, e, "sessions.reauthenticated", audit.Failure, audit.PartyOf(e.Auth), c.SessionID, map[string]any{"method": method}); err != nil {
			return err
		}
		return ErrWrongPassword
	}
	err = e.App.RunInTransaction(func(tx core.App) error {
		if _, err := tx.NonconcurrentDB().Update(login.Table, dbx.Params{"auth_at": s.now().UnixMilli()}, dbx.HashExp{"id": c.SessionID}).Execute(); err != nil {
			return fmt.Errorf("note reauthentication: %w", err)
		}
		return s.record(tx, e, "sessions.reauthenticated", audit.Success, audit.PartyOf(e.Auth), c.SessionID, map[string]any{"method": method})
	})
	if err != nil {
		return err
	}
	return api.Write(e, http.StatusOK, map[string]any{"recentUntil": s.now().Add(s.cfg.Recent).UTC()})
}

// requireOneFactor sends users with a second factor to the whole sign-in: one credential is not what they signed in with.
func (s *Sessions) requireOneFactor(e *core.RequestEvent) error {
	more := e.Auth.Collection().MFA.Enabled
	if !more && s.deps.SecondFactor != nil {
		var err error
		if more, err = s.deps.SecondFactor(e.App, e.Auth); err != nil {
			return fmt.Errorf("look for a second factor: %w", err)
		}
	}
	if more {
		return api.Fail(ErrRecentAuth, "this account has a second factor: sign in again")
	}
	return nil
}

func (s *Sessions) rightPassword(e *core.RequestEvent, password string) (bool, error) {
	collection := e.Auth.Collection()
	switch {
	case !collection.PasswordAuth.Enabled:
		return false, nil
	case s.deps.Password != nil:
		return s.deps.Password(e, collection, e.Auth, password)
	}
	return e.Auth.ValidatePassword(password), nil
}

// spendOTP takes a one-time code of the caller. It is gone after the first try, right or wrong: a new one is a mail away,
// and nobody gets to guess.
func (s *Sessions) spendOTP(e *core.RequestEvent, id, code string) (bool, error) {
	if !e.Auth.Collection().OTP.Enabled {
		return false, nil
	}
	var good bool
	err := e.App.RunInTransaction(func(tx core.App) error {
		otp, err := tx.FindOTPById(id)
		if err != nil || otp.CollectionRef() != e.Auth.Collection().Id || otp.RecordRef() != e.Auth.Id {
			return errNoOTP
		}
		good = !otp.HasExpired(e.Auth.Collection().OTP.DurationTime()) && otp.ValidatePassword(code)
		return tx.Delete(otp)
	})
	if errors.Is(err, errNoOTP) {
		return false, nil
	}
	return good, err
}

var errNoOTP = errors.New("no such one-time code")
