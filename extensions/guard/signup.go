package guard

import (
	"errors"
	"fmt"
	"html"
	"net/http"
	"net/mail"
	"slices"

	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/core/validators"
	"github.com/pocketbase/pocketbase/tools/mailer"
	"github.com/pocketbase/pocketbase/tools/routine"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/pb"
)

// signUp is around the creation of an account through the API. The rules have passed and the password is hashed.
func (g *guard) signUp(e *core.RecordRequestEvent) error {
	if !e.Collection.IsAuth() {
		return e.Next()
	}
	info, err := e.RequestInfo()
	if err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	// Superusers and those who manage accounts need the truth. With OAuth2, the account is signed in by what comes next.
	manages := e.Auth != nil && (e.HasSuperuserAuth() || e.Collection.ManageRule != nil)
	if manages || info.Context == core.RequestInfoContextOAuth2 {
		return e.Next()
	}
	if g.mode == Equal && info.Context == core.RequestInfoContextBatch {
		// Other requests of the batch could use the new account, and would fail without it.
		return api.Fail(ErrSignUpInBatch, "send the sign-up alone, outside of a batch")
	}
	err = e.Next()
	if err == nil || !slices.Contains(pb.NotUnique(err), core.FieldNameEmail) {
		return err
	}
	if g.mode == Equal {
		return g.pretend(e)
	}
	if g.EmailTaken != nil && api.RequestOf(e.Request.Context()).Versioned {
		p := api.Fail(g.EmailTaken, "")
		p.Errors = []api.FieldError{{Field: core.FieldNameEmail, Code: g.EmailTaken.Name, Message: g.EmailTaken.Title}}
		return p
	}
	return err
}

// pretend answers as if the account had been created. Everything else about it is valid, as far as PocketBase has looked;
// what only the insert can show is found out by an insert that is taken back. Like a true sign-up, it costs one commit.
func (g *guard) pretend(e *core.RecordRequestEvent) error {
	due := false
	err := e.App.RunInTransaction(func(tx core.App) error {
		if err := rehearse(tx, e.Record); err != nil {
			return err
		}
		var err error
		due, err = noteAddress(tx, e.Collection, e.Record.Email())
		return err
	})
	if invalid, ok := errors.AsType[validation.Errors](err); ok {
		return e.BadRequestError("Failed to create record", invalid)
	}
	if err != nil {
		return fmt.Errorf("rehearse sign-up: %w", err)
	}
	g.tellOwner(e.RequestEvent, e.Collection, e.Record.Email(), due)
	if err := apis.EnrichRecord(e.RequestEvent, e.Record); err != nil {
		return fmt.Errorf("enrich record: %w", err)
	}
	return e.JSON(http.StatusOK, e.Record)
}

// rehearse inserts the record with an address that nobody has, and takes the insert back, also within the transaction of
// a caller. It runs no hooks. The error holds the other fields whose values others have.
func rehearse(tx core.App, record *core.Record) error {
	row, err := record.DBExport(tx)
	if err != nil {
		return fmt.Errorf("export record: %w", err)
	}
	row[core.FieldNameEmail] = core.GenerateDefaultRandomId() + "@guard.invalid" // RFC 2606: exists nowhere
	run := func(sql string) error {
		_, err := tx.NonconcurrentDB().NewQuery(sql).Execute()
		return err
	}
	if err := run("SAVEPOINT guard_sign_up"); err != nil {
		return fmt.Errorf("begin rehearsal: %w", err)
	}
	_, insertErr := tx.NonconcurrentDB().Insert(record.TableName(), row).Execute()
	for _, sql := range []string{"ROLLBACK TO guard_sign_up", "RELEASE guard_sign_up"} {
		if err := run(sql); err != nil {
			return fmt.Errorf("take rehearsal back: %w", err)
		}
	}
	return validators.NormalizeUniqueIndexError(insertErr, record.TableName(), record.Collection().Fields.FieldNames())
}

// tellOwner sends a mail in the background, as PocketBase does, so that the answer does not wait for it.
func (g *guard) tellOwner(e *core.RequestEvent, c *core.Collection, address string, due bool) {
	g.hidden.Add(1)
	owner, err := e.App.FindAuthRecordByEmail(c, address)
	if err != nil {
		owner = nil // deleted meanwhile
	}
	g.audit(e, actionHidden, "hidden", owner, nil)
	if owner == nil || !due {
		return
	}
	app, logger := g.host.App, g.host.Logger
	routine.FireAndForget(func() {
		if err := app.NewMailClient().Send(notice(app, owner.Email())); err != nil {
			logger.Error("the owner of a taken address was not told", "error", err)
		}
	})
}

// notice holds nothing that the sender of the sign-up has chosen.
func notice(app core.App, address string) *mailer.Message {
	meta := app.Settings().Meta
	name := html.EscapeString(meta.AppName)
	return &mailer.Message{
		From:    mail.Address{Name: meta.SenderName, Address: meta.SenderAddress},
		To:      []mail.Address{{Address: address}},
		Subject: "You already have an account at " + meta.AppName,
		HTML: "<p>Hello,</p>\n<p>Somebody has just tried to use this address for an account at " + name + ". It has one already, so nothing was changed.</p>\n" +
			"<p>If it was you, sign in, or ask for a new password if you do not remember it. If it was not you, there is nothing to do.</p>\n" +
			"<p>" + name + "</p>",
	}
}

// changeEmail answers a request to change to a taken address as if it were free.
func (g *guard) changeEmail(e *core.RequestEvent) error {
	err := e.Next()
	if err == nil || g.mode != Equal || e.Auth == nil || e.Request.Pattern != "POST /api/collections/{collection}/request-email-change" || !pb.NewEmailTaken(err) {
		return err
	}
	form := struct {
		NewEmail string `json:"newEmail" form:"newEmail"`
	}{}
	if err := e.BindBody(&form); err != nil {
		return e.BadRequestError("", err)
	}
	c := e.Auth.Collection()
	due, err := noteAddress(e.App, c, form.NewEmail)
	if err != nil {
		return err
	}
	g.tellOwner(e, c, form.NewEmail, due)
	return e.NoContent(http.StatusNoContent)
}

// changeToFreeEmail writes what a change to a taken address writes.
func (g *guard) changeToFreeEmail(e *core.RecordRequestEmailChangeRequestEvent) error {
	if _, err := noteAddress(e.App, e.Collection, e.NewEmail); err != nil {
		return err
	}
	return e.Next()
}

// sendLater sends the mail of a change in the background: PocketBase sends it before it answers, and the wait would show
// that the address is free.
func (g *guard) sendLater(e *core.MailerRecordEvent) error {
	routine.FireAndForget(func() {
		if err := e.Next(); err != nil {
			g.host.Logger.Error("the mail to confirm a change of address was not sent", "error", err)
		}
	})
	return nil
}
