// Package apns sends by Apple's push service, with sideshow/apns2 and remedies for what it leaves open: Retry-After is
// kept, a signing key is checked before it is used, connections that nobody uses are closed, answers are bounded, and "now
// or never" is said with a time in the past, because the library cannot send an expiration of zero.
package apns

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"time"

	"github.com/sideshow/apns2"
	"github.com/sideshow/apns2/token"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/push/sender"
)

const (
	maxPayload  = 4096 // bytes
	maxCollapse = 64   // bytes
	maxToken    = 200  // hexadecimal digits; today's are 64, and Apple says not to count on it

	// conns is per host. One carries 1000 calls; more are for when it goes away.
	conns = 4

	// renewal is how soon a provider token may be replaced: APNs refuses providers that do it more often than every 20
	// minutes.
	renewal = 20 * time.Minute
)

// Credentials are what a developer gets from Apple.
type Credentials struct {
	Key    string `json:"key"`    // the .p8 file
	KeyID  string `json:"keyId"`  // 10 characters
	TeamID string `json:"teamId"` // 10 characters
	Topic  string `json:"topic"`  // the app's bundle id
}

// Options say how to reach APNs. Size is how many calls run at once.
type Options struct {
	Outbound outbound.Options
	Size     int
	Breakers *outbound.Breakers

	// Production and Sandbox replace Apple's hosts, for stubs.
	Production, Sandbox string
}

// Validate tells what is wrong with credentials, as far as their form says.
func (c Credentials) Validate() error {
	var problems []error
	if _, err := c.parse(); err != nil {
		problems = append(problems, err)
	}
	id := regexp.MustCompile(`^[A-Z0-9]{10}$`)
	if !id.MatchString(c.KeyID) {
		problems = append(problems, errors.New("keyId: must be the 10 characters of the key's name, AuthKey_XXXXXXXXXX.p8"))
	}
	if !id.MatchString(c.TeamID) {
		problems = append(problems, errors.New("teamId: must be the 10 characters that Apple's membership page shows"))
	}
	if !regexp.MustCompile(`^[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+$`).MatchString(c.Topic) {
		problems = append(problems, errors.New("topic: must be the app's bundle id, such as com.example.app"))
	}
	return errors.Join(problems...)
}

func (c Credentials) parse() (*ecdsa.PrivateKey, error) {
	key, err := token.AuthKeyFromBytes([]byte(c.Key))
	switch {
	case errors.Is(err, token.ErrAuthKeyNotPem):
		return nil, errors.New("key: must be the .p8 file that Apple lets you download once; this is no PEM text")
	case err != nil:
		return nil, errors.New("key: must be the .p8 file that Apple lets you download once; this is another kind of key or certificate")
	case key.Curve != elliptic.P256():
		return nil, errors.New("key: must be a key for P-256")
	}
	return key, nil
}

// Sender sends by APNs. It is safe for concurrent use.
type Sender struct {
	topic   string
	token   *token.Token
	pool    *sender.Pool
	clients map[sender.Environment]*apns2.Client
}

// New returns a sender, or what is wrong with the credentials.
func New(c Credentials, o Options) (*Sender, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	key, err := c.parse()
	if err != nil {
		return nil, err
	}
	s := &Sender{topic: c.Topic, token: &token.Token{AuthKey: key, KeyID: c.KeyID, TeamID: c.TeamID}, pool: sender.NewPool(o.Size, o.Size, o.Breakers)}
	if _, err := s.token.Generate(); err != nil { // later the library would swallow this
		return nil, fmt.Errorf("sign provider token: %w", err)
	}
	o.Outbound.HTTP2Only, o.Outbound.ConnsPerHost = true, conns
	hosts := map[sender.Environment]string{
		sender.Production: cmp.Or(o.Production, apns2.HostProduction), sender.Sandbox: cmp.Or(o.Sandbox, apns2.HostDevelopment),
	}
	s.clients = map[sender.Environment]*apns2.Client{}
	for env, host := range hosts {
		client := outbound.NewClient(o.Outbound)
		client.Transport = capture{client.Transport}
		s.clients[env] = &apns2.Client{Host: host, Token: s.token, HTTPClient: client}
	}
	return s, nil
}

// Close implements sender.Sender.
func (s *Sender) Close() {
	for _, c := range s.clients {
		c.HTTPClient.CloseIdleConnections()
	}
}

// Send implements sender.Sender.
func (s *Sender) Send(ctx context.Context, pushes []sender.Push) []sender.Result {
	host := func(i int) string {
		t := pushes[i].Target
		raw, err := hex.DecodeString(t.Token)
		if c := s.clients[t.Environment]; c != nil && err == nil && len(raw) > 0 && len(t.Token) <= maxToken {
			return c.Host
		}
		return ""
	}
	return s.pool.Each(ctx, len(pushes), host, func(ctx context.Context, i int) sender.Result {
		if host(i) == "" {
			return sender.Result{Outcome: sender.Rejected, Code: sender.CodeBadTarget, Detail: "a device token of APNs is hexadecimal, and its environment production or sandbox"}
		}
		return s.one(ctx, pushes[i])
	})
}

