// Package channel carries messages between those who are connected, and tells who is there. All of it is in memory.
package channel

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"strings"
	"sync"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/search"

	"github.com/satchelbase/satchel/extensions/live/frame"
)

// Channel is a family of broadcast channels. Messages go through memory only: whoever is not there does not get them, and
// a slow client loses the oldest.
type Channel struct {
	// Pattern is a name with variables, such as "room:{id}". A variable stands for letters, digits, "-" and "_".
	Pattern string

	// Join and Publish are rules in PocketBase's syntax, which see the variables as @request.query.NAME; nil is nobody, the
	// empty rule is everybody. There is no record that they could name fields of, but @collection.* and @request.auth.*.
	Join, Publish *string

	// Presence tells those in the channel who else is there.
	Presence bool
}

// maxMembers bounds the presence of one channel: each change of it goes to all.
const maxMembers = 1000

var (
	patternSyntax = regexp.MustCompile(`^(?:[A-Za-z0-9_:.-]|\{[a-z][A-Za-z0-9]*\})+$`)
	variable      = regexp.MustCompile(`\\\{([a-z][A-Za-z0-9]*)\\\}`)
)

// Parse reads "pattern=join=publish". A rule that is missing is nobody's; "*" is everybody. With "+" before it the
// pattern has presence.
func Parse(text string) (Channel, error) {
	parts := strings.SplitN(text, "=", 2)
	c := Channel{Pattern: parts[0]}
	c.Pattern, c.Presence = strings.TrimPrefix(parts[0], "+"), strings.HasPrefix(parts[0], "+")
	if !patternSyntax.MatchString(c.Pattern) {
		return c, fmt.Errorf("%q is no pattern", c.Pattern)
	}
	if len(parts) == 1 {
		return c, fmt.Errorf("%s: the rules are missing", c.Pattern)
	}
	join, publish, _ := strings.Cut(parts[1], "|>")
	rule := func(text string) *string {
		switch text = strings.TrimSpace(text); text {
		case "":
			return nil
		case "*":
			text = ""
		}
		return &text
	}
	c.Join, c.Publish = rule(join), rule(publish)
	return c, nil
}

// match returns the variables of a name.
func (c Channel) match(name string) (map[string]string, bool) {
	form := variable.ReplaceAllString(regexp.QuoteMeta(c.Pattern), `(?P<$1>[A-Za-z0-9_-]+)`)
	re, err := regexp.Compile("^" + form + "$")
	if err != nil { // a variable that is named twice
		return nil, false
	}
	found := re.FindStringSubmatch(name)
	if found == nil {
		return nil, false
	}
	values := map[string]string{}
	for i, key := range re.SubexpNames() {
		if key != "" {
			values[key] = found[i]
		}
	}
	return values, true
}

// Find returns the family of a channel, and the variables in its name.
func Find(families []Channel, name string) (Channel, map[string]string, bool) {
	for _, c := range families {
		if values, ok := c.match(name); ok {
			return c, values, true
		}
	}
	return Channel{}, nil, false
}

// table is the name of the table with one row that the rules of channels are evaluated on.
const table = "live_channel"

// Allowed evaluates a rule without a record.
func Allowed(app core.App, rule *string, values map[string]string, auth *core.Record) (bool, error) {
	switch {
	case auth != nil && auth.IsSuperuser():
		return true, nil
	case rule == nil:
		return false, nil
	case *rule == "":
		return true, nil
	}
	info := &core.RequestInfo{
		Context: core.RequestInfoContextRealtime, Method: http.MethodGet, Auth: auth,
		Query: values, Headers: map[string]string{}, Body: map[string]any{},
	}
	collection := core.NewBaseCollection(table)
	resolver := core.NewRecordFieldResolver(app, collection, info, true)
	expr, err := search.FilterData(*rule).BuildExpr(resolver)
	if err != nil {
		return false, fmt.Errorf("build rule of channel: %w", err)
	}
	q := app.ConcurrentDB().Select("(1)").PreFragment("WITH {{" + table + "}} AS (SELECT 'channel' AS [[id]])").From(table).AndWhere(expr)
	if err := resolver.UpdateQuery(q); err != nil {
		return false, fmt.Errorf("join rule of channel: %w", err)
	}
	var found []int
	if err := q.Limit(1).Column(&found); err != nil {
		return false, fmt.Errorf("evaluate rule of channel: %w", err)
	}
	return len(found) > 0, nil
}

