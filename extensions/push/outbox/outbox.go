// Package outbox sends a notification to many devices and knows what became of it on each.
//
// A message is a row that is written in the transaction of whatever asks for it. A job fans it out: page by page, in one
// transaction each, it writes a delivery for every device and asks for a job that sends to a chunk of up to [chunkSize].
// That one asks the devices' owners' wishes, sends, and writes the results together with those of others, some hundred in a
// transaction. The rows are the truth: a chunk that is taken up again after a crash sends to those that have no result
// yet, so none is lost, and only pushes whose result was not yet written are sent twice. These have the message's id as
// their collapse key, by which devices show one of the two.
//
// Every delivery ends: accepted, dead, rejected, failed, expired, skipped, collapsed or stopped. When the last chunk is
// done, the message is, and has its totals.
package outbox

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/internal/serial"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/push/batch"
	"github.com/satchelbase/satchel/extensions/push/device"
	"github.com/satchelbase/satchel/extensions/push/ending"
	"github.com/satchelbase/satchel/extensions/push/inbox"
	"github.com/satchelbase/satchel/extensions/push/message"
	"github.com/satchelbase/satchel/extensions/push/meter"
	"github.com/satchelbase/satchel/extensions/push/personal"
	"github.com/satchelbase/satchel/extensions/push/sender"
	"github.com/satchelbase/satchel/extensions/push/template"
	"github.com/satchelbase/satchel/extensions/push/track"
)

// Codes of what is refused.
var (
	ErrKeyReused = &extensions.Code{Name: "push.key_reused", Status: http.StatusConflict, Title: "Another message has this key"}
	ErrEnded     = &extensions.Code{Name: "push.ended", Status: http.StatusConflict, Title: "The message has been sent or cancelled"}
)

// Codes lists them.
func Codes() []*extensions.Code {
	return []*extensions.Code{ErrKeyReused, ErrEnded, track.ErrDelivery, inbox.ErrNone}
}

// Config is how long things are kept.
type Config struct {
	Keep     time.Duration // of deliveries and texts, behind the end of the message
	KeepSums time.Duration // of the totals
	Inbox    inbox.Options
}

// Deps is what the package needs of others.
type Deps struct {
	Jobs    *jobs.Jobs
	Devices *device.Registry
	Vault   *secret.Vault

	// Sender lends the sender of a platform.
	Sender func(ctx context.Context, p sender.Platform) (sender.Sender, error)

	// Live returns the sessions with which the account is connected now, and whether it is at all. Nil: it never is.
	Live func(collection, id string) (sessions []string, connected bool)

	// Template returns the texts that messages may name, and their version. Nil texts: there are none of the name.
	Template func(app core.App, name string) (template.Texts, int, error)
}

// Outbox is the feature. It is safe for concurrent use once it is open.
type Outbox struct {
	cfg       Config
	deps      Deps
	numbers   serial.Counter
	preparing sync.Mutex
	writer    batch.Writer[result]
	inbox     *inbox.Inbox
	meter     *meter.Meter
	now       func() time.Time
	app       core.App
	log       *slog.Logger
}

// New returns an outbox and declares its jobs.
func New(cfg Config, deps Deps) *Outbox {
	o := &Outbox{cfg: cfg, deps: deps, now: time.Now, meter: meter.New(), inbox: inbox.New(cfg.Inbox, deps.Devices), log: slog.New(slog.DiscardHandler)}
	o.writer.Save = o.save
	deps.Jobs.Add(o.kinds()...)
	return o
}

// PrepareInbox makes the collection of the inbox if it is wanted and not there.
func (o *Outbox) PrepareInbox(app core.App) error { return o.inbox.Prepare(app) }

// Bind tells the outbox its application.
func (o *Outbox) Bind(h *extensions.Host) {
	o.app, o.log = h.App, h.Logger
	o.personal().Bind(h.App)
}

// Sent is what becomes of a message that is asked for.
type Sent struct {
	ID        string    `json:"id"`
	DueAt     time.Time `json:"dueAt"`
	Duplicate bool      `json:"duplicate"` // there was one with the same key
}

// Send asks for a message in the transaction of tx if it is one: it is sent if that is committed. What is wrong with it is a
// [api.Problem].
func (o *Outbox) Send(tx core.App, m message.Message) (Sent, error) {
	now := o.now()
	m.To = m.To.Clean()
	asked, err := m.Encode()
	if err != nil {
		return Sent{}, Invalid(err)
	}
	sum := sha256.Sum256([]byte(asked))
	if m.Key != "" && m.Template != "" { // before the template is asked for, which may be another one by now
		if sent, err := repeated(tx, m.Key, sum); !errors.Is(err, sql.ErrNoRows) {
			return sent, err
		}
	}
	set, err := o.Resolve(tx, &m)
	if err != nil {
		return Sent{}, err
	}
	if err := m.Check(set, now); err != nil {
		return Sent{}, Invalid(err)
	}
	if (m.Inbox || m.Unread) && o.cfg.Inbox.Name == "" {
		return Sent{}, Invalid(errors.New("inbox: there is none; see SATCHEL_PUSH_INBOX"))
	}
	if err := message.CheckTarget(tx, m.To); err != nil {
		return Sent{}, Invalid(err)
	}
	spec, err := m.Encode()
	if err != nil {
		return Sent{}, Invalid(err)
	}
	var sent Sent
	err = tx.RunInTransaction(func(tx core.App) error {
		sent, err = o.insert(tx, &m, spec, sum, now)
		return err
	})
	return sent, err
}

