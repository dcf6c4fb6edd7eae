// Package frame is the wire format of the live protocol: what a client may send, what the server sends, and the limits of
// both. frames.json has the same as a JSON Schema; docs/live.md explains it.
package frame

import (
	_ "embed" // the schema
	"encoding/json"
	"encoding/json/jsontext"
	jsonv2 "encoding/json/v2"
	"errors"
	"fmt"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/changes"
)

// Schema is the JSON Schema of every frame, by type below $defs.
//
//go:embed frames.json
var Schema []byte

// Subprotocol is the name that a client asks for.
const Subprotocol = "satchel.rt.v1"

// Close codes. Those from 4000 on are ours.
const (
	CloseRestart = 1012 // the server stops: come back, with the cursor
	CloseAuth    = 4401 // no credential, a bad one, or one that has ended
	CloseSlow    = 4408 // the client does not read, or does not answer
	CloseLimit   = 4429 // too many connections or frames
)

// Limits on what a client sends.
const (
	MaxBytes = 64 << 10 // of a frame
	maxName  = 100      // of a subscription or an id, in bytes
	maxText  = 3500     // of a filter, as PocketBase has it
	maxKnown = 1000     // ids that a client may name as held
	maxState = 4 << 10  // of the state in a presence
)

// In is any frame of a client.
type In struct {
	Type string `json:"type"`
	ID   string `json:"id"`

	Token string `json:"token"` // auth

	Sub        string         `json:"sub"` // sub, unsub, publish, presence
	Collection string         `json:"collection"`
	Record     string         `json:"record"`
	Filter     string         `json:"filter"`
	Expand     string         `json:"expand"`
	Fields     string         `json:"fields"`
	Cursor     string         `json:"cursor"`
	Known      []string       `json:"known"`
	Channel    string         `json:"channel"`
	State      jsontext.Value `json:"state"` // sub of a channel, presence

	Data jsontext.Value `json:"data"` // publish
}

// members are those that each type of frame may have beside type and id.
func members(kind string) []string {
	switch kind {
	case "auth":
		return []string{"token"}
	case "sub":
		return []string{"sub", "collection", "record", "filter", "expand", "fields", "cursor", "known", "channel", "state"}
	case "unsub":
		return []string{"sub"}
	case "publish":
		return []string{"sub", "data"}
	case "presence":
		return []string{"sub", "state"}
	case "ping", "pong":
		return []string{}
	}
	return nil
}

// Parse reads a frame of a client. Its error is for the client to read.
func Parse(raw []byte) (In, error) {
	var f In
	if err := jsonv2.Unmarshal(raw, &f, jsonv2.RejectUnknownMembers(true)); err != nil {
		return f, errors.New("the frame is not a JSON object with known members of the right types")
	}
	var given map[string]jsontext.Value
	if err := jsonv2.Unmarshal(raw, &given); err != nil {
		return f, errors.New("the frame is not a JSON object")
	}
	allowed := members(f.Type)
	if allowed == nil {
		return f, fmt.Errorf("there is no type %q", clip(f.Type))
	}
	delete(given, "type")
	delete(given, "id")
	for _, name := range allowed {
		delete(given, name)
	}
	for name := range given {
		return f, fmt.Errorf("%s has no member %q", f.Type, clip(name))
	}
	return f, f.check()
}

func (f In) check() error {
	names := []string{f.ID, f.Sub, f.Collection, f.Record, f.Cursor, f.Channel}
	for _, name := range append(names, f.Known...) {
		if len(name) > maxName {
			return fmt.Errorf("a name is longer than %d bytes", maxName)
		}
	}
	for _, text := range []string{f.Filter, f.Expand, f.Fields} {
		if len(text) > maxText {
			return fmt.Errorf("filter, expand and fields have at most %d bytes", maxText)
		}
	}
	switch {
	case len(f.Known) > maxKnown:
		return fmt.Errorf("known has at most %d ids", maxKnown)
	case len(f.State) > maxState:
		return fmt.Errorf("state has at most %d bytes", maxState)
	case f.Type == "sub" || f.Type == "unsub" || f.Type == "publish" || f.Type == "presence":
		if f.Sub == "" {
			return errors.New("sub is missing")
		}
	}
	if f.Type == "publish" && len(f.Data) == 0 {
		return errors.New("data is missing")
	}
	if f.Type == "presence" && len(f.State) == 0 {
		return errors.New("state is missing")
	}
	if f.Type != "sub" {
		return nil
	}
	switch {
	case (f.Collection == "") == (f.Channel == ""):
		return errors.New("sub names either a collection or a channel")
	case f.Channel != "" && (f.Record != "" || f.Filter != "" || f.Expand != "" || f.Fields != "" || f.Cursor != "" || len(f.Known) > 0):
		return errors.New("a channel takes nothing but state")
	case f.Channel == "" && len(f.State) > 0:
		return errors.New("only a channel takes state")
	}
	return nil
}

