// Package conformance is the suite that every push sender must pass, over the stand-in of its provider: what comes back for
// each way in which a provider answers, or does not. It is imported by tests alone.
package conformance

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/internal/stubs/loopback"
	"github.com/satchelbase/satchel/extensions/push/sender"
)

// Size is how many calls at once the suite's senders are made for.
const Size = 16

// Provider is a sender's other side for one test.
type Provider struct {
	// New makes a sender with the credentials that are good now.
	New func(breakers *outbound.Breakers) (sender.Sender, error)

	// Token makes a token that is good but for what its prefix makes the stub do.
	Token func(prefix string) string

	// BehaveAll is that of the stub's script.
	BehaveAll func(b loopback.Behaviour)

	// Rotate makes the credentials so far bad. Nil: there is nothing that the provider could refuse.
	Rotate func() error

	// Minted counts the tokens that senders have made or got for themselves. Nil: they need none.
	Minted func() int

	// Server is where requests arrive.
	Server *loopback.Server

	// Batch is how many pushes go into one request.
	Batch int

	// Dated says that a dead token comes with a time.
	Dated bool

	// Denied is the outcome when the provider refuses the sender for one token.
	Denied sender.Outcome
}

// Run runs the suite. start makes a stub of its own for each test.
func Run(t *testing.T, start func(t *testing.T) Provider) {
	for name, test := range map[string]func(t *testing.T, s *setup){
		"accepted":    accepted,
		"answers":     answers,
		"mixed":       mixed,
		"broken":      broken,
		"slow":        slow,
		"canceled":    canceled,
		"rotation":    rotation,
		"limit":       limit,
		"connections": connections,
		"breaker":     breaker,
		"bounded":     bounded,
		"bad target":  badTarget,
		"check":       check,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := start(t)
			breakers := outbound.NewBreakers(300 * time.Millisecond)
			s, err := p.New(breakers)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(s.Close)
			test(t, &setup{p, s, breakers})
		})
	}
}

type setup struct {
	Provider

	sender   sender.Sender
	breakers *outbound.Breakers
}

// Full is a notification with everything in it.
func Full() *sender.Notification {
	badge := 3
	return &sender.Notification{
		Title: "Ada & Bob", Body: "Grüße <b>an alle</b> 👋", Image: "https://example.com/a.png", Data: map[string]string{"route": "/posts/1"},
		Actions: []sender.Action{{ID: "open", Title: "Open"}}, Badge: &badge, Sound: "default", Category: "post", Channel: "posts",
		CollapseKey: "post:1", TTL: time.Hour, Priority: sender.PriorityHigh,
	}
}

// Silent is a notification that shows nothing.
func Silent() *sender.Notification {
	return &sender.Notification{Data: map[string]string{"sync": "1"}, Silent: true, CollapseKey: "sync", TTL: sender.NowOrNever}
}

// plain is one that differs by its text alone.
func plain() *sender.Notification { return &sender.Notification{Title: "Hello"} }

// push sends one notification to one token.
func (s *setup) push(t *testing.T, token string, n *sender.Notification) sender.Result {
	t.Helper()
	return s.send(t.Context(), n, token)[0]
}

func (s *setup) send(ctx context.Context, n *sender.Notification, tokens ...string) []sender.Result {
	pushes := make([]sender.Push, len(tokens))
	for i, token := range tokens {
		pushes[i] = sender.Push{Target: sender.Target{Token: token}, Notification: n, Data: map[string]string{"delivery": "d"}}
	}
	return s.sender.Send(ctx, pushes)
}

func (s *setup) tokens(n int) []string {
	list := make([]string, n)
	for i := range list {
		list[i] = s.Token("")
	}
	return list
}

