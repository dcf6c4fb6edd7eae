// Package audit keeps the record of who did what: an append-only table that later readers can trust. Features write to
// it in the transaction of the act itself, so that neither exists without the other.
//
// An entry names the action, its outcome, who acted and on whom, and where the request came from: an address prefix
// (IPv4 /24, IPv6 /48), because a full address is personal data that no question to this table needs. Secrets stay out:
// details whose key is named like one, or whose value is shaped like one, are redacted.
//
// Tables: audit_entries. Triggers refuse UPDATE, DELETE and REPLACE, whoever asks. Routes and settings: none. Failure
// modes: an entry that cannot be written is an error, and the transaction of the act should end with it.
package audit

import (
	"encoding/json"
	"fmt"
	"regexp"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
)

// Outcomes of actions. An empty outcome is a success.
const (
	Success = "success"
	Failure = "failure" // it was tried and went wrong
	Denied  = "denied"  // it was refused
)

// Kinds of parties.
const (
	User      = "user"
	Superuser = "superuser"
	Key       = "key"    // an API key of a server
	System    = "system" // the program itself: a command, a job
	Guest     = "guest"
)

// Entry is one thing that was done. Action is a dotted name, "sessions.revoked". The zero Actor is the system. ActAs is
// the id of the account in whose name the actor acted, empty for their own. Details is what else matters, of any type
// that JSON knows; it must be small, and is never a place for secrets.
type Entry struct {
	Action, Outcome string
	Actor, Subject  Party
	ActAs           string

	Session, Request, Address string

	Details map[string]any
}

// Party is somebody or something that acts or is acted on. Collection and ID may be empty.
type Party struct{ Kind, Collection, ID string }

// Where the verifier of tokens leaves the id of the session, and the party that acts: for the user who is signed in, or
// for itself, as an API key does.
const (
	sessionKey = "satchelSession"
	ActorKey   = "satchelActor"
)

// timeLayout is RFC 3339 in UTC with a fixed width, so that times sort as text.
const timeLayout = "2006-01-02T15:04:05.000Z"

// Names that entries may have. They are a vocabulary for queries, not a place for text.
var (
	actionPattern  = regexp.MustCompile(`^[a-z][a-z0-9]*(\.[a-z][a-zA-Z0-9_]*)+$`)
	outcomePattern = regexp.MustCompile(`^[a-z][a-z_]*$`)
)

// New returns the extension.
func New() extensions.Extension {
	return extensions.Extension{
		Name:   "audit",
		Tables: []string{table},
		Migrations: []extensions.Migration{
			{Unix: 1795310000, What: "create_entries", Up: createEntries, Down: dropEntries},
		},
	}
}

// Append writes the entry. When tx is the application of a transaction, the entry is part of it; outside, it is a
// transaction of its own. Text that a client had a hand in is cut to a bounded length and never refused, so that nobody
// can keep an act out of the record; an error means a wrong action, outcome or kind, or a failed database.
func Append(tx core.App, e Entry) error {
	if e.Outcome == "" {
		e.Outcome = Success
	}
	if e.Actor.Kind == "" {
		e.Actor.Kind = System
	}
	if err := e.check(); err != nil {
		return fmt.Errorf("append audit entry: %w", err)
	}
	details, err := detailsJSON(e.Details)
	if err != nil {
		return fmt.Errorf("append audit entry %s: %w", e.Action, err)
	}
	_, err = tx.NonconcurrentDB().Insert(table, dbx.Params{
		"at": time.Now().UTC().Format(timeLayout), "action": e.Action, "outcome": e.Outcome,
		"actor_kind": e.Actor.Kind, "actor_collection": cut(e.Actor.Collection), "actor_id": cut(e.Actor.ID), "act_as": cut(e.ActAs),
		"subject_kind": e.Subject.Kind, "subject_collection": cut(e.Subject.Collection), "subject_id": cut(e.Subject.ID),
		"session": cut(e.Session), "request": cut(e.Request), "address": api.Network(e.Address), "details": details,
	}).Execute()
	if err != nil {
		return fmt.Errorf("append audit entry %s: %w", e.Action, err)
	}
	return nil
}

func (e Entry) check() error {
	if !actionPattern.MatchString(e.Action) {
		return fmt.Errorf("the action %q is not a dotted name", e.Action)
	}
	if !outcomePattern.MatchString(e.Outcome) {
		return fmt.Errorf("the outcome %q of %s is not a word", e.Outcome, e.Action)
	}
	for _, p := range []Party{e.Actor, e.Subject} {
		switch p.Kind {
		case "", User, Superuser, Key, System, Guest:
		default:
			return fmt.Errorf("%s names a party of the kind %q", e.Action, p.Kind)
		}
	}
	return nil
}

// From begins an entry with what the request says about itself: who is signed in, the session, the request's id and
// where it came from. The caller adds the action and the subject.
func From(e *core.RequestEvent) Entry {
	out := Entry{Actor: PartyOf(e.Auth), Request: api.RequestOf(e.Request.Context()).ID, Address: api.Network(e.RealIP())}
	out.Session, _ = e.Get(sessionKey).(string)
	if actor, ok := e.Get(ActorKey).(Party); ok {
		out.Actor = actor
		if e.Auth != nil {
			out.ActAs = e.Auth.Id
		}
	}
	return out
}

// PartyOf is the account as a party; nil is a guest.
func PartyOf(account *core.Record) Party {
	if account == nil {
		return Party{Kind: Guest}
	}
	kind := User
	if account.IsSuperuser() {
		kind = Superuser
	}
	return Party{Kind: kind, Collection: account.Collection().Name, ID: account.Id}
}

// detailsJSON is the details as they are stored, without secrets and within the bound.
func detailsJSON(details map[string]any) (string, error) {
	if len(details) == 0 {
		return "{}", nil
	}
	clean, err := redact(details)
	if err != nil {
		return "", fmt.Errorf("redact details: %w", err)
	}
	raw, err := json.Marshal(clean)
	if err != nil {
		return "", fmt.Errorf("marshal details: %w", err)
	}
	if len(raw) > maxDetails {
		return `{"truncated":true}`, nil
	}
	return string(raw), nil
}
