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

	// Templates are the texts that messages may name.
	Templates []message.Template
}

// Outbox is the feature. It is safe for concurrent use once it is open.
type Outbox struct {
	cfg       Config
	deps      Deps
	templates map[string]template.Texts
	numbers   serial.Counter
	preparing sync.Mutex
	writer    batch.Writer[result]
	inbox     *inbox.Inbox
	now       func() time.Time
	app       core.App
	log       *slog.Logger
}

// New returns an outbox and declares its jobs.
func New(cfg Config, deps Deps) *Outbox {
	o := &Outbox{cfg: cfg, deps: deps, templates: map[string]template.Texts{}, now: time.Now, inbox: inbox.New(cfg.Inbox, deps.Devices), log: slog.New(slog.DiscardHandler)}
	o.writer.Save = o.save
	deps.Jobs.Add(o.kinds()...)
	return o
}

// PrepareInbox makes the collection of the inbox if it is wanted and not there.
func (o *Outbox) PrepareInbox(app core.App) error { return o.inbox.Prepare(app) }

// Bind tells the outbox its application. Templates with mistakes stop the program.
func (o *Outbox) Bind(h *extensions.Host) error {
	o.app, o.log = h.App, h.Logger
	o.personal().Bind(h.App)
	for _, t := range o.deps.Templates {
		if _, err := template.Compile(t.Texts); err != nil || t.Name == "" || o.templates[t.Name] != nil {
			return fmt.Errorf("template %q of notifications: the name is missing or there twice, or: %w", t.Name, err)
		}
		o.templates[t.Name] = t.Texts
	}
	return nil
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
	set, err := o.Resolve(&m)
	if err != nil {
		return Sent{}, Invalid(err)
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
		sent, err = o.insert(tx, &m, spec, now)
		return err
	})
	return sent, err
}

// Resolve puts the texts of a template in, so that a queued message does not change with the program, and compiles them. A
// message without texts has no set.
func (o *Outbox) Resolve(m *message.Message) (*template.Set, error) {
	texts, err := m.ByLanguage()
	if err != nil {
		return nil, err
	}
	if m.Template != "" {
		if texts != nil {
			return nil, errors.New("template: it excludes title, body and texts")
		}
		if texts = o.templates[m.Template]; texts == nil {
			return nil, fmt.Errorf("template: there is no %.100q", m.Template)
		}
		m.Texts = texts
	}
	if texts == nil {
		return nil, nil
	}
	return template.Compile(texts)
}

// Invalid is the problem of a message with a mistake.
func Invalid(err error) error {
	return api.InvalidBody(api.FieldError{Field: "message", Code: api.ErrValidation.Name, Message: err.Error()})
}

func (o *Outbox) insert(tx core.App, m *message.Message, spec string, now time.Time) (Sent, error) {
	due := m.Due(now)
	if due.Before(now) {
		due = now
	}
	id, sum := o.numbers.Next(now), sha256.Sum256([]byte(spec))
	n, err := exec(tx, `INSERT INTO `+messagesTable+` (id, key, digest, state, spec, target, category, due_at, ends_at, created_at)
		VALUES ({:id}, {:key}, {:digest}, {:state}, {:spec}, {:target}, {:category}, {:due}, {:ends}, {:now})
		ON CONFLICT (key) WHERE key <> '' DO NOTHING`, dbx.Params{
		"id": id, "key": m.Key, "digest": sum[:], "state": scheduled, "spec": spec, "target": m.To.Kind(), "category": m.Category,
		"due": due.UnixMilli(), "ends": m.Ends(due).UnixMilli(), "now": now.UnixMilli(),
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
