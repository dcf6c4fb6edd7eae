package identities

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"

	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
)

const (
	// maxLinks bounds the identities of one account.
	maxLinks = 20

	// attempts bounds how often an exchange starts again because another one of the same person was faster.
	attempts = 3
)

// outcome is where a token leads.
type outcome struct {
	record   *core.Record
	link     *link
	isNew    bool // the record
	linked   bool // the link
	repeated bool // the same device sent the same token again
}

// resolve finds or makes the account of a person in one transaction, together with using up the token. caller, when
// there is one, gets an identity that nobody has; strict refuses one that somebody else has, otherwise that one signs in.
func (s *service) resolve(e *core.RequestEvent, c *claims, collection *core.Collection, caller *core.Record, strict bool) (*outcome, error) {
	info, err := e.RequestInfo()
	if err != nil {
		return nil, fmt.Errorf("read request: %w", err)
	}
	r := &resolver{service: s, event: e, info: info, claims: c, collection: collection, caller: caller, strict: strict}
	for try := 1; ; try++ {
		var out *outcome
		err := e.App.RunInTransaction(func(app core.App) error {
			var err error
			out, err = r.run(app, api.DeviceID(e.Request))
			return err
		})
		if err == nil {
			return out, nil
		}
		if !conflict(err) || try == attempts {
			return nil, err
		}
	}
}

// resolver is one run of resolve.
type resolver struct {
	*service
	event      *core.RequestEvent
	info       *core.RequestInfo
	claims     *claims
	collection *core.Collection
	caller     *core.Record
	strict     bool
}

func (r *resolver) run(app core.App, device string) (*outcome, error) {
	repeated, err := claimToken(app, r.claims, device)
	if err != nil {
		return nil, err
	}
	out, err := r.find(app)
	if err != nil {
		return nil, err
	}
	if out == nil {
		if out, err = r.add(app); err != nil {
			return nil, err
		}
	}
	out.repeated = repeated
	return out, nil
}

// find returns the account that has the identity, nil when none has. A link whose record went without a hook, by raw SQL,
// is no link.
func (r *resolver) find(app core.App) (*outcome, error) {
	known, err := findLink(app, r.claims, r.collection.Id)
	if err != nil || known == nil {
		return nil, err
	}
	record, err := app.FindRecordById(r.collection, known.Record)
	if errors.Is(err, sql.ErrNoRows) {
		_, err = deleteLinks(app, map[string]any{"id": known.ID})
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("find user: %w", err)
	}
	if r.strict && record.Id != r.caller.Id {
		return nil, api.Fail(ErrLinkTaken, "")
	}
	return &outcome{record: record, link: known}, touchLink(app, known, r.claims)
}

// add ties an identity that nobody has to an account: the caller's, that with the same trusted address, or a new one.
func (r *resolver) add(app core.App) (*outcome, error) {
	out := &outcome{linked: true}
	var err error
	if r.caller != nil {
		out.record, err = r.toCaller(app)
	} else if out.record, err = r.byEmail(app); err == nil && out.record == nil {
		out.isNew = true
		out.record, err = r.create(app)
	}
	if err != nil {
		return nil, err
	}
	if out.link, err = insertLink(app, r.claims, out.record); err != nil {
		return nil, err
	}
	if r.deps.Upgraded != nil {
		if err := r.deps.Upgraded(app, out.record); err != nil {
			return nil, fmt.Errorf("note way to sign in: %w", err)
		}
	}
	return out, r.audit(app, r.event, "identities.link", "success", out.record, r.claims)
}

// toCaller makes sure that the caller can take one more identity. An account without an address, such as an anonymous
// one, gets the trusted address with it, unless somebody has it.
func (r *resolver) toCaller(app core.App) (*core.Record, error) {
	record, err := app.FindRecordById(r.collection, r.caller.Id)
	if err != nil {
		return nil, fmt.Errorf("find caller: %w", err)
	}
	links, err := linksOf(app, record)
	if err != nil {
		return nil, err
	}
	if len(links) >= maxLinks {
		return nil, api.Fail(api.ErrConflict, "the account has too many identities")
	}
	if record.Email() != "" || r.claims.email == "" {
		return record, nil
	}
	if owner, err := r.owner(app); err != nil || owner != nil {
		return record, err
	}
	record.SetEmail(r.claims.email)
	record.SetVerified(true)
	// The account's other identities are its owner's: nobody else could have left them with this address.
	return record, save(app.SaveWithContext(context.WithValue(r.event.Request.Context(), keepLinks{}, true), record))
}

