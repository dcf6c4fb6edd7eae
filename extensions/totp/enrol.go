package totp

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"image/png"
	"net/http"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pquerna/otp"
	"github.com/pquerna/otp/totp"

	"github.com/satchelbase/satchel/extensions/api"
)

const (
	// enrolmentLifetime is how long the first code may take.
	enrolmentLifetime = 15 * time.Minute

	// pictureSize of the QR code, in pixels.
	pictureSize = 240

	// maxLabel bounds the names in the QR code, in characters, so that it stays easy to scan.
	maxLabel = 64
)

// requireSupported refuses the accounts whose sign-in cannot have this second step.
func requireSupported(e *core.RequestEvent) error {
	if e.Auth.IsSuperuser() {
		return api.Fail(ErrCollection, "superusers sign in to the dashboard, which does not ask for such codes")
	}
	return e.Next()
}

// stateJSON is what a user may know about the own second factor.
type stateJSON struct {
	Enabled       bool       `json:"enabled"`
	ConfirmedAt   *time.Time `json:"confirmedAt"`
	RecoveryCodes int        `json:"recoveryCodesLeft"`
}

func (f *factor) status(e *core.RequestEvent) error {
	r, err := load(e.App, e.Auth)
	if err != nil {
		return err
	}
	var state stateJSON
	if r != nil && r.ConfirmedAt != 0 {
		at := time.Unix(r.ConfirmedAt, 0).UTC()
		state.Enabled, state.ConfirmedAt = true, &at
		if state.RecoveryCodes, err = countCodes(e.App, e.Auth); err != nil {
			return err
		}
	}
	return api.Write(e, http.StatusOK, state)
}

func (f *factor) begin(e *core.RequestEvent) error {
	if err := api.Bind(e, &struct{}{}); err != nil {
		return err
	}
	key, err := totp.Generate(totp.GenerateOpts{
		Issuer: f.issuer(e.App), AccountName: label(e.Auth), SecretSize: secretSize, Digits: digits, Period: uint(period / time.Second),
	})
	if err != nil {
		return fmt.Errorf("make secret: %w", err)
	}
	sealed, err := f.deps.Vault.Seal(sealedFor(e.Auth), []byte(key.Secret()))
	if err != nil {
		return fmt.Errorf("seal secret: %w", err)
	}
	free, err := pend(e.App, e.Auth, sealed, time.Now())
	if err != nil {
		return err
	}
	if !free {
		return api.Fail(ErrEnabled, "switch it off first")
	}
	picture, err := picture(key)
	if err != nil {
		return err
	}
	return api.Write(e, http.StatusCreated, struct {
		Secret    string    `json:"secret"`
		URI       string    `json:"uri"`
		QR        string    `json:"qr"`
		ExpiresAt time.Time `json:"expiresAt"`
	}{key.Secret(), key.String(), picture, time.Now().Add(enrolmentLifetime).UTC().Truncate(time.Second)})
}

func (f *factor) issuer(app core.App) string {
	for _, name := range []string{f.cfg.Issuer, app.Settings().Meta.AppName} {
		if name != "" {
			return cut(name)
		}
	}
	return "Satchel"
}

// label is how the user knows the account.
func label(record *core.Record) string {
	for _, name := range []string{record.Email(), record.GetString("username"), record.GetString("name")} {
		if name != "" {
			return cut(name)
		}
	}
	return record.Id
}

func cut(s string) string {
	if r := []rune(s); len(r) > maxLabel {
		return string(r[:maxLabel])
	}
	return s
}

// picture is the QR code as a data URL.
func picture(key *otp.Key) (string, error) {
	img, err := key.Image(pictureSize, pictureSize)
	if err != nil {
		return "", fmt.Errorf("draw QR code: %w", err)
	}
	var buf bytes.Buffer
	if err := png.Encode(&buf, img); err != nil {
		return "", fmt.Errorf("encode QR code: %w", err)
	}
	return "data:image/png;base64," + base64.StdEncoding.EncodeToString(buf.Bytes()), nil
}

// recoveryJSON shows recovery codes, the only time.
type recoveryJSON struct {
	RecoveryCodes []string `json:"recoveryCodes"`
}

func (f *factor) confirm(e *core.RequestEvent) error {
	var in struct {
		Code string `json:"code"`
	}
	if err := api.Bind(e, &in); err != nil {
		return err
	}
	p, err := newProof(in.Code, "")
	if err != nil {
		return err
	}
	codes := newRecoveryCodes()
	err = e.App.RunInTransaction(func(tx core.App) error {
		now := time.Now()
		r, err := load(tx, e.Auth)
		switch {
		case err != nil:
			return err
		case r == nil:
			return ErrNotBegun
		case r.ConfirmedAt != 0:
			return ErrEnabled
		case now.Sub(time.Unix(r.CreatedAt, 0)) > enrolmentLifetime:
			return ErrNotBegun
		}
		secret, err := f.deps.Vault.Open(sealedFor(e.Auth), r.Secret)
		if err != nil {
			return fmt.Errorf("open secret: %w", err)
		}
		// Wrong codes are not counted: the user was shown the secret.
		step, ok, err := match(string(secret), p.code, now, r.LastStep)
		if err != nil {
			return err
		}
		if !ok {
			return ErrCode
		}
		if err := confirm(tx, e.Auth, step, now); err != nil {
			return err
		}
		if err := setCodes(tx, e.Auth, f.hashes(e.Auth, codes)); err != nil {
			return err
		}
		return f.audit(tx, e, "totp.enabled", success, e.Auth, nil)
	})
	if err != nil {
		return err
	}
	return api.Write(e, http.StatusOK, recoveryJSON{codes})
}

func (f *factor) disable(e *core.RequestEvent) error {
	var in struct {
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
	var refused error // answered after the commit, which counts the try
	err = e.App.RunInTransaction(func(tx core.App) error {
		r, err := load(tx, e.Auth)
		if err != nil {
			return err
		}
		if r == nil || r.ConfirmedAt == 0 {
			return ErrNotEnabled
		}
		if refused, err = f.check(tx, e.Auth, r, p); err != nil {
			return err
		}
		if refused != nil {
			return f.audit(tx, e, "totp.disabled", denied, e.Auth, nil)
		}
		if _, err := remove(tx, e.Auth); err != nil {
			return err
		}
		return f.audit(tx, e, "totp.disabled", success, e.Auth, nil)
	})
	if err := errors.Join(err, refused); err != nil {
		return err
	}
	return e.NoContent(http.StatusNoContent)
}

func (f *factor) renew(e *core.RequestEvent) error {
	if err := api.Bind(e, &struct{}{}); err != nil {
		return err
	}
	codes := newRecoveryCodes()
	err := e.App.RunInTransaction(func(tx core.App) error {
		r, err := load(tx, e.Auth)
		if err != nil {
			return err
		}
		if r == nil || r.ConfirmedAt == 0 {
			return ErrNotEnabled
		}
		if err := setCodes(tx, e.Auth, f.hashes(e.Auth, codes)); err != nil {
			return err
		}
		return f.audit(tx, e, "totp.codes_renewed", success, e.Auth, nil)
	})
	if err != nil {
		return err
	}
	return api.Write(e, http.StatusOK, recoveryJSON{codes})
}
