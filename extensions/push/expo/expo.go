// Package expo sends by Expo's push service, which passes on to APNs and FCM with the credentials that it keeps. What it
// answers at once is a ticket; whether the device was reached shows in a receipt, some minutes later.
package expo

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/push/sender"
)

const (
	defaultEndpoint = "https://exp.host"
	maxBatch        = 100  // messages of a request
	maxPayload      = 4096 // bytes of a message
	maxToken        = 200  // characters between the brackets; today's have 22
	conns           = 6    // what Expo's own client uses
)

// Credentials may be empty: Expo asks for an access token only if the project's owner has switched that on.
type Credentials struct {
	AccessToken string `json:"accessToken"`
}

// Validate tells what is wrong with credentials.
func (c Credentials) Validate() error {
	if !regexp.MustCompile(`^[\x21-\x7e]{0,512}$`).MatchString(c.AccessToken) {
		return errors.New("accessToken: must be the token that Expo shows, without spaces")
	}
	return nil
}

// Options say how to reach Expo. Size is how many requests, of 100 messages each, run at once.
type Options struct {
	Outbound outbound.Options
	Size     int
	Breakers *outbound.Breakers

	// Endpoint replaces Expo's, for stubs.
	Endpoint string
}

// Sender sends by Expo. It is safe for concurrent use.
type Sender struct {
	access   string
	endpoint string
	client   *http.Client
	pool     *sender.Pool
}

// New returns a sender, or what is wrong with the credentials.
func New(c Credentials, o Options) (*Sender, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	size := min(o.Size, conns)
	o.Outbound.ConnsPerHost = conns
	return &Sender{c.AccessToken, cmp.Or(o.Endpoint, defaultEndpoint), outbound.NewClient(o.Outbound), sender.NewPool(size, size, o.Breakers)}, nil
}

// Close implements sender.Sender.
func (s *Sender) Close() { s.client.CloseIdleConnections() }

// Check implements sender.Sender: it asks for the receipt of nothing.
func (s *Sender) Check(ctx context.Context) sender.Result {
	r := s.Receipts(ctx, []string{"00000000-0000-0000-0000-000000000000"})[0]
	if r.Outcome == sender.Pending {
		return sender.Result{Outcome: sender.Accepted, Status: http.StatusOK}
	}
	return r
}

// message is one of Expo's.
type message struct {
	To               string            `json:"to"`
	Title            string            `json:"title,omitempty"`
	Body             string            `json:"body,omitempty"`
	Data             map[string]string `json:"data,omitempty"`
	Sound            string            `json:"sound,omitempty"`
	TTL              int               `json:"ttl"`
	Priority         string            `json:"priority"`
	Badge            *int              `json:"badge,omitempty"`
	ChannelID        string            `json:"channelId,omitempty"`
	CategoryID       string            `json:"categoryId,omitempty"`
	CollapseID       string            `json:"collapseId,omitempty"`
	Tag              string            `json:"tag,omitempty"`
	MutableContent   bool              `json:"mutableContent,omitempty"`
	ContentAvailable bool              `json:"_contentAvailable,omitempty"`
	RichContent      *rich             `json:"richContent,omitempty"`
}

type rich struct {
	Image string `json:"image"`
}

func isToken(text string) bool {
	kind, rest, found := strings.Cut(text, "[")
	inner, closed := strings.CutSuffix(rest, "]")
	odd := func(r rune) bool { return r <= ' ' || r > '~' || r == ']' }
	return found && closed && (kind == "ExponentPushToken" || kind == "ExpoPushToken") && inner != "" && len(inner) <= maxToken && strings.IndexFunc(inner, odd) < 0
}

