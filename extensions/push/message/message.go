// Package message is what a notification to many devices says, to whom and when, and all that can be said of it without
// sending it: whether it is complete, when it is due, and which accounts a target yields. Package outbox sends it.
package message

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/satchelbase/satchel/extensions/push/sender"
	"github.com/satchelbase/satchel/extensions/push/template"
)

// Limits of a message.
const (
	maxUsers  = 5000 // more are a filter, or all
	maxValues = 64
	maxFilter = 4096 // bytes
	maxSpec   = 128 << 10
	maxAhead  = 366 * 24 * time.Hour
)

// Message is one notification for many devices. The zero value of every field but To and the texts is the default.
type Message struct {
	// Key makes the message one: another one with the same key, as after a request that is repeated, is not sent.
	Key string `json:"key,omitempty" maxLength:"200" description:"another message with the same key is not sent"`

	To To `json:"to"`

	// Title and Body are patterns in one language, Texts in several, Template the name of declared ones.
	Title    string         `json:"title,omitempty" maxLength:"4096"`
	Body     string         `json:"body,omitempty" maxLength:"4096"`
	Texts    template.Texts `json:"texts,omitempty" description:"by language tag, and default"`
	Template string         `json:"template,omitempty" maxLength:"100" description:"name of texts that the app declares"`
	Values   map[string]any `json:"values,omitempty" description:"what the texts name in braces: texts, numbers and booleans"`

	Image    string            `json:"image,omitempty" maxLength:"2048" description:"an https address"`
	Data     map[string]string `json:"data,omitempty" description:"for the app"`
	Actions  []sender.Action   `json:"actions,omitempty" maxItems:"4"`
	Badge    *int              `json:"badge,omitempty" minimum:"0" maximum:"99999"`
	Unread   bool              `json:"badgeUnread,omitempty" description:"the badge is the number of unread entries in the inbox of the account"`
	Sound    string            `json:"sound,omitempty" maxLength:"128"`
	Kind     string            `json:"kind,omitempty" maxLength:"128" description:"category of actions on iOS, click action on Android"`
	Channel  string            `json:"channel,omitempty" maxLength:"128" description:"notification channel on Android"`
	Collapse string            `json:"collapse,omitempty" maxLength:"256" description:"a newer message of the same key replaces an older one"`
	TTL      int               `json:"ttl,omitempty" minimum:"-1" maximum:"2419200" description:"seconds that it makes sense; -1 is now or never"`
	Priority string            `json:"priority,omitempty" enum:"high,normal,low"`
	Silent   bool              `json:"silent,omitempty" description:"shows nothing and wakes the app with data"`

	SendAt  *time.Time `json:"sendAt,omitempty"`
	LocalAt string     `json:"localAt,omitempty" pattern:"^\\d{4}-\\d\\d-\\d\\dT\\d\\d:\\d\\d(:\\d\\d)?$" description:"time in the zone of each device, such as 2026-12-24T18:00"`

	Category string   `json:"category,omitempty" maxLength:"100" description:"what users may switch off"`
	Quiet    Quiet    `json:"quiet,omitempty" enum:"drop,collapse,ignore" description:"what becomes of it in quiet hours and beyond caps, if not what the category says"`
	Presence Presence `json:"presence,omitempty" enum:"account,device,ignore" description:"who does not get it because the app is open"`
	Inbox    bool     `json:"inbox,omitempty" description:"it is a record in the inbox of each account, too"`

	// Version is that of the template, whose texts are in Texts once the message is asked for.
	Version int `json:"-"`

	// Hint marks the silent hint to sync, which is capped for each device.
	Hint bool `json:"-"`
}

// Quiet is what becomes of a message that its receiver does not want now.
type Quiet string

// The policies. The default is what the category says. With Collapse it waits, and of those that wait for a device with the
// same collapse key, or without one in the same category, the newest is sent.
const (
	Drop     Quiet = "drop"
	Collapse Quiet = "collapse"
	Ignore   Quiet = "ignore"
)

// Presence says who is left out because the app is connected.
type Presence string

// The policies. The default is Account for what is shown: nobody's phone rings while they read the same on a laptop.
const (
	PresenceAccount Presence = "account"
	PresenceDevice  Presence = "device"
	PresenceIgnore  Presence = "ignore"
)

// To is who gets a message: one of Users, Filter, Topic and All.
type To struct {
	Collection string   `json:"collection,omitempty" maxLength:"100" description:"auth collection of the users; users by default"`
	Users      []string `json:"users,omitempty" maxItems:"5000" description:"ids of accounts"`
	Filter     *Filter  `json:"filter,omitempty"`
	Topic      string   `json:"topic,omitempty" maxLength:"200"`
	All        bool     `json:"all,omitempty" description:"every device"`
}