func accepted(t *testing.T, s *setup) {
	for name, n := range map[string]*sender.Notification{
		"full": Full(), "silent": Silent(), "plain": plain(), "badge": {Badge: new(int)}, "key of several lines": {Title: "t", CollapseKey: "a\r\nb: c\x00ü"},
	} {
		if err := n.Check(); err != nil {
			t.Fatal(err)
		}
		if r := s.push(t, s.Token(""), n); r.Outcome != sender.Accepted || r.ID == "" {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if got := s.sender.Send(t.Context(), nil); len(got) != 0 {
		t.Errorf("nothing: %v", got)
	}
}

func answers(t *testing.T, s *setup) {
	for prefix, want := range map[string]sender.Result{
		"dead00": {Outcome: sender.Dead}, "429429": {Outcome: sender.Retry, After: 7 * time.Second}, "503503": {Outcome: sender.Retry, Status: 503},
	} {
		before := s.Server.Requests()
		r := s.push(t, s.Token(prefix), Full())
		if r.Outcome != want.Outcome || r.After != want.After || (want.Status != 0 && r.Status != want.Status) || r.Code == "" {
			t.Errorf("%s: %+v", prefix, r)
		}
		if r.Outcome == sender.Dead && s.Dated && (time.Since(r.At) < 50*time.Minute || time.Since(r.At) > 70*time.Minute) {
			t.Errorf("%s: dead since %v", prefix, r.At)
		}
		// Access tokens may take a request more, another try may not.
		if n := s.Server.Requests() - before; n > 2 {
			t.Errorf("%s: %d requests", prefix, n)
		}
	}
	if r := s.push(t, s.Token("bad000"), Full()); r.Outcome != sender.Dead && r.Outcome != sender.Rejected {
		t.Errorf("unknown token: %+v", r)
	}
}

// Each result is that of the push at its place, across requests.
func mixed(t *testing.T, s *setup) {
	tokens := s.tokens(250)
	for i := 0; i < len(tokens); i += 7 {
		tokens[i] = s.Token("dead00")
	}
	tokens[100] = "nonsense\n"
	for i, r := range s.send(t.Context(), plain(), tokens...) {
		want := sender.Accepted
		switch {
		case i == 100:
			want = sender.Rejected
		case i%7 == 0:
			want = sender.Dead
		}
		if r.Outcome != want {
			t.Fatalf("%d: %+v, want %v", i, r, want)
		}
	}
}

func broken(t *testing.T, s *setup) {
	s.push(t, s.Token(""), plain()) // what a sender has to get for itself, it has
	for b, code := range map[loopback.Behaviour]string{loopback.Reset: sender.CodeUnreachable, loopback.Huge: sender.CodeUnreadable, loopback.Gibberish: ""} {
		s.BehaveAll(b)
		before := s.Server.Requests()
		if r := s.push(t, s.Token(""), plain()); r.Outcome != sender.Retry || (code != "" && r.Code != code) {
			t.Errorf("%d: %+v", b, r)
		}
		if n := s.Server.Requests() - before; n != 1 {
			t.Errorf("%d: %d requests", b, n)
		}
	}
	s.BehaveAll(loopback.Fine)
	if r := s.push(t, s.Token(""), plain()); r.Outcome != sender.Accepted {
		t.Errorf("after all that: %+v", r)
	}
}

// A provider that does not answer costs the caller no more time than it has, and the sender nothing.
func slow(t *testing.T, s *setup) {
	s.push(t, s.Token(""), plain())
	s.BehaveAll(loopback.Slow)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	for i, r := range s.send(ctx, plain(), s.tokens(3*Size)...) {
		if r.Outcome != sender.Retry {
			t.Fatalf("%d: %+v", i, r)
		}
	}
	s.BehaveAll(loopback.Fine)
	if r := s.push(t, s.Token(""), plain()); r.Outcome != sender.Accepted {
		t.Errorf("after that: %+v", r)
	}
}

func canceled(t *testing.T, s *setup) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	before := s.Server.Requests()
	for i, r := range s.send(ctx, plain(), s.tokens(5)...) {
		if r.Outcome != sender.Retry || r.Code != sender.CodeCanceled {
			t.Errorf("%d: %+v", i, r)
		}
	}
	if n := s.Server.Requests() - before; n != 0 {
		t.Errorf("%d requests", n)
	}
}

func rotation(t *testing.T, s *setup) {
	if s.Rotate == nil {
		t.Skip("the provider knows no credentials of ours")
	}
	if r := s.push(t, s.Token(""), plain()); r.Outcome != sender.Accepted {
		t.Fatalf("before: %+v", r)
	}
	if err := s.Rotate(); err != nil {
		t.Fatal(err)
	}
	for i, r := range s.send(t.Context(), plain(), s.tokens(3*Size)...) { // more than would open a breaker
		if r.Outcome != sender.Unauthorized || r.Code == "" {
			t.Fatalf("old credentials, %d: %+v", i, r)
		}
	}
	fresh, err := s.New(s.breakers)
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Close()
	s.sender = fresh
	if r := s.push(t, s.Token(""), plain()); r.Outcome != sender.Accepted {
		t.Errorf("new credentials: %+v", r)
	}
}

// The longest text that the sender takes is one that the provider takes, and the next is refused without a call.
func limit(t *testing.T, s *setup) {
	for _, letter := range []string{"x", "é", "<"} {
		n := func(length int) *sender.Notification {
			return &sender.Notification{Title: "t", Body: strings.Repeat(letter, length)}
		}
		low, high := 1, 5000 // low fits, high does not
		for low+1 < high {
			middle := (low + high) / 2
			if r := s.push(t, s.Token(""), n(middle)); r.Code == sender.CodeTooLarge {
				high = middle
			} else {
				low = middle
			}
		}
		if r := s.push(t, s.Token(""), n(low)); r.Outcome != sender.Accepted || (low*len(letter) < 3500 && letter != "<") {
			t.Errorf("%d of %q: %+v", low, letter, r)
		}
		before := s.Server.Requests()
		if r := s.push(t, s.Token(""), n(high)); r.Outcome != sender.Rejected || s.Server.Requests() != before {
			t.Errorf("%d of %q: %+v", high, letter, r)
		}
	}
}

// A burst out of nothing opens few connections, a later one none, and one that the other side closed is replaced.
func connections(t *testing.T, s *setup) {
	for round := range 2 {
		for i, r := range s.send(t.Context(), plain(), s.tokens(20*Size)...) {
			if r.Outcome != sender.Accepted {
				t.Fatalf("round %d, %d: %+v", round, i, r)
			}
		}
	}
	if n := s.Server.Conns(); n > 8 {
		t.Errorf("%d connections", n)
	}
	if n := 1; s.Minted != nil && s.Minted() != n {
		t.Errorf("%d tokens were made for it", s.Minted())
	}
	before := s.Server.Conns()
	s.Server.Drop()
	var r sender.Result
	for range 5 { // a request that was under way is the queue's to repeat
		if r = s.push(t, s.Token(""), plain()); r.Outcome == sender.Accepted {
			break
		}
	}
	if r.Outcome != sender.Accepted || s.Server.Conns() == before {
		t.Errorf("after the connections were closed: %+v", r)
	}
}

func breaker(t *testing.T, s *setup) {
	s.push(t, s.Token(""), plain())
	s.BehaveAll(loopback.Down)
	before := s.Server.Requests()
	var last sender.Result
	for range 40 {
		if last = s.push(t, s.Token(""), plain()); last.Outcome != sender.Retry {
			t.Fatalf("%+v", last)
		}
		if last.Code == sender.CodeBreaker {
			break
		}
	}
	if last.Code != sender.CodeBreaker || last.After <= 0 {
		t.Errorf("a provider that is down is called on: %+v", last)
	}
	if n := s.Server.Requests() - before; n > 20 {
		t.Errorf("%d requests", n)
	}
	s.BehaveAll(loopback.Fine)
	deadline := time.Now().Add(30 * time.Second)
	for last.Outcome != sender.Accepted && time.Now().Before(deadline) {
		last = s.push(t, s.Token(""), plain())
	}
	if last.Outcome != sender.Accepted {
		t.Errorf("a provider that is up again is not called: %+v", last)
	}
}

func bounded(t *testing.T, s *setup) {
	s.Server.SetLatency(5 * time.Millisecond)
	var done [3]chan []sender.Result
	for i := range done {
		done[i] = make(chan []sender.Result, 1)
		tokens := s.tokens(4 * Size)
		go func() { done[i] <- s.send(t.Context(), plain(), tokens...) }()
	}
	for _, d := range done {
		for i, r := range <-d {
			if r.Outcome != sender.Accepted {
				t.Fatalf("%d: %+v", i, r)
			}
		}
	}
	if n := s.Server.MaxInFlight(); n > Size || (s.Batch == 1 && n < Size/2) {
		t.Errorf("%d calls at once", n)
	}
}

func badTarget(t *testing.T, s *setup) {
	for _, token := range []string{"", strings.Repeat("ab", 5000), "../x", "\x00", "ExponentPushToken[]", `{"endpoint":"https://127.0.0.1/"}`} {
		if r := s.push(t, token, plain()); r.Outcome != sender.Rejected && r.Outcome != sender.Dead {
			t.Errorf("%.20q: %+v", token, r)
		}
	}
}

func check(t *testing.T, s *setup) {
	if r := s.sender.Check(t.Context()); r.Outcome != sender.Accepted {
		t.Errorf("good credentials: %+v", r)
	}
	s.BehaveAll(loopback.Denied)
	if r := s.push(t, s.Token(""), plain()); r.Outcome != s.Denied {
		t.Errorf("denied: %+v", r)
	}
	if s.Denied == sender.Unauthorized {
		if r := s.sender.Check(t.Context()); r.Outcome != sender.Unauthorized {
			t.Errorf("bad credentials: %+v", r)
		}
		s.BehaveAll(loopback.Down)
		if r := s.sender.Check(t.Context()); r.Outcome != sender.Retry {
			t.Errorf("nobody to ask: %+v", r)
		}
	}
}
