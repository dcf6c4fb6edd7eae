package identities

import (
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions/api"
)

// exchanged is the answer to an exchange.
type exchanged struct {
	Session json.RawMessage `json:"session"`
	Record  json.RawMessage `json:"record"`
	IsNew   bool            `json:"isNew"`
}

// exchange trades a provider's token for a session.
func (s *service) exchange(e *core.RequestEvent) error {
	in, collection, c, err := s.read(e)
	if err != nil {
		return err
	}
	caller := e.Auth
	if caller != nil && caller.Collection().Id != collection.Id {
		caller = nil // somebody, but not of those who could have this identity
	}
	if caller != nil {
		if caller, err = s.linking(e, c, collection, caller); err != nil {
			return err
		}
	}
	out, err := s.resolve(e, c, collection, caller, false)
	if err != nil {
		return s.refused(e, c, err)
	}
	s.keepAppleToken(e, c, out, in.Code)
	device := api.DeviceID(e.Request)
	if out.repeated && in.MFAID == "" {
		if answer, ok := s.answers.get(c.hash, device, out.record); ok {
			return api.Write(e, http.StatusOK, answer)
		}
	}
	if c.actor != nil {
		e.Set(ActorKey, c.actor)
	}
	// The same method as PocketBase's own sign-in with a provider, so that one provider is never two factors.
	session, record, err := s.deps.SignIn(e, out.record, core.MFAMethodOAuth2)
	if err != nil {
		return err
	}
	if err := s.audit(e.App, e, "identities.exchange", "success", out.record, c); err != nil {
		return err
	}
	answer := exchanged{Session: session, Record: record, IsNew: out.isNew}
	s.answers.put(c.hash, device, out.record, answer)
	return api.Write(e, http.StatusOK, answer)
}

// sync is the exchange at an address outside of /api/v1, where PocketBase answers 400 to an error that it does not know.
func (s *service) sync(e *core.RequestEvent) error {
	err := s.exchange(e)
	var problem *api.Problem
	var stock *router.ApiError
	if err == nil || e.Written() || errors.As(err, &problem) || errors.As(err, &stock) {
		return err
	}
	return api.Fail(api.ErrInternal, "").Because(err)
}

// linking decides whether an exchange by somebody who is signed in is a link: only an identity that nobody has is, and
// only after a recent sign-in.
func (s *service) linking(e *core.RequestEvent, c *claims, collection *core.Collection, caller *core.Record) (*core.Record, error) {
	known, err := findLink(e.App, c, collection.Id)
	if err != nil || known != nil {
		return nil, err
	}
	return caller, s.requireRecent(e)
}

// read parses the request and verifies its token.
func (s *service) read(e *core.RequestEvent) (input, *core.Collection, *claims, error) {
	in, err := readInput(e)
	if err != nil {
		return in, nil, nil, err
	}
	v := s.verifiers[in.Provider]
	if v == nil {
		return in, nil, nil, api.Fail(ErrProviderUnknown, "it can be one of: "+strings.Join(s.cfg.Providers, ", "))
	}
	if in.Collection == "" {
		in.Collection = s.cfg.Collections[0]
	}
	collection, err := e.App.FindCachedCollectionByNameOrId(in.Collection)
	if err != nil || !collection.IsAuth() || collection.Name == core.CollectionNameSuperusers || !slices.Contains(s.cfg.Collections, collection.Name) {
		return in, nil, nil, &api.Problem{Code: api.ErrValidation, Errors: []api.FieldError{
			{Field: "collection", Code: "validation_invalid_value", Message: "Tokens cannot be exchanged for this collection."},
		}}
	}
	c, err := v.verify(e.Request.Context(), in)
	if err != nil {
		return in, nil, nil, s.refused(e, &claims{provider: v.provider}, err)
	}
	return in, collection, c, nil
}

// refused records that a token was not taken.
func (s *service) refused(e *core.RequestEvent, c *claims, err error) error {
	p, ok := errors.AsType[*api.Problem](err)
	if !ok || (p.Code != ErrTokenInvalid && p.Code != ErrTokenReused && p.Code != ErrNonceInvalid && p.Code != ErrAccountExists) {
		return err
	}
	if auditErr := s.audit(e.App, e, "identities.exchange", p.Code.Name, nil, c); auditErr != nil {
		return auditErr
	}
	return err
}

// maxAnswers bounds the memory of answers, which have a few kilobytes each. Past it a repeated token gets a new session.
const maxAnswers = 1000

// answers keeps what was answered to a token for as long as the same device may send it again, so that a lost answer does
// not leave a session behind that nobody uses. It is safe for concurrent use.
type answers struct {
	mu   sync.Mutex
	kept map[string]kept
}

type kept struct {
	device, record, tokenKey string
	answer                   exchanged
	until                    time.Time
}

func newAnswers() *answers { return &answers{kept: map[string]kept{}} }

// get returns nothing when the record's token key has changed: the sessions of before have ended with it.
func (a *answers) get(hash []byte, device string, record *core.Record) (exchanged, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	k, ok := a.kept[string(hash)]
	ok = ok && time.Now().Before(k.until) && k.device == device && k.record == record.Id && k.tokenKey == record.TokenKey()
	return k.answer, ok
}

func (a *answers) put(hash []byte, device string, record *core.Record, answer exchanged) {
	if device == "" {
		return // it cannot be repeated
	}
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.kept) >= maxAnswers {
		for h, k := range a.kept {
			if !now.Before(k.until) {
				delete(a.kept, h)
			}
		}
	}
	if len(a.kept) < maxAnswers {
		a.kept[string(hash)] = kept{device: device, record: record.Id, tokenKey: record.TokenKey(), answer: answer, until: now.Add(repeatWindow)}
	}
}