// Filter is records of any collection, in the language of its rules. They yield accounts: themselves, in an auth collection,
// or those that Account names, a relation field.
type Filter struct {
	Collection string         `json:"collection" minLength:"1" maxLength:"100"`
	Where      string         `json:"where,omitempty" maxLength:"4096" description:"such as team = {:team}"`
	Params     map[string]any `json:"params,omitempty" description:"values of the placeholders"`
	Account    string         `json:"account,omitempty" maxLength:"100" description:"relation field that names the account"`
}

// stored is a message as it is kept.
type stored struct {
	Message

	Hint bool `json:"hint,omitempty"`
}

// Encode is the message as it is kept, the same for the same message, if it is not too long.
func (m *Message) Encode() (string, error) {
	spec, err := json.Marshal(stored{*m, m.Hint})
	if err == nil && len(spec) > maxSpec {
		err = fmt.Errorf("message: must be at most %d bytes of JSON; use a filter instead of many users", maxSpec)
	}
	return string(spec), err
}

// Decode reads what Encode has made.
func Decode(spec string) (*Message, error) {
	var s stored
	if err := json.Unmarshal([]byte(spec), &s); err != nil {
		return nil, fmt.Errorf("read message: %w", err)
	}
	s.Message.Hint = s.Hint
	return &s.Message, nil
}

// Template is texts with a name.
type Template struct {
	Name  string
	Texts template.Texts
}