// encode makes the message, or says why there is none to make.
func encode(p sender.Push) (json.RawMessage, sender.Result) {
	n := p.Notification
	refuse := func(code, detail string) (json.RawMessage, sender.Result) {
		return nil, sender.Result{Outcome: sender.Rejected, Code: code, Detail: detail}
	}
	if !isToken(p.Target.Token) {
		return refuse(sender.CodeBadTarget, "a token of Expo has the form ExponentPushToken[...]")
	}
	data := p.Payload()
	if len(n.Actions) > 0 {
		actions, err := sender.Encode(n.Actions)
		if err != nil {
			return refuse(sender.CodeInvalid, err.Error())
		}
		own := map[string]string{"actions": string(actions)}
		maps.Copy(own, data)
		data = own
	}
	m := message{
		To: p.Target.Token, Title: n.Title, Body: n.Body, Data: data, Sound: n.Sound, TTL: int(n.Lifetime().Seconds()), Priority: "normal", Badge: n.Badge,
		ChannelID: n.Channel, CategoryID: n.Category, CollapseID: sender.Shorten(n.CollapseKey, 64), Tag: n.CollapseKey, ContentAvailable: n.Silent,
	}
	if n.Urgency() == sender.PriorityHigh {
		m.Priority = "high"
	}
	if n.Image != "" {
		m.RichContent, m.MutableContent = &rich{n.Image}, true
	}
	raw, err := sender.Encode(m)
	if err != nil {
		return refuse(sender.CodeInvalid, err.Error())
	}
	if len(raw) > maxPayload {
		return refuse(sender.CodeTooLarge, fmt.Sprintf("the message has %d bytes, Expo takes %d", len(raw), maxPayload))
	}
	return raw, sender.Result{}
}

// Send implements sender.Sender. It makes one request of up to 100 pushes.
func (s *Sender) Send(ctx context.Context, pushes []sender.Push) []sender.Result {
	results := make([]sender.Result, len(pushes))
	var bodies []json.RawMessage
	var places []int // of the bodies among the pushes
	for i, p := range pushes {
		raw, r := encode(p)
		if results[i] = r; r.Outcome == 0 {
			bodies, places = append(bodies, raw), append(places, i)
		}
	}
	batches := (len(bodies) + maxBatch - 1) / maxBatch
	whole := s.pool.Each(ctx, batches, func(int) string { return s.endpoint }, func(ctx context.Context, b int) sender.Result {
		from, to := b*maxBatch, min((b+1)*maxBatch, len(bodies))
		own := make([]sender.Result, to-from)
		r := s.batch(ctx, bodies[from:to], own)
		for i := range own {
			results[places[from+i]] = own[i]
		}
		return r
	})
	for i, place := range places {
		if results[place].Outcome == 0 {
			results[place] = whole[i/maxBatch] // the request as a whole did not work
		}
	}
	return results
}

// ticket is what Expo says of one message, and of one receipt.
type ticket struct {
	Status  string `json:"status"`
	ID      string `json:"id"`
	Message string `json:"message"`
	Details struct {
		Error string `json:"error"`
	} `json:"details"`
}

// result reads a ticket or receipt. The message names the token and is not kept.
func (t ticket) result() sender.Result {
	r := sender.Result{Outcome: sender.Accepted, ID: t.ID, Code: t.Details.Error, Status: http.StatusOK}
	switch {
	case t.Status == "ok":
	case t.Details.Error == "DeviceNotRegistered":
		r.Outcome = sender.Dead
	case slices.Contains([]string{"MessageRateExceeded", "ExpoError", "ProviderError"}, t.Details.Error):
		r.Outcome = sender.Retry
	case slices.Contains([]string{"InvalidCredentials", "DeveloperError", "MismatchSenderId"}, t.Details.Error):
		r.Outcome, r.Detail = sender.Unauthorized, "Expo has no good credentials of APNs or FCM for the project"
	default:
		r.Outcome = sender.Rejected
	}
	return r
}