// Check implements sender.Sender: it sends to a token that cannot exist. APNs looks at the credentials first.
func (s *Sender) Check(ctx context.Context) sender.Result {
	probe := sender.Push{Target: sender.Target{Token: "00"}, Notification: &sender.Notification{Silent: true, TTL: sender.NowOrNever}}
	r := s.Send(ctx, []sender.Push{probe})[0]
	if r.Code == apns2.ReasonBadDeviceToken {
		return sender.Result{Outcome: sender.Accepted, Status: r.Status}
	}
	return r
}

func (s *Sender) one(ctx context.Context, p sender.Push) sender.Result {
	client := s.clients[p.Target.Environment]
	n, err := s.notification(p)
	if err != nil {
		return sender.Result{Outcome: sender.Rejected, Code: sender.CodeInvalid, Detail: err.Error()}
	}
	if body, ok := n.Payload.([]byte); ok && len(body) > maxPayload {
		return sender.Result{Outcome: sender.Rejected, Code: sender.CodeTooLarge, Detail: fmt.Sprintf("the payload has %d bytes, APNs takes %d", len(body), maxPayload)}
	}
	bearer := s.token.GenerateIfExpired()
	r := s.call(ctx, client, n)
	if r.Code == apns2.ReasonExpiredProviderToken && s.renew(bearer) {
		r = s.call(ctx, client, n)
	}
	if p.Target.App != "" && slices.Contains(ofTopic(), r.Code) { // the device has named it
		r.Outcome = sender.Rejected
	}
	return r
}

// ofTopic are the reasons that blame the topic.
func ofTopic() []string {
	return []string{apns2.ReasonTopicDisallowed, apns2.ReasonMissingTopic, apns2.ReasonBadTopic}
}

// renew replaces a provider token that APNs calls too old, which it is when this machine's clock was wrong. Only one of
// many callers does it, and not more often than APNs lets it.
func (s *Sender) renew(refused string) bool {
	s.token.Lock()
	defer s.token.Unlock()
	if s.token.Bearer != refused {
		return true
	}
	if age := time.Since(time.Unix(s.token.IssuedAt, 0)); age < renewal && age > -renewal {
		return false
	}
	_, err := s.token.Generate()
	return err == nil
}

func (s *Sender) call(ctx context.Context, client *apns2.Client, n *apns2.Notification) sender.Result {
	seen := &sender.Answer{}
	resp, err := client.PushWithContext(context.WithValue(ctx, captureKey{}, seen), n)
	if err != nil {
		r := sender.Unanswered(err)
		if r.Status = seen.Status; r.Status != 0 {
			r.Code, r.Detail = sender.CodeUnreadable, "the answer is not one of APNs"
		}
		return r
	}
	return result(resp, seen)
}

// result reads an answer by Apple's table of status codes and reasons.
func result(resp *apns2.Response, seen *sender.Answer) sender.Result {
	r := sender.Result{ID: resp.ApnsID, Code: resp.Reason, Status: resp.StatusCode}
	switch {
	case resp.Sent():
		r.Outcome = sender.Accepted
		return r
	case resp.StatusCode == http.StatusGone:
		r.Outcome, r.At = sender.Dead, resp.Timestamp.Time
	case resp.Reason == apns2.ReasonTooManyProviderTokenUpdates:
		r = sender.Later(seen, resp.Reason)
		r.After = max(r.After, renewal)
	case resp.StatusCode == http.StatusTooManyRequests, resp.StatusCode >= 500:
		r = sender.Later(seen, resp.Reason)
	case resp.StatusCode == http.StatusForbidden, slices.Contains(ofTopic(), resp.Reason):
		r.Outcome = sender.Unauthorized
	default:
		r.Outcome = sender.Rejected
	}
	r.Code = cmp.Or(r.Code, http.StatusText(resp.StatusCode))
	return r
}

// notification is the request's headers and payload.
func (s *Sender) notification(p sender.Push) (*apns2.Notification, error) {
	n := p.Notification
	out := &apns2.Notification{
		DeviceToken: p.Target.Token, Topic: cmp.Or(p.Target.App, s.topic), CollapseID: sender.Shorten(n.CollapseKey, maxCollapse),
		PushType: apns2.PushTypeAlert, Priority: sender.APNsPriority(n),
		Expiration: time.Now().Add(n.Lifetime()),
	}
	if n.TTL < 0 {
		out.Expiration = time.Unix(1, 0)
	}
	if n.Silent {
		out.PushType = apns2.PushTypeBackground
	}
	body, err := payload(n, p.Payload())
	out.Payload = body
	return out, err
}

// payload is the JSON for the device. The app's data are members beside "aps".
func payload(n *sender.Notification, data map[string]string) ([]byte, error) {
	root := map[string]any{"aps": sender.APS(n)}
	for k, v := range data {
		root[k] = v
	}
	if n.Image != "" {
		root["image"] = n.Image
	}
	if len(n.Actions) > 0 {
		root["actions"] = n.Actions
	}
	// Not sender.Encode: the library passes it through json.Marshal, which adds escapes, and the limit counts them.
	return json.Marshal(root)
}
