// Package operations is how an app does what a phone may not do by itself: touch roles, money, other people's data or
// several collections at once. An operation is declared in Go with the types of its input and its answer; the package
// judges who calls, validates the input before any query, limits, runs it in one transaction and writes the audit entry.
//
//	operations.Define(operations.Spec[Rename, Team]{
//		Name: "teams.rename", Summary: "Rename a team",
//		Callers: operations.Callers{Rule: "@collection.team_members.user ?= id"},
//		Do: func(c *operations.Call, in Rename) (Team, error) { … },
//	})
//
// Routes: POST /api/v1/operations/{name} for those that write and GET for those that read; GET /api/v1/operations
// describes them to admins. Tables and settings: none. JavaScript hooks call them with $operations.call.
//
// Failure modes: an error of the operation rolls its transaction back, its audit entry then says failure or denied. An
// entry that cannot be written fails the operation.
package operations

import (
	"encoding/json"
	"encoding/json/jsontext"
	jsonv2 "encoding/json/v2"
	"fmt"
	"net/http"
	"reflect"
	"regexp"
	"time"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/idempotency"
)

// Codes that every operation can answer besides those of the package api.
var (
	ErrCallerRefused = &extensions.Code{Name: "operations.caller_refused", Status: http.StatusForbidden, Title: "You may not call this operation"}
	ErrLimitExceeded = &extensions.Code{Name: "operations.limit_exceeded", Status: http.StatusTooManyRequests, Title: "You have called this operation too often"}
	ErrUnknown       = &extensions.Code{Name: "operations.unknown", Status: http.StatusNotFound, Title: "There is no such operation"}
)

// Spec declares one operation. In is a struct with json tags whose members are required unless the tag says omitempty;
// the tags minLength, maxLength, pattern, format, enum, minimum, maximum, minItems, maxItems and description become part
// of its JSON Schema. Out is what data of the answer holds.
type Spec[In, Out any] struct {
	Name    string // "teams.invite": the feature and what is done, in camel case
	Summary string // one sentence for the reference and for typed clients

	// Read makes it a GET that changes nothing: the input comes from the query, the answer has an ETag, there is no
	// transaction and no idempotency key.
	Read bool

	Callers Callers
	Cost    int   // units of the caller's general rate limit; 0 is what any request of the kind costs
	Limit   Limit // a bound of its own for each caller; zero is none

	// KeyOptional lets a caller leave the Idempotency-Key out. Use it where doing the thing twice does no harm.
	KeyOptional bool

	Audit []string           // members of the input that the audit entry holds
	Codes []*extensions.Code // what else it can answer; the extension that declares a code registers it

	// Do does it. All database work goes through the application of the call, which is the transaction of a write. An
	// error rolls it back; make those that a client should tell apart with api.Fail.
	Do func(c *Call, in In) (Out, error)

	// Steps does it instead of Do when other services are called: a payment, a model. No transaction is open but within the
	// steps that it takes in a fixed order by idempotency.Local and idempotency.Call; when the phone repeats the request, the
	// steps that are done return what they returned. It needs the Idempotency-Key.
	Steps func(c *Call, s *idempotency.Steps, in In) (Out, error)
}

// Callers says who may call. The zero value is every signed-in user. Superusers and admins are no users: they may call
// only by their role.
type Callers struct {
	Guests      bool     // also without a credential
	Collections []string // the auth collections whose accounts may call; nil is every one

	// Rule is an expression in PocketBase's rule language that must hold: its fields are those of the caller's own
	// record, and @request.auth, @request.body, @request.query and @collection are known. Guests fail it.
	Rule string

	Role  string // admins with at least this role may call, too; their calls do not pass Rule
	Scope bool   // API keys with the scope "operations:<name>" may call, too; their calls do not pass Rule

	Recent   bool // only accounts that have shown a credential lately, those of admins included
	Attested bool // only from an attested app
}

// Limit bounds calls: Count in each Per.
type Limit struct {
	Count int
	Per   time.Duration
}

// Operation is a declared operation. [Define] makes it.
type Operation struct {
	Description

	callers Callers
	limit   Limit
	audit   []string
	input   *schema
	do      func(c *Call, input jsontext.Value) (any, error)
	steps   func(c *Call, s *idempotency.Steps, input jsontext.Value) (any, error)
	err     error
}