// byEmail is the account with the address that the person is trusted to own, nil when there is none.
func (r *resolver) byEmail(app core.App) (*core.Record, error) {
	if r.claims.email == "" {
		return nil, nil //nolint:nilnil // no account is an answer
	}
	record, err := r.owner(app)
	switch {
	case err != nil || record == nil:
		return nil, err
	case !record.Verified():
		return record, r.takeOver(app, record)
	case !r.claims.provider.linkVerified:
		return nil, api.Fail(ErrAccountExists, "sign in to it the usual way, then link this provider")
	}
	return record, nil
}

// owner is who has the trusted address, also in the case in which the provider writes it.
func (r *resolver) owner(app core.App) (*core.Record, error) {
	for _, email := range []string{r.claims.email, strings.ToLower(r.claims.email)} {
		record, err := app.FindAuthRecordByEmail(r.collection, email)
		if err == nil {
			return record, nil
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return nil, fmt.Errorf("find user by e-mail: %w", err)
		}
	}
	return nil, nil //nolint:nilnil // no account is an answer
}

// takeOver gives an account that nobody has proved to own to the owner of its address. Whoever made it may have done so to
// wait inside: the password, the sessions, the identities and half-finished sign-ins end.
func (r *resolver) takeOver(app core.App, record *core.Record) error {
	if _, err := deleteLinks(app, ofRecord(record)); err != nil {
		return err
	}
	if err := app.DeleteAllExternalAuthsByRecord(record); err != nil {
		return fmt.Errorf("delete external auths: %w", err)
	}
	if err := errors.Join(app.DeleteAllMFAsByRecord(record), app.DeleteAllOTPsByRecord(record), app.DeleteAllAuthOriginsByRecord(record)); err != nil {
		return fmt.Errorf("delete half-finished sign-ins: %w", err)
	}
	record.SetRandomPassword() // and a new token key
	record.SetVerified(true)
	if err := save(app.Save(record)); err != nil {
		return err
	}
	return r.revoke(app, record, "account_taken_over")
}

// create makes a new account under the collection's create rule, as PocketBase does for OAuth2. It is verified as there:
// it has either no address or one that is, and a later change of address must not count as the first proof.
func (r *resolver) create(app core.App) (*core.Record, error) {
	record := core.NewRecord(r.collection)
	record.SetRandomPassword()
	record.SetVerified(!r.claims.anonymous)
	body := map[string]any{}
	if r.claims.email != "" {
		record.SetEmail(strings.ToLower(r.claims.email))
		body[core.FieldNameEmail] = record.Email()
	}
	if field, ok := r.collection.Fields.GetByName(r.collection.OAuth2.MappedFields.Name).(*core.TextField); ok && r.claims.name != "" {
		if field.ValidatePlainValue(r.claims.name) == nil {
			record.Set(field.Name, r.claims.name)
			body[field.Name] = r.claims.name
		}
	}
	if err := save(app.Save(record)); err != nil {
		return nil, err
	}
	info := r.info.Clone()
	info.Auth, info.Context, info.Body = r.info.Auth, core.RequestInfoContextOAuth2, body
	allowed, err := app.CanAccessRecord(record, info, r.collection.CreateRule)
	if err != nil {
		return nil, fmt.Errorf("check create rule: %w", err)
	}
	if !allowed {
		return nil, api.Fail(api.ErrForbidden, "new accounts are not allowed")
	}
	return record, nil
}

// save makes what the collection's fields refuse a problem that names them.
func save(err error) error {
	if fields, ok := errors.AsType[validation.Errors](err); ok {
		p := api.Fail(api.ErrValidation, "the account does not fit its collection").Because(err)
		for name, field := range fields {
			p.Errors = append(p.Errors, api.FieldError{Field: name, Code: "validation_invalid", Message: field.Error()})
		}
		return p
	}
	if err != nil {
		return fmt.Errorf("save user: %w", err)
	}
	return nil
}

// audit records what was done with an identity. The subject of a person is named by its provider alone.
func (s *service) audit(app core.App, e *core.RequestEvent, action, result string, record *core.Record, c *claims) error {
	if s.deps.Audit == nil {
		return nil
	}
	details := map[string]any{}
	if c != nil {
		details["provider"] = c.provider.name
		if c.actor != nil {
			details["actor"] = c.actor
		}
	}
	if err := s.deps.Audit(app, e, action, result, record, details); err != nil {
		return fmt.Errorf("audit: %w", err)
	}
	return nil
}

func (s *service) revoke(app core.App, record *core.Record, reason string) error {
	if s.deps.RevokeSessions == nil {
		return nil
	}
	if err := s.deps.RevokeSessions(app, record, reason); err != nil {
		return fmt.Errorf("revoke sessions: %w", err)
	}
	return nil
}