// Check tells everything that is wrong with the message but for what the database knows. The texts must be resolved.
func (m *Message) Check(set *template.Set, now time.Time) error {
	var problems []error
	add := func(bad bool, format string, args ...any) {
		if bad {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	problems = append(problems, m.To.check())
	add(len(m.Key) > 200, "key: must be at most 200 bytes")
	add(len(m.Values) > maxValues, "values: must be at most %d", maxValues)
	for name, value := range m.Values {
		switch value.(type) {
		case string, bool, float64, int, int64, json.Number:
		default:
			add(true, "values: %.40q must be a text, a number or a boolean", name)
		}
	}
	add(m.SendAt != nil && m.LocalAt != "", "sendAt: it excludes localAt")
	add(m.SendAt != nil && m.SendAt.After(now.Add(maxAhead)), "sendAt: must be within a year")
	if m.LocalAt != "" {
		at, err := wall(m.LocalAt, time.UTC)
		add(err != nil, "localAt: must be like 2026-12-24T18:00")
		add(err == nil && at.After(now.Add(maxAhead)), "localAt: must be within a year")
	}
	add(!slices.Contains([]string{"", "high", "normal", "low"}, m.Priority), "priority: is none of high, normal and low")
	add(!slices.Contains([]Quiet{"", Drop, Collapse, Ignore}, m.Quiet), "quiet: is none of drop, collapse and ignore")
	add(m.Quiet == Collapse && m.Collapse == "" && m.Category == "", "quiet: to collapse, the message needs a collapse key or a category")
	add(!slices.Contains([]Presence{"", PresenceAccount, PresenceDevice, PresenceIgnore}, m.Presence), "presence: is none of account, device and ignore")
	add(m.Unread && m.Badge != nil, "badge: it excludes badgeUnread")
	add(m.Inbox && m.Silent, "inbox: a silent message shows nothing")
	add(m.TTL < -1 || m.TTL > int(sender.DefaultTTL/time.Second), "ttl: must be -1 to %d seconds", int(sender.DefaultTTL/time.Second))
	if err := errors.Join(problems...); err != nil {
		return err
	}
	if set == nil {
		return m.Notification(template.Text{}, "").Check()
	}
	if err := set.Check(m.Values); err != nil {
		return err
	}
	text, err := set.Render(template.Default, m.Values)
	if err != nil {
		return err
	}
	return m.Notification(text, "").Check()
}

func (t To) check() error {
	given := 0
	for _, yes := range []bool{len(t.Users) > 0, t.Filter != nil, t.Topic != "", t.All} {
		if yes {
			given++
		}
	}
	switch {
	case given != 1:
		return errors.New("to: must be one of users, filter, topic and all")
	case len(t.Users) > maxUsers:
		return fmt.Errorf("to.users: must be at most %d; use a filter for more", maxUsers)
	case t.Filter != nil && (t.Filter.Collection == "" || len(t.Filter.Where) > maxFilter || len(t.Filter.Params) > maxValues):
		return errors.New("to.filter: needs a collection, and at most 4096 bytes and 64 values")
	case t.Collection != "" && len(t.Users) == 0:
		return errors.New("to.collection: goes with users")
	}
	return nil
}

// ByLanguage is the texts of the message as it gives them; nil if it gives none.
func (m *Message) ByLanguage() (template.Texts, error) {
	switch {
	case len(m.Texts) > 0 && (m.Title != "" || m.Body != ""):
		return nil, errors.New("texts: they exclude title and body, which are those of default")
	case len(m.Texts) > 0:
		return m.Texts, nil
	case m.Title != "" || m.Body != "":
		return template.Texts{template.Default: {Title: m.Title, Body: m.Body}}, nil
	}
	return nil, nil
}

// Notification is what senders get. Without a collapse key of its own it has the one that is given.
func (m *Message) Notification(text template.Text, collapse string) *sender.Notification {
	n := &sender.Notification{
		Title: text.Title, Body: text.Body, Image: m.Image, Data: m.Data, Actions: m.Actions, Badge: m.Badge, Sound: m.Sound, Category: m.Kind,
		Channel: m.Channel, CollapseKey: m.Collapse, Silent: m.Silent,
		Priority: map[string]sender.Priority{"high": sender.PriorityHigh, "normal": sender.PriorityNormal, "low": sender.PriorityLow}[m.Priority],
	}
	if n.CollapseKey == "" {
		n.CollapseKey = collapse
	}
	if m.Unread {
		n.Badge = new(int) // the sender of the message knows the number
	}
	switch {
	case m.TTL < 0:
		n.TTL = sender.NowOrNever
	case m.TTL > 0:
		n.TTL = time.Duration(m.TTL) * time.Second
	}
	return n
}

// nowOrNever gives a message without a lifetime some seconds to be sent in.
const nowOrNever = 30 * time.Second

// lifetime is how long after its time a message is still sent.
func (m *Message) lifetime() time.Duration {
	switch {
	case m.TTL < 0:
		return nowOrNever
	case m.TTL == 0:
		return sender.DefaultTTL
	}
	return time.Duration(m.TTL) * time.Second
}

// Zones of the earth are between 14 hours before UTC and 12 after it.
const (
	earliest = 14 * time.Hour
	latest   = 12 * time.Hour
)

// Due is when the message is to be fanned out.
func (m *Message) Due(now time.Time) time.Time {
	switch {
	case m.SendAt != nil:
		return *m.SendAt
	case m.LocalAt != "":
		at, err := wall(m.LocalAt, time.UTC)
		if err == nil {
			return at.Add(-earliest)
		}
	}
	return now
}

// Ends is when the message makes no sense any more, wherever the device is.
func (m *Message) Ends(due time.Time) time.Time {
	if m.LocalAt != "" {
		due = due.Add(earliest + latest)
	}
	return due.Add(m.lifetime())
}

// At is when a device in the zone gets it; the zero time is at once.
func (m *Message) At(zone string) time.Time {
	if m.LocalAt == "" {
		return time.Time{}
	}
	location, err := time.LoadLocation(zone)
	if err != nil || strings.EqualFold(zone, "local") {
		location = time.UTC
	}
	at, err := wall(m.LocalAt, location)
	if err != nil {
		return time.Time{}
	}
	return at
}

// wall reads a time without a zone. One that the clocks skip in the night of the change is the one an hour later.
func wall(text string, in *time.Location) (time.Time, error) {
	layout := "2006-01-02T15:04:05"
	return time.ParseInLocation(layout[:min(len(text), len(layout))], text, in)
}

// Kind is the word for the target in lists.
func (t To) Kind() string {
	switch {
	case t.All:
		return "all"
	case t.Topic != "":
		return "topic"
	case t.Filter != nil:
		return "filter"
	}
	return "users"
}

// Clean removes the doubles of users.
func (t To) Clean() To {
	if len(t.Users) > 0 {
		seen := make(map[string]struct{}, len(t.Users))
		for _, id := range t.Users {
			seen[id] = struct{}{}
		}
		t.Users = slices.Sorted(maps.Keys(seen))
	}
	return t
}

// Urgency is the priority of the jobs: a message that is in no hurry waits for others, and those to many devices do not hold
// up those to few.
func (m *Message) Urgency() int {
	switch {
	case m.Hint, m.Priority == "low":
		return 7
	case m.Priority == "high":
		return 3
	case m.To.All || m.To.Topic != "" || m.To.Filter != nil:
		return 6
	}
	return 5
}
