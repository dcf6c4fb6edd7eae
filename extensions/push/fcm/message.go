package fcm

import (
	"fmt"
	"strconv"
	"time"

	"github.com/satchelbase/satchel/extensions/push/sender"
)

// maxCollapse is APNs', for devices with iOS.
const maxCollapse = 64

// message is the part of FCM's Message that is used. One token of FCM may be of Android, iOS or a browser, so each has its
// part. The SDK reads the same JSON.
type message struct {
	Token        string            `json:"token"`
	Data         map[string]string `json:"data,omitempty"`
	Notification *shown            `json:"notification,omitempty"`
	Android      android           `json:"android"`
	APNS         ios               `json:"apns"`
	Webpush      web               `json:"webpush"`
}

type shown struct {
	Title string `json:"title,omitempty"`
	Body  string `json:"body,omitempty"`
	Image string `json:"image,omitempty"`
}

type android struct {
	CollapseKey  string        `json:"collapse_key,omitempty"`
	Priority     string        `json:"priority"`
	TTL          string        `json:"ttl"`
	Notification *androidShown `json:"notification,omitempty"`
}

type androidShown struct {
	Sound       string `json:"sound,omitempty"`
	Tag         string `json:"tag,omitempty"`
	ChannelID   string `json:"channel_id,omitempty"`
	ClickAction string `json:"click_action,omitempty"`
	Count       *int   `json:"notification_count,omitempty"`
}

type ios struct {
	Headers map[string]string `json:"headers"`
	Payload map[string]any    `json:"payload"`
	Options *iosOptions       `json:"fcm_options,omitempty"`
}

type iosOptions struct {
	Image string `json:"image"`
}

type web struct {
	Headers map[string]string `json:"headers"`
}

// encode makes the message, or says why there is none to make.
func encode(p sender.Push) ([]byte, sender.Result) {
	n := p.Notification
	data := p.Payload()
	if err := sender.CheckData(data); err != nil { // FCM would refuse some keys
		return nil, sender.Result{Outcome: sender.Rejected, Code: sender.CodeInvalid, Detail: err.Error()}
	}
	if len(n.Actions) > 0 {
		actions, err := sender.Encode(n.Actions)
		if err != nil {
			return nil, sender.Result{Outcome: sender.Rejected, Code: sender.CodeInvalid, Detail: err.Error()}
		}
		own := map[string]string{"actions": string(actions)} // data of FCM is text
		for k, v := range data {
			own[k] = v
		}
		data = own
	}
	if size := size(n, data); size > maxPayload {
		return nil, sender.Result{Outcome: sender.Rejected, Code: sender.CodeTooLarge, Detail: fmt.Sprintf("notification and data have %d bytes, FCM takes %d", size, maxPayload)}
	}
	raw, err := sender.Encode(assemble(p.Target.Token, n, data))
	if err != nil {
		return nil, sender.Result{Outcome: sender.Rejected, Code: sender.CodeInvalid, Detail: err.Error()}
	}
	return raw, sender.Result{}
}

// size is what FCM counts.
func size(n *sender.Notification, data map[string]string) int {
	size := len(n.Title) + len(n.Body) + len(n.Image)
	for k, v := range data {
		size += len(k) + len(v)
	}
	return size
}

func assemble(token string, n *sender.Notification, data map[string]string) message {
	ttl := n.Lifetime()
	seconds := strconv.Itoa(int(ttl.Seconds()))
	expiration := "0"
	if ttl > 0 {
		expiration = strconv.FormatInt(time.Now().Add(ttl).Unix(), 10)
	}
	m := message{
		Token: token, Data: data,
		Android: android{CollapseKey: n.CollapseKey, Priority: "normal", TTL: seconds + "s"},
		APNS: ios{
			Headers: map[string]string{"apns-priority": strconv.Itoa(sender.APNsPriority(n)), "apns-expiration": expiration, "apns-push-type": "alert"},
			Payload: map[string]any{"aps": sender.APS(n)},
		},
		Webpush: web{Headers: map[string]string{"TTL": seconds, "Urgency": n.Urgency().String()}},
	}
	if n.Urgency() == sender.PriorityHigh {
		m.Android.Priority = "high"
	}
	if n.CollapseKey != "" {
		m.APNS.Headers["apns-collapse-id"] = sender.Shorten(n.CollapseKey, maxCollapse)
		m.Webpush.Headers["Topic"] = sender.Topic(n.CollapseKey)
	}
	if n.Silent {
		m.APNS.Headers["apns-push-type"] = "background"
		return m
	}
	m.Notification = &shown{n.Title, n.Body, n.Image}
	m.Android.Notification = &androidShown{n.Sound, n.CollapseKey, n.Channel, n.Category, n.Badge}
	if n.Image != "" {
		m.APNS.Options = &iosOptions{n.Image}
	}
	return m
}
