// Package ledger is the chain of entries itself: how they are stored, sealed and verified, how accounts are forgotten in
// them and old ones deleted. What is worth an entry, and who may read them, is the business of the package above it.
package ledger

import (
	"encoding/json"
	"fmt"
	"regexp"
)

// Outcomes of actions. An empty outcome is a success.
const (
	Success = "success"
	Failure = "failure" // it was tried and went wrong
	Denied  = "denied"  // it was refused
	Began   = "began"   // it cannot be part of a transaction, and is about to be done
)

// Kinds of parties.
const (
	User      = "user"
	Superuser = "superuser"
	Key       = "key"    // an API key of a server
	System    = "system" // the program itself: a command, a job
	Guest     = "guest"
	Record    = "record" // of a collection that nobody signs in to
)

// Entry is one thing that was done. Action is a dotted name, "sessions.revoked". The zero Actor is the system. ActAs is
// the account in whose name the actor acted, zero for their own. Details is what else matters, of any type that JSON
// knows; it must be small, and is never a place for secrets, nor for what names a person: nothing forgets it.
type Entry struct {
	Action, Outcome       string
	Actor, Subject, ActAs Party

	Session, Request, Address string

	Details map[string]any
}

// Party is somebody or something that acts or is acted on. Collection and ID may be empty.
type Party struct{ Kind, Collection, ID string }

// Names that entries may have. They are a vocabulary for queries, not a place for text.
var (
	ActionPattern  = regexp.MustCompile(`^[a-z][a-z0-9]*(\.[a-z][a-zA-Z0-9_]*)+$`)
	OutcomePattern = regexp.MustCompile(`^[a-z][a-z_]*$`)
)

func (e Entry) check() error {
	if !ActionPattern.MatchString(e.Action) {
		return fmt.Errorf("the action %q is not a dotted name", e.Action)
	}
	if !OutcomePattern.MatchString(e.Outcome) {
		return fmt.Errorf("the outcome %q of %s is not a word", e.Outcome, e.Action)
	}
	for _, p := range []Party{e.Actor, e.Subject, e.ActAs} {
		switch p.Kind {
		case "", User, Superuser, Key, System, Guest, Record:
		default:
			return fmt.Errorf("%s names a party of the kind %q", e.Action, p.Kind)
		}
	}
	return nil
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
