package audit

import "github.com/pocketbase/pocketbase/core"

// Note is [Log.Append] for features that take it as a function: what was done to the account, by whoever makes the request.
// Without a request it was the program itself.
func (l *Log) Note(tx core.App, e *core.RequestEvent, action, outcome string, subject *core.Record, details map[string]any) error {
	var entry Entry
	if e != nil {
		entry = From(e)
	}
	entry.Action, entry.Outcome, entry.Subject, entry.Details = action, outcome, PartyOf(subject), details
	return l.Append(tx, entry)
}