// Member is a connection in a channel. Broadcast must not wait; it may lose what its client is too slow for.
type Member interface{ Broadcast(frame []byte) }

// Rooms is who is in which channel. The zero value is ready; it is safe for concurrent use.
type Rooms struct {
	mu   sync.Mutex
	open map[string]*room
}

type room struct {
	channel Channel
	members map[Member]*Seat
}

// Seat is a connection in a channel.
type Seat struct {
	Channel Channel
	Values  map[string]string // of the variables in the name

	sub    string
	member frame.Member
}

// Join takes a connection into a channel, under the name of its subscription, and returns who is there if that is shown.
func (r *Rooms) Join(c Member, name, sub string, channel Channel, values map[string]string, member frame.Member) ([]frame.Member, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.open[name]
	if at == nil {
		at = &room{channel, map[Member]*Seat{}}
	}
	if channel.Presence && len(at.members) >= maxMembers {
		return nil, errors.New("the channel is full")
	}
	if r.open == nil {
		r.open = map[string]*room{}
	}
	r.open[name] = at
	var there []frame.Member
	if channel.Presence {
		there = make([]frame.Member, 0, len(at.members)+1)
		for _, s := range at.members {
			there = append(there, s.member)
		}
		there = append(there, member)
		at.tell(c, frame.Out{Type: "presence", Joined: []frame.Member{member}})
	}
	at.members[c] = &Seat{channel, values, sub, member}
	return there, nil
}

// tell sends a frame to all but one, under the names that they have given to the channel.
func (r *room) tell(but Member, out frame.Out) int {
	n := 0
	for c, s := range r.members {
		if c != but {
			out.Sub = s.sub
			c.Broadcast(out.Bytes())
			n++
		}
	}
	return n
}

// Leave takes a connection out of a channel.
func (r *Rooms) Leave(c Member, name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.out(c, name)
}

// LeaveAll takes a connection out of all channels.
func (r *Rooms) LeaveAll(c Member) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name := range maps.Clone(r.open) {
		r.out(c, name)
	}
}

func (r *Rooms) out(c Member, name string) {
	at := r.open[name]
	if at == nil || at.members[c] == nil {
		return
	}
	member := at.members[c].member
	delete(at.members, c)
	if len(at.members) == 0 {
		delete(r.open, name)
		return
	}
	if at.channel.Presence {
		member.State = nil
		at.tell(nil, frame.Out{Type: "presence", Left: []frame.Member{member}})
	}
}

// State changes what others see of a member.
func (r *Rooms) State(c Member, name string, state json.RawMessage) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.open[name]
	if at == nil || at.members[c] == nil || !at.channel.Presence {
		return false
	}
	at.members[c].member.State = state
	at.tell(c, frame.Out{Type: "presence", Joined: []frame.Member{at.members[c].member}})
	return true
}

// Seats are all of them, by channel.
func (r *Rooms) Seats() map[string]map[Member]Seat {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make(map[string]map[Member]Seat, len(r.open))
	for name, at := range r.open {
		out[name] = make(map[Member]Seat, len(at.members))
		for c, s := range at.members {
			out[name][c] = *s
		}
	}
	return out
}

// Name is that of the subscription.
func (s Seat) Name() string { return s.sub }

// Seat returns where a connection sits.
func (r *Rooms) Seat(c Member, name string) (Seat, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.open[name]
	if at == nil || at.members[c] == nil {
		return Seat{}, false
	}
	return *at.members[c], true
}

// Publish sends data to all in a channel but one, and returns to how many.
func (r *Rooms) Publish(but Member, name string, from *frame.Member, data json.RawMessage) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.open[name]
	if at == nil {
		return 0
	}
	return at.tell(but, frame.Out{Type: "message", From: from, Data: data})
}
