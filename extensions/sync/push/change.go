// Package push executes what devices have changed while they were offline: each change once, in a transaction of its own
// with the note that it was done, under the same rules and with the same hooks as PocketBase's record API. Two devices
// that changed the same record are reconciled by the policy of the collection.
//
// Table: sync_applied, one row per change and device, kept for a while so that a repeated change is recognised. Routes and
// settings: none; package sync has them.
package push

import (
	"encoding/json"
	"encoding/json/jsontext"
	"net/http"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
)

// Ops of changes.
const (
	Create = "create"
	Update = "update"
	Delete = "delete"
)

// What may become of a change. Only Retry means that it should be sent again.
const (
	Applied   = "applied"
	Merged    = "merged"    // applied, but others have changed the record as well
	Duplicate = "duplicate" // judged before
	Conflict  = "conflict"
	Denied    = "denied"
	Invalid   = "invalid"
	Gone      = "gone" // there is no such record, or none that the caller may see
	Retry     = "retry"
)

// Codes of the reasons.
var (
	ErrDenied    = &extensions.Code{Name: "sync.denied", Status: http.StatusForbidden, Title: "The rules do not allow this change"}
	ErrGone      = &extensions.Code{Name: "sync.gone", Status: http.StatusGone, Title: "The record is not there any more"}
	ErrConflict  = &extensions.Code{Name: "sync.conflict", Status: http.StatusConflict, Title: "The record has changed since"}
	ErrExists    = &extensions.Code{Name: "sync.exists", Status: http.StatusConflict, Title: "There is a record with this id"}
	ErrProtected = &extensions.Code{Name: "sync.field_protected", Status: http.StatusBadRequest, Title: "The field cannot be changed by sync"}
	ErrGroup     = &extensions.Code{Name: "sync.group_refused", Status: http.StatusConflict, Title: "Another change of the group was refused"}
	ErrChange    = &extensions.Code{Name: "sync.change_invalid", Status: http.StatusBadRequest, Title: "The change is not well-formed"}
	ErrAgain     = &extensions.Code{Name: "sync.try_again", Status: http.StatusServiceUnavailable, Title: "The change could not be judged now"}
)

// Codes lists them.
func Codes() []*extensions.Code {
	return []*extensions.Code{ErrDenied, ErrGone, ErrConflict, ErrExists, ErrProtected, ErrGroup, ErrChange, ErrAgain}
}

// Change is one change of a record.
type Change struct {
	CID        string                    `json:"cid"` // names it, uniquely for the device
	Collection string                    `json:"collection"`
	Op         string                    `json:"op"`
	ID         string                    `json:"id"`
	Set        map[string]jsontext.Value `json:"set,omitempty"`   // the changed fields only
	Apply      map[string]jsontext.Value `json:"apply,omitempty"` // PocketBase's modifiers: "likes+": 1, "tags-": ["x"]
	Base       *Base                     `json:"base,omitempty"`
	Group      string                    `json:"group,omitempty"` // changes of one group are applied together or not at all
}

// Base is what the change was made to: the version of the record, and what the user saw in the fields that were changed.
type Base struct {
	V   int64                     `json:"v,omitempty"`
	Set map[string]jsontext.Value `json:"set,omitempty"`
}

// Result is what has become of a change.
type Result struct {
	CID      string          `json:"cid"`
	Status   string          `json:"status"`
	Original string          `json:"original,omitempty"` // of a duplicate: the status that it got
	V        int64           `json:"v,omitempty"`        // version of the record after it
	Fields   []string        `json:"fields,omitempty"`   // that others had changed, too
	Record   json.RawMessage `json:"record,omitempty"`   // as it is now, if it is not just what was sent and the caller may see it
	Reason   *Reason         `json:"reason,omitempty"`

	// Outage says of a Retry that it is not about this change: the database is out of order, or the request has ended.
	Outage bool `json:"-"`
}

// Reason says why a change was not taken as it was.
type Reason struct {
	Code   string           `json:"code"`
	Detail string           `json:"detail"`
	Errors []api.FieldError `json:"errors,omitempty"`
}

// maxMistakes bounds what is told of a change, and kept.
const maxMistakes = 50

func reasonOf(p *api.Problem) *Reason {
	detail := p.Detail
	if detail == "" {
		detail = p.Code.Title
	}
	return &Reason{Code: p.Code.Name, Detail: detail, Errors: p.Errors[:min(len(p.Errors), maxMistakes)]}
}

// refusal ends the transaction of a change.
type refusal struct {
	status string
	fields []string
	v      int64
	*api.Problem
}

func (r *refusal) Error() string { return r.status + ": " + r.Problem.Error() }

func refuse(status string, code *extensions.Code, detail string, errors ...api.FieldError) *refusal {
	return &refusal{status: status, Problem: &api.Problem{Code: code, Detail: detail, Errors: errors}}
}