func clip(s string) string { return s[:min(len(s), 20)] }

// User is who is signed in.
type User struct {
	Collection string `json:"collection"`
	ID         string `json:"id"`
}

// Member is somebody in a channel. Connection tells two devices of one user apart.
type Member struct {
	Connection string          `json:"connection"`
	User       *User           `json:"user,omitempty"`
	State      json.RawMessage `json:"state,omitempty"`
}

// Out is a frame of the server, but for events and leaves, which [AppendEvent] writes.
type Out struct {
	Type       string          `json:"type"`
	ID         string          `json:"id,omitempty"`
	Sub        string          `json:"sub,omitempty"`
	Connection string          `json:"connection,omitempty"`
	User       *User           `json:"user,omitempty"`
	ExpiresAt  string          `json:"expiresAt,omitempty"`
	Cursor     string          `json:"cursor,omitempty"`
	Reason     string          `json:"reason,omitempty"`
	Code       string          `json:"code,omitempty"`
	Message    string          `json:"message,omitempty"`
	From       *Member         `json:"from,omitempty"`
	Data       json.RawMessage `json:"data,omitempty"`
	Members    []Member        `json:"members,omitempty"`
	Joined     []Member        `json:"joined,omitempty"`
	Left       []Member        `json:"left,omitempty"`
}

// Bytes is the frame as it is sent.
func (o Out) Bytes() []byte {
	raw, err := json.Marshal(o)
	if err != nil { // raw messages were checked when they came in
		panic(err)
	}
	return raw
}

// Cursor is a frame that says how far the client has everything.
// It is written for every connection after every event.
func Cursor(at changes.Position) []byte {
	return append(append([]byte(`{"type":"cursor","cursor":"`), at.String()...), `"}`...) // a position has nothing to be escaped
}

// Error is the frame of a problem.
func Error(id, sub string, code *extensions.Code, message string) []byte {
	if message == "" {
		message = code.Title
	}
	if len(id) > maxName {
		id = ""
	}
	if len(sub) > maxName {
		sub = ""
	}
	return Out{Type: "error", ID: id, Sub: sub, Code: code.Name, Message: message}.Bytes()
}

// Event is what happened to a record, as one subscription is told. Record is its JSON, nil in a delete. A leave has no
// action.
type Event struct {
	Collection, ID string
	Action         string
	Version        int64
	Record         []byte
}

// AppendEvent writes an event, or a leave.
func AppendEvent(dst []byte, sub string, e *Event) []byte {
	kind := "event"
	if e.Action == "" {
		kind = "leave"
	}
	dst = append(append(append(dst, `{"type":"`...), kind...), `","sub":`...)
	dst = quote(dst, sub)
	dst = quote(append(dst, `,"collection":`...), e.Collection)
	dst = quote(append(dst, `,"id":`...), e.ID)
	if e.Action != "" {
		dst = append(append(append(dst, `,"action":"`...), e.Action...), '"')
	}
	dst = fmt.Appendf(append(dst, `,"version":`...), "%d", e.Version)
	if e.Record != nil {
		dst = append(append(dst, `,"record":`...), e.Record...)
	}
	return append(dst, '}')
}

func quote(dst []byte, s string) []byte {
	out, err := jsontext.AppendQuote(dst, s)
	if err != nil { // invalid UTF-8, which is replaced
		return out
	}
	return out
}