// Description is what a client or a generator of clients has to know of an operation.
type Description struct {
	Name    string          `json:"name"`
	Method  string          `json:"method"`
	Path    string          `json:"path"`
	Summary string          `json:"summary"`
	Input   json.RawMessage `json:"input"`  // JSON Schema, 2020-12
	Output  json.RawMessage `json:"output"` // JSON Schema of data
	Codes   []string        `json:"codes"`  // of its own, besides the general ones

	Guests      bool   `json:"guests"`
	Role        string `json:"role,omitempty"`
	Scope       string `json:"scope,omitempty"`
	Recent      bool   `json:"recent"`
	Attested    bool   `json:"attested"`
	Cost        int    `json:"cost,omitempty"`
	KeyRequired bool   `json:"idempotencyKeyRequired"`
}

var namePattern = regexp.MustCompile(`^[a-z][a-z0-9]*(\.[a-z][a-zA-Z0-9]*)+$`)

// Define makes an operation. A mistake in the declaration stops the program when it starts.
func Define[In, Out any](s Spec[In, Out]) Operation {
	o := Operation{
		Name: s.Name, Method: http.MethodPost, Path: prefix + s.Name, Summary: s.Summary, Codes: []string{},
		Guests: s.Callers.Guests, Role: s.Callers.Role, Recent: s.Callers.Recent, Attested: s.Callers.Attested, Cost: s.Cost,
		KeyRequired: !s.Read && !s.KeyOptional,
		callers:     s.Callers, limit: s.Limit, audit: s.Audit,
	}
	if s.Read {
		o.Method = http.MethodGet
	}
	if s.Callers.Scope {
		o.Scope = "operations:" + s.Name
	}
	for _, c := range s.Codes {
		o.Codes = append(o.Codes, c.Name)
	}
	if o.err = s.check(); o.err != nil {
		return o
	}
	if o.input, o.err = newSchema(reflect.TypeFor[In]()); o.err != nil {
		return o
	}
	o.Input = o.input.text
	if o.Output, o.err = describe(reflect.TypeFor[Out](), false); o.err != nil {
		return o
	}
	o.do = func(c *Call, input jsontext.Value) (any, error) {
		in, err := decode[In](input)
		if err != nil {
			return nil, err
		}
		return s.Do(c, in)
	}
	if s.Steps != nil {
		o.steps = func(c *Call, steps *idempotency.Steps, input jsontext.Value) (any, error) {
			in, err := decode[In](input)
			if err != nil {
				return nil, err
			}
			return s.Steps(c, steps, in)
		}
	}
	return o
}

func decode[In any](input jsontext.Value) (in In, err error) {
	if err := jsonv2.Unmarshal(input, &in); err != nil {
		return in, fmt.Errorf("decode validated input: %w", err)
	}
	return in, nil
}

func (s Spec[In, Out]) check() error {
	in := reflect.TypeFor[In]()
	switch {
	case !namePattern.MatchString(s.Name):
		return fmt.Errorf("operation %q: the name must be like teams.invite", s.Name)
	case s.Summary == "", (s.Do == nil) == (s.Steps == nil):
		return fmt.Errorf("operation %s needs a Summary, and a Do or Steps", s.Name)
	case s.Steps != nil && (s.Read || s.KeyOptional):
		return fmt.Errorf("operation %s: steps are known again by the idempotency key, so it writes and needs one", s.Name)
	case in.Kind() != reflect.Struct:
		return fmt.Errorf("operation %s: the input must be a struct", s.Name)
	case s.Limit.Count < 0, s.Limit.Count > 0 && s.Limit.Per <= 0, s.Cost < 0:
		return fmt.Errorf("operation %s: the limit and the cost must not be negative", s.Name)
	case s.Callers.Guests && (s.Callers.Rule != "" || s.Callers.Recent):
		return fmt.Errorf("operation %s: guests have no record to judge and no sign-in to be recent", s.Name)
	}
	for _, name := range s.Audit {
		if !hasMember(in, name) {
			return fmt.Errorf("operation %s: the audit names %q, which the input lacks", s.Name, name)
		}
	}
	return nil
}
