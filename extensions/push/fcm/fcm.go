// Package fcm sends by Firebase Cloud Messaging's HTTP v1 interface. The requests are made by Google's SDK, or, with the
// build tag fcmraw, which makes the program 20 MB smaller, by a few lines of this package. Everything else is the same for
// both: the message, the access token, and the reading of answers.
//
// The SDK is held on a short lead: one Send for each message from our pool, because its batches use 50 workers, and its
// hidden retries are switched off, because one 503 would block a call for seven seconds. The queue owns retries.
package fcm

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"regexp"
	"strings"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/push/sender"
)

const (
	defaultEndpoint = "https://fcm.googleapis.com"
	maxPayload      = 4096 // bytes of notification and data
	maxToken        = 4096 // bytes; today's have about 160
	conns           = 8    // connections
)

// Options say how to reach FCM. Size is how many calls run at once.
type Options struct {
	Outbound outbound.Options
	Size     int
	Breakers *outbound.Breakers

	// Endpoint replaces Google's, for stubs. The service account may then name another OAuth server, too.
	Endpoint string
}

// wire makes the request for one message, with the access token of the context.
type wire interface {
	// send returns the answer, or why there is none. dry asks for a judgement without a delivery.
	send(ctx context.Context, message []byte, dry bool) (*sender.Answer, sender.Result)
}

// Sender sends by FCM. It is safe for concurrent use.
type Sender struct {
	endpoint string
	client   *http.Client
	tokens   *tokens
	pool     *sender.Pool
	wire     wire
}

// New returns a sender, or what is wrong with the credentials.
func New(c Credentials, o Options) (*Sender, error) { return build(c, o, newWire) }

func build(c Credentials, o Options, wire func(client *http.Client, endpoint, project string) (wire, error)) (*Sender, error) {
	a, err := c.parse(o.Endpoint != "")
	if err != nil {
		return nil, err
	}
	o.Outbound.ConnsPerHost = conns
	s := &Sender{endpoint: cmp.Or(o.Endpoint, defaultEndpoint), client: outbound.NewClient(o.Outbound), pool: sender.NewPool(o.Size, o.Size, o.Breakers)}
	s.tokens = &tokens{account: a, client: s.client}
	s.wire, err = wire(s.client, s.endpoint, a.ProjectID)
	return s, err
}

// Close implements sender.Sender.
func (s *Sender) Close() { s.client.CloseIdleConnections() }

// Send implements sender.Sender.
func (s *Sender) Send(ctx context.Context, pushes []sender.Push) []sender.Result {
	form := regexp.MustCompile(`^[A-Za-z0-9_:.%-]+$`)
	host := func(i int) string {
		if t := pushes[i].Target.Token; len(t) > maxToken || !form.MatchString(t) {
			return ""
		}
		return s.endpoint
	}
	return s.pool.Each(ctx, len(pushes), host, func(ctx context.Context, i int) sender.Result {
		if host(i) == "" {
			return sender.Result{Outcome: sender.Rejected, Code: sender.CodeBadTarget, Detail: "a registration token of FCM has letters, digits and a few signs"}
		}
		return s.one(ctx, pushes[i], false)
	})
}

// Check implements sender.Sender: it asks FCM to judge, and not to deliver, a message to a token that cannot exist.
func (s *Sender) Check(ctx context.Context) sender.Result {
	probe := sender.Push{Target: sender.Target{Token: "credentials-are-checked"}, Notification: &sender.Notification{Silent: true, Data: map[string]string{"check": "1"}}}
	r := s.pool.One(ctx, s.endpoint, func(ctx context.Context) sender.Result { return s.one(ctx, probe, true) })
	if r.Outcome == sender.Dead || (r.Outcome == sender.Rejected && r.Status == http.StatusBadRequest) {
		return sender.Result{Outcome: sender.Accepted, Status: r.Status}
	}
	return r
}

func (s *Sender) one(ctx context.Context, p sender.Push, dry bool) sender.Result {
	message, r := encode(p)
	if r.Outcome != 0 {
		return r
	}
	access, r := s.tokens.get(ctx)
	if r.Outcome != 0 {
		return r
	}
	answer, r := s.wire.send(context.WithValue(ctx, accessKey{}, access), message, dry)
	if answer != nil && answer.Status == http.StatusUnauthorized {
		// It may have been revoked before its time. A new one is refused for a reason.
		s.tokens.forget(access)
		if access, r = s.tokens.get(ctx); r.Outcome != 0 {
			return r
		}
		answer, r = s.wire.send(context.WithValue(ctx, accessKey{}, access), message, dry)
	}
	if answer == nil {
		return r
	}
	return result(answer)
}

// failure is Google's form of an error.
type failure struct {
	Error struct {
		Status  string `json:"status"`
		Message string `json:"message"`
		Details []struct {
			ErrorCode  string `json:"errorCode"`
			Violations []struct {
				Field string `json:"field"`
			} `json:"fieldViolations"`
		} `json:"details"`
	} `json:"error"`
}

// result reads an answer by Google's table of error codes.
func result(a *sender.Answer) sender.Result {
	if a.Status == http.StatusOK {
		var ok struct {
			Name string `json:"name"`
		}
		if err := json.Unmarshal(a.Body, &ok); err != nil || ok.Name == "" {
			return sender.Result{Outcome: sender.Retry, Code: sender.CodeUnreadable, Detail: "the answer is not one of FCM"}
		}
		return sender.Result{Outcome: sender.Accepted, ID: ok.Name, Status: a.Status}
	}
	var f failure
	_ = json.Unmarshal(a.Body, &f) // a page in HTML has a status, too
	code, ofToken := f.Error.Status, false
	for _, d := range f.Error.Details {
		code = cmp.Or(d.ErrorCode, code)
		for _, v := range d.Violations {
			ofToken = ofToken || v.Field == "message.token"
		}
	}
	// The field is not always named.
	ofToken = ofToken || strings.Contains(f.Error.Message, "not a valid FCM registration token")
	r := sender.Result{Code: cmp.Or(code, http.StatusText(a.Status)), Status: a.Status}
	switch {
	case code == "UNREGISTERED", code == "INVALID_ARGUMENT" && ofToken:
		r.Outcome = sender.Dead
	case a.Status == http.StatusTooManyRequests, a.Status >= 500:
		return sender.Later(a, r.Code)
	case a.Status == http.StatusUnauthorized, a.Status == http.StatusForbidden && code != "SENDER_ID_MISMATCH":
		r.Outcome, r.Detail = sender.Unauthorized, f.Error.Message
	default:
		r.Outcome, r.Detail = sender.Rejected, f.Error.Message
	}
	return r
}

// accessKey is where a call's context has the access token.
type accessKey struct{}

// authorize adds the access token of the context.
type authorize struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (a authorize) RoundTrip(r *http.Request) (*http.Response, error) {
	access, _ := r.Context().Value(accessKey{}).(string)
	r = r.Clone(r.Context())
	r.Header.Set("Authorization", "Bearer "+access)
	return a.next.RoundTrip(r)
}
