// Package sender is the one interface of all push providers: a notification that knows no provider goes in, and one result
// for each device comes out. It holds what the adapters share, such as limits, the pool of calls and the meaning of
// failures, and it knows neither devices nor queues: whoever calls it decides what a result means for them.
//
// Adapters: apns, fcm, webpush (for UnifiedPush, too) and expo. Package conformance has the suite that each must pass.
package sender

import (
	"context"
	"time"
)

// Platform is the kind of a token, and says which sender it is for.
type Platform string

// The platforms.
const (
	APNs        Platform = "apns"
	FCM         Platform = "fcm"
	WebPush     Platform = "webpush"
	UnifiedPush Platform = "unifiedpush"
	Expo        Platform = "expo"
)

// Environment is where a token is good. It belongs to the token and not to the server: APNs has one host for apps of the
// store and one for apps under development, and people of both use one backend.
type Environment string

// The environments. The zero value is Production.
const (
	Production Environment = ""
	Sandbox    Environment = "sandbox"
)

// Priority is how soon a notification should be shown.
type Priority int

// The priorities. PriorityDefault is high for what is shown and normal for silent notifications, which no provider wants
// to hurry.
const (
	PriorityDefault Priority = iota
	PriorityHigh
	PriorityNormal
	PriorityLow
)

// String is the name that Web Push has for it (RFC 8030 section 5.3).
func (p Priority) String() string {
	return [...]string{"normal", "high", "normal", "low"}[p]
}

// DefaultTTL is how long providers try when a notification does not say: FCM's longest, which APNs and browsers keep, too.
const DefaultTTL = 28 * 24 * time.Hour

// NowOrNever is a TTL: if the device cannot be reached at once, the notification is dropped.
const NowOrNever time.Duration = -1

// Action is a button. iOS takes the buttons of Category, which the app registers; these arrive there as data.
type Action struct {
	ID    string `json:"id"`
	Title string `json:"title"`
}

// Notification is what to show, or, when it is silent, what to wake the app with. It is read-only once it was sent.
type Notification struct {
	Title, Body string
	Image       string            // https
	Data        map[string]string // for the app
	Actions     []Action
	Badge       *int   // the number on the icon; 0 removes it
	Sound       string // "default", or a file of the app; empty is silence
	Category    string // of actions on iOS; the click action on Android
	Channel     string // Android's notification channel
	CollapseKey string // a newer notification of the same key replaces an older one
	TTL         time.Duration
	Priority    Priority
	Silent      bool // shows nothing; only Data goes with it
}

// Target is one device.
type Target struct {
	// Token is what the device got from the provider. For Web Push and UnifiedPush it is the subscription as JSON.
	Token       string
	Environment Environment

	// App is the bundle id for APNs; empty means the one that the credentials name.
	App string
}

// Push is one notification for one device. Data is laid over that of the notification.
type Push struct {
	Target       Target
	Notification *Notification
	Data         map[string]string
}

// Outcome is what became of a push. It says what the caller has to do.
type Outcome int

// The outcomes.
const (
	// Accepted: the provider has taken it over. That it was shown is not known, to nobody.
	Accepted Outcome = iota + 1

	// Dead: the token is not good any more. Result.At is since when, if the provider says so; a device that has registered
	// later is alive.
	Dead

	// Retry: try again, not before Result.After.
	Retry

	// Rejected: this push will never be accepted as it is. Result.Code tells why.
	Rejected

	// Unauthorized: the credentials are at fault, and every other push will end the same until somebody mends them.
	Unauthorized

	// Pending: there is no receipt yet.
	Pending
)

// String is the word that logs, metrics and delivery rows show.
func (o Outcome) String() string {
	return [...]string{"", "accepted", "dead", "retry", "rejected", "unauthorized", "pending"}[o]
}

// Result is what became of one push.
type Result struct {
	Outcome Outcome
	ID      string        // the provider's, of an accepted push; Expo's is that of the ticket, which a receipt follows
	Code    string        // the provider's reason, or one of ours
	Detail  string        // for people; never a token, key or text of the notification
	Status  int           // of HTTP; 0 when there was no answer
	At      time.Time     // of Dead
	After   time.Duration // of Retry; zero leaves it to the caller
}

// Codes of results that no provider has given.
const (
	CodeCanceled    = "canceled"      // the caller gave up
	CodeUnreachable = "unreachable"   // no connection, or it ended without an answer
	CodeTimeout     = "timeout"       // no answer in time
	CodeUnreadable  = "unreadable"    // an answer that is none
	CodeBreaker     = "breaker_open"  // the provider is down and left in peace
	CodeTooLarge    = "too_large"     // over the provider's limit
	CodeInvalid     = "invalid"       // the notification, by [Notification.Check]
	CodeBadTarget   = "bad_target"    // the token cannot be one
	CodeRefused     = "address"       // the endpoint is none that this server calls
	CodeNoSender    = "not_connected" // nobody has given credentials for the platform
)

// Sender sends by one provider with one set of credentials. It is safe for concurrent use.
type Sender interface {
	// Send returns one result for each push, in their order. It waits for all of them, at most some seconds for each, and
	// less when ctx ends. It never tries again by itself, but for credentials that it can renew: that is the queue's to do.
	Send(ctx context.Context, pushes []Push) []Result

	// Check asks the provider whether the credentials are good and disturbs nobody. Accepted: they are. Unauthorized: they
	// are not. Retry: the provider cannot be asked now.
	Check(ctx context.Context) Result

	// Close lets go of connections that nobody uses.
	Close()
}

// Receipts is a sender that learns more later. It takes at most [MaxReceipts] ids of accepted pushes.
type Receipts interface {
	Receipts(ctx context.Context, ids []string) []Result
}

// MaxReceipts is how many ids a call of Receipts takes.
const MaxReceipts = 1000

// Payload is the data of a push: that of its own laid over that of the notification. It must not be changed.
func (p Push) Payload() map[string]string {
	if len(p.Data) == 0 {
		return p.Notification.Data
	}
	all := make(map[string]string, len(p.Notification.Data)+len(p.Data))
	for k, v := range p.Notification.Data {
		all[k] = v
	}
	for k, v := range p.Data {
		all[k] = v
	}
	return all
}

// Lifetime is the TTL to tell the provider: between zero and [DefaultTTL].
func (n *Notification) Lifetime() time.Duration {
	switch {
	case n.TTL == 0 || n.TTL > DefaultTTL:
		return DefaultTTL
	case n.TTL < 0:
		return 0
	}
	return n.TTL
}

// Urgency is the priority with the default resolved.
func (n *Notification) Urgency() Priority {
	switch {
	case n.Priority != PriorityDefault:
		return n.Priority
	case n.Silent:
		return PriorityNormal
	}
	return PriorityHigh
}
