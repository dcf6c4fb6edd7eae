package passwords

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
)

// enteredKey marks a request that holds the right to hash, so that it does not wait for itself.
const enteredKey = "satchelPasswordsEntered"

// Hasher checks passwords without taking the server from others. It is safe for concurrent use.
type Hasher struct {
	cfg    Config
	queue  *queue
	common common
	ranges *ranges

	hashed, refused atomic.Int64
}

// NewHasher returns a hasher. cfg must be valid.
func NewHasher(cfg Config) *Hasher {
	return &Hasher{cfg: cfg, queue: newQueue(cfg.slots(), cfg.Queue, cfg.Wait), ranges: newRanges(cfg.RangeURL)}
}

// Enter waits until this request may hash passwords; leave gives the right back and must be called. Its error is the
// answer for the client, 503 passwords.busy. A request that has the right already gets it
// again at once. Hold it for as short as possible, and never across a call to somebody else's server.
func (h *Hasher) Enter(e *core.RequestEvent) (leave func(), err error) {
	if entered, _ := e.Get(enteredKey).(bool); entered {
		return func() {}, nil
	}
	if err := h.queue.enter(e.Request.Context(), api.Network(e.RealIP())); err != nil {
		return nil, h.busy(err)
	}
	h.hashed.Add(1)
	e.Set(enteredKey, true)
	return func() {
		e.Set(enteredKey, false)
		h.queue.leave()
	}, nil
}

// busy is the answer when the turn did not come, or the request's time was up before the password was checked. A plain
// error would be 400 on PocketBase's paths, which reads like a wrong password.
func (h *Hasher) busy(cause error) error {
	h.refused.Add(1)
	p := api.Fail(ErrBusy, "try again in a moment").Because(cause)
	// A part of the longest wait, so that clients that were refused together do not return together.
	p.RetryAfter = time.Second + rand.N(h.cfg.Wait) //nolint:gosec // no secret: it spreads clients over time
	return p
}

// Verify reports whether the password is that of the account, which may be nil: that takes the same time as a wrong
// password. The error is one of [Hasher.Enter]. If the account's hash is of a lower cost than new ones and the password
// is right, the hash is replaced.
func (h *Hasher) Verify(e *core.RequestEvent, collection *core.Collection, account *core.Record, password string) (bool, error) {
	leave, err := h.Enter(e)
	if err != nil {
		return false, err
	}
	defer leave()
	ok, err := h.verify(e, costOf(collection), account, password)
	if err != nil {
		return false, h.busy(err)
	}
	return ok, nil
}

// verify has the right to hash. Its error is that of the request's context.
func (h *Hasher) verify(e *core.RequestEvent, cost int, account *core.Record, password string) (bool, error) {
	ctx := e.Request.Context()
	stored, ok := storedHash(account)
	if !ok {
		return false, waste(ctx, cost)
	}
	ok, err := stored.matches(ctx, password)
	if err != nil {
		return false, err
	}
	if !ok {
		// Each step doubles: with 2^c rounds done, the steps from c to cost-1 make it 2^cost. So the time does not tell
		// accounts with an old hash from those that do not exist.
		for c := stored.cost; c < cost; c++ {
			if err := waste(ctx, c); err != nil {
				return false, err
			}
		}
		return false, nil
	}
	if stored.cost < cost {
		if err := replaceHash(ctx, e.App, account, password, cost); err != nil {
			e.App.Logger().Warn("the hash of a password could not be replaced", slog.String("account", account.Id), slog.Any("error", err))
		}
	}
	return true, nil
}

// signIn is what PocketBase's own handler does, with another way to check the password.
func (h *Hasher) signIn(e *core.RecordAuthWithPasswordRequestEvent) error {
	ok, err := h.Verify(e.RequestEvent, e.Collection, e.Record, e.Password)
	if err != nil {
		return err
	}
	if !ok {
		return e.BadRequestError("Failed to authenticate.", errors.New("invalid login credentials"))
	}
	return apis.RecordAuthResponse(e.RequestEvent, e.Record, core.MFAMethodPassword, nil)
}

// storedHash is the hash of the account, as it was read from the database.
func storedHash(account *core.Record) (hash, bool) {
	if account == nil {
		return hash{}, false
	}
	value, ok := account.GetRaw(core.FieldNamePassword).(*core.PasswordFieldValue)
	if !ok || value.LastError != nil {
		return hash{}, false
	}
	return parseHash(value.Hash)
}

// waste takes the time that checking a password of that cost takes.
func waste(ctx context.Context, cost int) error {
	_, err := sum(ctx, "", make([]byte, saltSize), cost)
	return err
}

// replaceHash writes the one column. PocketBase would take a saved password for a changed one and end all sessions of the
// user. A password that was changed meanwhile stays.
func replaceHash(ctx context.Context, app core.App, account *core.Record, password string, cost int) error {
	fresh, err := newHash(ctx, password, cost)
	if err != nil {
		return err
	}
	old := account.GetString(core.FieldNamePassword + ":hash")
	_, err = app.NonconcurrentDB().Update(account.Collection().Name, dbx.Params{core.FieldNamePassword: fresh.String()},
		dbx.HashExp{core.FieldNameId: account.Id, core.FieldNamePassword: old}).WithContext(ctx).Execute()
	if err != nil {
		return err
	}
	// What is saved of this record later in the request must not bring the old hash back.
	account.SetRaw(core.FieldNamePassword, &core.PasswordFieldValue{Hash: fresh.String()})
	return nil
}