// batch sends messages in one request and writes what became of each. Expo refuses all of them for one, such as one to a
// token of another project, which anybody can register: then each half goes on its own.
func (s *Sender) batch(ctx context.Context, messages []json.RawMessage, results []sender.Result) sender.Result {
	var out struct {
		Data []ticket `json:"data"`
	}
	r := s.call(ctx, "send", messages, &out)
	n := len(messages)
	switch {
	case r.Outcome == sender.Accepted && len(out.Data) == n:
		for i, t := range out.Data {
			results[i] = t.result()
		}
		return r
	case r.Outcome == sender.Accepted:
		r = sender.Result{Outcome: sender.Retry, Code: sender.CodeUnreadable, Detail: "Expo answered with another number of tickets"}
	case r.Outcome == sender.Rejected && n > 1:
		if r = s.batch(ctx, messages[:n/2], results[:n/2]); r.Outcome != sender.Retry {
			return s.batch(ctx, messages[n/2:], results[n/2:])
		}
		results = results[n/2:] // later, with what else waits
	}
	for i := range results {
		results[i] = r
	}
	return r
}

// Receipts implements sender.Receipts. Accepted: the device's own provider has it. Pending: ask again later, Expo keeps
// receipts for a day.
func (s *Sender) Receipts(ctx context.Context, ids []string) []sender.Result {
	results := make([]sender.Result, len(ids))
	if len(ids) > sender.MaxReceipts {
		for i := range results {
			results[i] = sender.Result{Outcome: sender.Rejected, Code: sender.CodeTooLarge, Detail: "more ids than Expo takes"}
		}
		return results
	}
	var out struct {
		Data map[string]ticket `json:"data"`
	}
	whole := s.pool.One(ctx, s.endpoint, func(ctx context.Context) sender.Result {
		return s.call(ctx, "getReceipts", map[string][]string{"ids": ids}, &out)
	})
	for i, id := range ids {
		receipt, found := out.Data[id]
		switch {
		case whole.Outcome != sender.Accepted:
			results[i] = whole
		case !found:
			results[i] = sender.Result{Outcome: sender.Pending, ID: id}
		default:
			receipt.ID = id
			results[i] = receipt.result()
		}
	}
	return results
}

// call makes a request. Accepted: it was answered, and out is filled.
func (s *Sender) call(ctx context.Context, name string, in, out any) sender.Result {
	body, err := sender.Encode(in)
	if err != nil {
		return sender.Result{Outcome: sender.Rejected, Code: sender.CodeInvalid, Detail: err.Error()}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.endpoint+"/--/api/v2/push/"+name, bytes.NewReader(body))
	if err != nil {
		return sender.Result{Outcome: sender.Rejected, Code: sender.CodeInvalid, Detail: "the endpoint is no address"}
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Accept", "application/json")
	if s.access != "" {
		req.Header.Set("Authorization", "Bearer "+s.access)
	}
	a, r := sender.Call(s.client, req)
	if a == nil {
		return r
	}
	var refused struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
	}
	_ = json.Unmarshal(a.Body, &refused) // a page in HTML has a status, too
	r = sender.Result{Status: a.Status, Code: http.StatusText(a.Status)}
	if len(refused.Errors) > 0 {
		r.Code, r.Detail = refused.Errors[0].Code, refused.Errors[0].Message
	}
	switch {
	case a.Status == http.StatusOK && len(refused.Errors) == 0:
		if err := json.Unmarshal(a.Body, out); err != nil {
			return sender.Result{Outcome: sender.Retry, Code: sender.CodeUnreadable, Detail: "the answer is not one of Expo"}
		}
		return sender.Result{Outcome: sender.Accepted, Status: a.Status}
	case a.Status == http.StatusTooManyRequests, a.Status >= 500:
		return sender.Later(a, r.Code)
	case a.Status == http.StatusUnauthorized, a.Status == http.StatusForbidden:
		r.Outcome = sender.Unauthorized
	default:
		r.Outcome = sender.Rejected
	}
	return r
}
