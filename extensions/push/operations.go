package push

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/idempotency"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/push/apns"
	"github.com/satchelbase/satchel/extensions/push/credentials"
	"github.com/satchelbase/satchel/extensions/push/expo"
	"github.com/satchelbase/satchel/extensions/push/fcm"
	"github.com/satchelbase/satchel/extensions/push/sender"
	"github.com/satchelbase/satchel/extensions/push/webpush"
)

// ErrRefused says that a provider does not know the credentials, or not for this.
var ErrRefused = &extensions.Code{Name: "push.credentials_refused", Status: http.StatusUnprocessableEntity, Title: "The provider refuses the credentials"}

// connection is credentials as an admin gives them: those of one platform.
type connection struct {
	APNs *struct {
		Key    string `json:"key" minLength:"1" maxLength:"65536" description:"the text of the .p8 file"`
		KeyID  string `json:"keyId" maxLength:"20"`
		TeamID string `json:"teamId" maxLength:"20"`
		Topic  string `json:"topic" maxLength:"255" description:"bundle id of the app"`
	} `json:"apns,omitempty"`
	FCM *struct {
		Account string `json:"account" minLength:"1" maxLength:"65536" description:"the text of the service account's file"`
	} `json:"fcm,omitempty"`
	WebPush *struct {
		Subject string `json:"subject" maxLength:"255" description:"mailto: or https:"`
		NewKey  bool   `json:"newKey,omitempty" description:"ends all subscriptions; otherwise the key stays that there is"`
	} `json:"webpush,omitempty"`
	Expo *struct {
		AccessToken string `json:"accessToken,omitempty" maxLength:"512" description:"if the project asks for one"`
	} `json:"expo,omitempty"`
}

// saved is the credentials that are kept, and whether the provider could be asked.
type saved struct {
	credentials.Entry

	Checked bool `json:"checked"`
}

// verdict is what a provider says of credentials. It is kept with the idempotency key, and has no secret.
type verdict struct {
	Outcome sender.Outcome `json:"outcome"`
	Reason  string         `json:"reason"`
	Advice  string         `json:"advice"`
}

type platformInput struct {
	Platform string `json:"platform" enum:"apns,fcm,webpush,expo"`
}

type nothing struct{}

// connections are the operations on credentials. Whoever changes them decides in whose name the app speaks, so only owners
// may, shortly after they have signed in, and no API key.
func (p *Push) connections() []operations.Operation {
	owners := operations.Callers{Collections: []string{}, Role: "owner", Recent: true}
	return []operations.Operation{
		operations.Define(operations.Spec[nothing, []credentials.Entry]{
			Name: "push.credentials", Summary: "List the providers that are connected, without secrets", Read: true,
			Callers: operations.Callers{Collections: []string{}, Role: "operator"},
			Do:      func(c *operations.Call, _ nothing) ([]credentials.Entry, error) { return credentials.List(c.App) },
		}),
		operations.Define(operations.Spec[connection, saved]{
			Name: "push.credentials.save", Summary: "Ask a provider whether it knows credentials, and keep them in place of older ones",
			Callers: owners, Limit: operations.Limit{Count: 20, Per: time.Hour}, Codes: []*extensions.Code{ErrRefused}, Steps: p.save,
		}),
		operations.Define(operations.Spec[platformInput, []credentials.Entry]{
			Name: "push.credentials.remove", Summary: "Delete the credentials of a platform, whose devices get nothing from then on", KeyOptional: true,
			Callers: owners, Audit: []string{"platform"}, Codes: []*extensions.Code{api.ErrNotFound},
			Do: func(c *operations.Call, in platformInput) ([]credentials.Entry, error) {
				found, err := p.keeper.Remove(c.App, sender.Platform(in.Platform))
				if err == nil && !found {
					err = api.ErrNotFound
				}
				if err != nil {
					return nil, err
				}
				return credentials.List(c.App)
			},
		}),
	}
}

// save checks credentials, asks the provider between two transactions, and keeps them sealed. What is kept of the request is
// a keyed digest of it; no step has a secret in its result.
func (p *Push) save(c *operations.Call, steps *idempotency.Steps, in connection) (saved, error) {
	set, err := p.set(in)
	if err != nil {
		return saved{}, err
	}
	c.Detail("platform", string(set.Platform()))
	s, _, err := p.keeper.Make(set)
	if err != nil {
		return saved{}, unusableBody(set.Platform(), err)
	}
	defer s.Close()
	said, err := idempotency.Call(steps, "checked", func(ctx context.Context, _ string) (verdict, error) {
		ctx, cancel := context.WithTimeout(ctx, asking)
		defer cancel()
		r := s.Check(ctx)
		return verdict{r.Outcome, reason(r), advice(set.Platform(), r)}, nil
	})
	if err != nil {
		return saved{}, err
	}
	if said.Outcome == sender.Unauthorized || said.Outcome == sender.Rejected {
		return saved{}, api.Fail(ErrRefused, said.Reason+"; "+said.Advice)
	}
	if err := p.deps.Vault.Unlock(); err != nil {
		return saved{}, fmt.Errorf("unlock vault: %w", err)
	}
	entry, err := idempotency.Local(steps, "saved", func(tx core.App) (credentials.Entry, error) { return p.keeper.Save(tx, set) })
	if err != nil {
		return saved{}, err
	}
	c.Detail("facts", entry.Facts)
	return saved{entry, said.Outcome == sender.Accepted}, nil
}

// set is the credentials that an admin gives. The key of Web Push is this server's own.
func (p *Push) set(in connection) (credentials.Set, error) {
	var set credentials.Set
	given := 0
	if in.APNs != nil {
		given++
		set.APNs = &apns.Credentials{Key: in.APNs.Key, KeyID: in.APNs.KeyID, TeamID: in.APNs.TeamID, Topic: in.APNs.Topic}
	}
	if in.FCM != nil {
		given++
		set.FCM = &fcm.Credentials{Account: in.FCM.Account}
	}
	if in.Expo != nil {
		given++
		set.Expo = &expo.Credentials{AccessToken: in.Expo.AccessToken}
	}
	if in.WebPush != nil {
		given++
		own, err := p.ownKey(in.WebPush.Subject, in.WebPush.NewKey)
		if err != nil {
			return set, err
		}
		set.WebPush = &own
	}
	if given != 1 {
		return set, api.InvalidBody(api.FieldError{Field: "", Code: api.ErrValidation.Name, Message: "must have one of apns, fcm, webpush and expo"})
	}
	return set, nil
}

// ownKey is the key of Web Push that there is, or a new one.
func (p *Push) ownKey(subject string, fresh bool) (webpush.Credentials, error) {
	set, err := p.keeper.Current(sender.WebPush)
	switch {
	case err == nil && !fresh:
		return webpush.Credentials{PrivateKey: set.WebPush.PrivateKey, Subject: subject}, nil
	case err == nil || errors.Is(err, credentials.ErrNotConnected):
		made, err := webpush.Generate(subject)
		if err != nil {
			return made, unusableBody(sender.WebPush, err)
		}
		return made, nil
	}
	return webpush.Credentials{}, err
}

// unusableBody names the members that are wrong.
func unusableBody(p sender.Platform, err error) error {
	var fields []api.FieldError
	for text := range strings.SplitSeq(err.Error(), "\n") {
		field, why, named := strings.Cut(text, ": ")
		if !named {
			field, why = "", text
		}
		fields = append(fields, api.FieldError{Field: strings.TrimSuffix(string(p)+"."+field, "."), Code: api.ErrValidation.Name, Message: why})
	}
	return api.InvalidBody(fields...)
}