// Resolve puts the texts of a template in, so that a message that waits changes neither with the template nor with the
// program, and compiles them. A message without texts has no set. What is wrong with the message is a [api.Problem].
func (o *Outbox) Resolve(app core.App, m *message.Message) (*template.Set, error) {
	texts, err := m.ByLanguage()
	if err != nil {
		return nil, Invalid(err)
	}
	if m.Template != "" {
		if texts != nil {
			return nil, Invalid(errors.New("template: it excludes title, body and texts"))
		}
		if m.Texts, m.Version, err = o.deps.Template(app, m.Template); err != nil {
			return nil, err
		}
		if texts = m.Texts; texts == nil {
			return nil, Invalid(fmt.Errorf("template: there is no %.100q", m.Template))
		}
	}
	if texts == nil {
		return nil, nil
	}
	set, err := template.Compile(texts)
	if err != nil {
		return nil, Invalid(err)
	}
	return set, nil
}

// Invalid is the problem of a message with a mistake.
func Invalid(err error) error {
	return api.InvalidBody(api.FieldError{Field: "message", Code: api.ErrValidation.Name, Message: err.Error()})
}

// insert writes the message. sum is that of what was asked for, so that it is known again when the template has changed.
func (o *Outbox) insert(tx core.App, m *message.Message, spec string, sum [sha256.Size]byte, now time.Time) (Sent, error) {
	due := m.Due(now)
	if due.Before(now) {
		due = now
	}
	id := o.numbers.Next(now)
	n, err := exec(tx, `INSERT INTO `+messagesTable+` (id, key, digest, state, spec, target, category, template, template_version, due_at, ends_at, created_at)
		VALUES ({:id}, {:key}, {:digest}, {:state}, {:spec}, {:target}, {:category}, {:template}, {:version}, {:due}, {:ends}, {:now})
		ON CONFLICT (key) WHERE key <> '' DO NOTHING`, dbx.Params{
		"id": id, "key": m.Key, "digest": sum[:], "state": scheduled, "spec": spec, "target": m.To.Kind(), "category": m.Category,
		"template": m.Template, "version": m.Version, "due": due.UnixMilli(), "ends": m.Ends(due).UnixMilli(), "now": now.UnixMilli(),
	})
	if err != nil {
		return Sent{}, fmt.Errorf("keep message: %w", err)
	}
	if n == 0 {
		return repeated(tx, m.Key, sum)
	}
	job, err := o.deps.Jobs.Enqueue(tx, fanoutKind, fanout{Message: serial.Format(id)}, jobs.Options{At: due, Priority: m.Urgency()})
	if err != nil {
		return Sent{}, err
	}
	if _, err := exec(tx, `UPDATE `+messagesTable+` SET job = {:job} WHERE id = {:id}`, dbx.Params{"job": job, "id": id}); err != nil {
		return Sent{}, fmt.Errorf("keep job of message: %w", err)
	}
	if err := personal.Name(tx, id, m.To); err != nil {
		return Sent{}, err
	}
	return Sent{ID: serial.Format(id), DueAt: due.UTC().Truncate(time.Millisecond)}, nil
}

// repeated is the message that has the key. What differs is another message, and a mistake.
func repeated(tx core.App, key string, sum [sha256.Size]byte) (Sent, error) {
	var r row
	err := tx.NonconcurrentDB().NewQuery(`SELECT * FROM ` + messagesTable + ` WHERE key = {:key} AND key <> ''`).Bind(dbx.Params{"key": key}).One(&r)
	if err != nil {
		return Sent{}, fmt.Errorf("find message with the key: %w", err)
	}
	if [sha256.Size]byte(r.Digest) != sum {
		return Sent{}, api.Fail(ErrKeyReused, "the message with this key says something else")
	}
	return Sent{ID: serial.Format(r.ID), DueAt: time.UnixMilli(r.DueAt).UTC(), Duplicate: true}, nil
}

// ends is what ends messages.
func (o *Outbox) ends() ending.Messages {
	return ending.Messages{Jobs: o.deps.Jobs, Release: o.release}
}

// Cancel stops a message: from the commit on, nothing more is sent. Pushes that are under way end as they would.
func (o *Outbox) Cancel(tx core.App, text string) (View, error) {
	id, err := parse(text)
	if err != nil {
		return View{}, api.ErrNotFound
	}
	err = tx.RunInTransaction(func(tx core.App) error {
		cancelled, err := o.ends().Cancel(tx, id)
		if err != nil || cancelled {
			return err
		}
		if _, err := find(tx, id); err != nil {
			return err
		}
		return api.Fail(ErrEnded, "there is nothing left to cancel")
	})
	if errors.Is(err, errNone) {
		return View{}, api.ErrNotFound
	}
	if err != nil {
		return View{}, err
	}
	return o.Show(tx, text)
}
