// Package webpush sends Web Push messages (RFC 8030), encrypted for the subscription (RFC 8291) and signed with the
// server's own key (VAPID, RFC 8292). UnifiedPush is the same protocol with other push services.
//
// The subscription, and with it the address that is called, comes from a client: the guarded client of package outbound
// calls it, and nothing of the answer goes back to whoever registered it.
package webpush

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/push/sender"
)

// conns bounds the connections to one push service, of which clients can name many.
const conns = 8

// Bounds of an answer, which may be that of anybody.
const (
	maxID   = 512 // bytes
	maxWait = 15 * time.Minute
)

// Subscription is what the browser's PushSubscription.toJSON gives. Other members are ignored.
type Subscription struct {
	Endpoint string `json:"endpoint"`
	Keys     struct {
		P256DH string `json:"p256dh"`
		Auth   string `json:"auth"`
	} `json:"keys"`
}

// Options say how to reach push services. Size is how many calls run at once.
type Options struct {
	Outbound outbound.Options
	Size     int
	Breakers *outbound.Breakers
}

// Sender sends Web Push messages. It is safe for concurrent use.
type Sender struct {
	vapid  *vapid
	client *http.Client
	pool   *sender.Pool
}

// New returns a sender, or what is wrong with the credentials.
func New(c Credentials, o Options) (*Sender, error) {
	v, err := newVAPID(c)
	if err != nil {
		return nil, err
	}
	o.Outbound.ConnsPerHost = conns
	perHost := (o.Size + 1) / 2 // what a client has named cannot keep all calls
	return &Sender{vapid: v, client: outbound.NewClient(o.Outbound), pool: sender.NewPool(o.Size, perHost, o.Breakers)}, nil
}

// Close implements sender.Sender.
func (s *Sender) Close() { s.client.CloseIdleConnections() }

// PublicKey is the application server key that browsers subscribe with, in base64url.
func (s *Sender) PublicKey() string { return s.vapid.public }

// Check implements sender.Sender. There is nobody to ask: the keys are this server's own, and New has checked them.
func (s *Sender) Check(context.Context) sender.Result { return sender.Result{Outcome: sender.Accepted} }

// Parse reads a subscription and tells whether anything can be sent to it.
func Parse(token string) (Subscription, error) {
	var sub Subscription
	if err := json.Unmarshal([]byte(token), &sub); err != nil {
		return sub, errors.New("a subscription is JSON with endpoint, keys.p256dh and keys.auth")
	}
	_, err := sub.receiver()
	return sub, err
}

// Send implements sender.Sender.
func (s *Sender) Send(ctx context.Context, pushes []sender.Push) []sender.Result {
	subs, origins := make([]Subscription, len(pushes)), make([]string, len(pushes))
	for i, p := range pushes {
		sub, err := Parse(p.Target.Token)
		if u, bad := url.Parse(sub.Endpoint); err == nil && bad == nil && outbound.CheckURL(u) == nil {
			subs[i], origins[i] = sub, origin(u)
		}
	}
	return s.pool.Each(ctx, len(pushes), func(i int) string { return origins[i] }, func(ctx context.Context, i int) sender.Result {
		if origins[i] == "" {
			return sender.Result{Outcome: sender.Rejected, Code: sender.CodeBadTarget, Detail: "the subscription is not one with an https endpoint and keys"}
		}
		return s.one(ctx, pushes[i], subs[i], origins[i])
	})
}

// origin is what a VAPID token is for (RFC 6454 section 6.1).
func origin(u *url.URL) string {
	return "https://" + strings.ToLower(strings.TrimSuffix(u.Host, ":443"))
}

func (s *Sender) one(ctx context.Context, p sender.Push, sub Subscription, origin string) sender.Result {
	body, r := message(p, sub)
	if r.Outcome != 0 {
		return r
	}
	authorization, err := s.vapid.header(origin)
	if err != nil {
		return sender.Result{Outcome: sender.Unauthorized, Code: sender.CodeInvalid, Detail: err.Error()}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, sub.Endpoint, bytes.NewReader(body))
	if err != nil {
		return sender.Result{Outcome: sender.Rejected, Code: sender.CodeBadTarget, Detail: "the endpoint is no address"}
	}
	n := p.Notification
	req.Header.Set("Authorization", authorization)
	req.Header.Set("TTL", strconv.Itoa(int(n.Lifetime().Seconds())))
	req.Header.Set("Urgency", n.Urgency().String())
	req.Header.Set("Content-Encoding", "aes128gcm")
	req.Header.Set("Content-Type", "application/octet-stream")
	if n.CollapseKey != "" {
		req.Header.Set("Topic", sender.Topic(n.CollapseKey))
	}
	answer, r := sender.Knock(s.client, req)
	if answer == nil {
		return r
	}
	return result(answer)
}

// result reads an answer (RFC 8030 section 5 and RFC 8292 section 4.2). The text of the body is somebody else's and is not kept.
func result(a *sender.Answer) sender.Result {
	code := strconv.Itoa(a.Status)
	r := sender.Result{Code: code, Status: a.Status}
	switch {
	case a.Status >= 200 && a.Status < 300:
		r.Outcome, r.Code = sender.Accepted, ""
		if id := a.Header.Get("Location"); len(id) <= maxID {
			r.ID = id
		}
	case a.Status == http.StatusNotFound, a.Status == http.StatusGone:
		r.Outcome = sender.Dead
	case a.Status == http.StatusTooManyRequests, a.Status >= 500:
		r = sender.Later(a, code)
		r.After = min(r.After, maxWait)
	case a.Status == http.StatusUnauthorized, a.Status == http.StatusForbidden:
		// Of one subscription, not of the key: it was made with another application server key.
		r.Outcome, r.Detail = sender.Rejected, "the push service refuses the key; the subscription may belong to another one"
	default:
		r.Outcome = sender.Rejected
	}
	return r
}

// content is the JSON that the service worker's push event reads.
type content struct {
	Title    string            `json:"title,omitempty"`
	Body     string            `json:"body,omitempty"`
	Image    string            `json:"image,omitempty"`
	Badge    *int              `json:"badge,omitempty"`
	Sound    string            `json:"sound,omitempty"`
	Category string            `json:"category,omitempty"`
	Tag      string            `json:"tag,omitempty"`
	Silent   bool              `json:"silent,omitempty"`
	Actions  []sender.Action   `json:"actions,omitempty"`
	Data     map[string]string `json:"data,omitempty"`
}

// message is the encrypted body.
func message(p sender.Push, sub Subscription) ([]byte, sender.Result) {
	n := p.Notification
	plain, err := sender.Encode(content{n.Title, n.Body, n.Image, n.Badge, n.Sound, n.Category, n.CollapseKey, n.Silent, n.Actions, p.Payload()})
	if err != nil {
		return nil, sender.Result{Outcome: sender.Rejected, Code: sender.CodeInvalid, Detail: err.Error()}
	}
	if len(plain) > MaxPlain {
		return nil, sender.Result{Outcome: sender.Rejected, Code: sender.CodeTooLarge, Detail: fmt.Sprintf("the content has %d bytes, push services take %d", len(plain), MaxPlain)}
	}
	to, err := sub.receiver()
	if err == nil {
		var sealed []byte
		if sealed, err = to.encrypt(plain); err == nil {
			return sealed, sender.Result{}
		}
	}
	return nil, sender.Result{Outcome: sender.Rejected, Code: sender.CodeBadTarget, Detail: cmp.Or(err.Error(), "the keys are none")}
}
