package apns_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/internal/stubs/apns"
	"github.com/satchelbase/satchel/extensions/internal/stubs/inbox"
	"github.com/satchelbase/satchel/extensions/internal/stubs/loopback"
	sut "github.com/satchelbase/satchel/extensions/push/apns"
	"github.com/satchelbase/satchel/extensions/push/sender"
	"github.com/satchelbase/satchel/extensions/push/sender/conformance"
)

type fixture struct {
	*apns.Server

	root  *loopback.Authority
	inbox *inbox.Inbox
}

func start(t testing.TB) fixture {
	t.Helper()
	authority, err := loopback.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	box := &inbox.Inbox{}
	stub, err := apns.Start(apns.Options{Address: "127.0.0.1:0", SandboxAddress: "127.0.0.1:0", Authority: authority, Inbox: box})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stub.Close() })
	return fixture{stub, authority, box}
}

func (f fixture) credentials() sut.Credentials {
	return sut.Credentials{Key: string(f.P8()), KeyID: apns.KeyID, TeamID: apns.TeamID, Topic: apns.Topic}
}

func (f fixture) options(size int, breakers *outbound.Breakers) sut.Options {
	return sut.Options{
		Outbound: outbound.Options{AllowLoopback: true, Root: f.root.Root}, Size: size, Breakers: breakers,
		Production: f.Production.URL, Sandbox: f.Sandbox.URL,
	}
}

func (f fixture) sender(t testing.TB) *sut.Sender {
	t.Helper()
	s, err := sut.New(f.credentials(), f.options(8, outbound.NewBreakers(0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// device is a token of 32 bytes.
func device(prefix string, n int) string { return prefix + fmt.Sprintf("%0*x", 64-len(prefix), n) }

func provider(t testing.TB, size int) conformance.Provider {
	f, n := start(t), 0
	return conformance.Provider{
		New:       func(b *outbound.Breakers) (sender.Sender, error) { return sut.New(f.credentials(), f.options(size, b)) },
		Token:     func(prefix string) string { n++; return device(prefix, n) },
		BehaveAll: f.BehaveAll, Rotate: f.Rotate, Minted: f.ProviderTokens, Server: f.Production,
		Batch: 1, Dated: true, Denied: sender.Unauthorized,
	}
}

func TestConformance(t *testing.T) {
	conformance.Run(t, func(t *testing.T) conformance.Provider { return provider(t, conformance.Size) })
}

func BenchmarkBurst(b *testing.B) { conformance.Burst(b, provider(b, conformance.BurstSize)) }

func TestRequests(t *testing.T) {
	f := start(t)
	s := f.sender(t)
	send := func(n *sender.Notification) (headers map[string]string, payload map[string]any) {
		t.Helper()
		r := s.Send(t.Context(), []sender.Push{{Target: sender.Target{Token: device("", 1)}, Notification: n, Data: map[string]string{"delivery": "d1"}}})[0]
		if r.Outcome != sender.Accepted {
			t.Fatalf("%+v", r)
		}
		a := f.inbox.List("apns")
		if err := json.Unmarshal([]byte(a[len(a)-1].Body), &payload); err != nil {
			t.Fatal(err)
		}
		return f.Headers(), payload
	}
	headers, payload := send(conformance.Full())
	expires := headers["apns-expiration"]
	delete(headers, "apns-expiration")
	if want := map[string]string{"apns-topic": apns.Topic, "apns-push-type": "alert", "apns-priority": "10", "apns-collapse-id": "post:1"}; !reflect.DeepEqual(headers, want) {
		t.Errorf("headers %v", headers)
	}
	var at int64
	if _, err := fmt.Sscan(expires, &at); err != nil || time.Until(time.Unix(at, 0)).Round(time.Minute) != time.Hour {
		t.Errorf("expires at %s", expires)
	}
	want := map[string]any{
		"aps": map[string]any{
			"alert": map[string]any{"title": "Ada & Bob", "body": "Grüße <b>an alle</b> 👋"}, "badge": 3.0, "sound": "default", "category": "post", "mutable-content": 1.0,
		},
		"image": "https://example.com/a.png", "actions": []any{map[string]any{"id": "open", "title": "Open"}}, "route": "/posts/1", "delivery": "d1",
	}
	if !reflect.DeepEqual(payload, want) {
		t.Errorf("payload %v", payload)
	}
	headers, payload = send(conformance.Silent())
	if headers["apns-push-type"] != "background" || headers["apns-priority"] != "5" || headers["apns-expiration"] != "1" {
		t.Errorf("silent: headers %v", headers)
	}
	if want := map[string]any{"aps": map[string]any{"content-available": 1.0}, "sync": "1", "delivery": "d1"}; !reflect.DeepEqual(payload, want) {
		t.Errorf("silent: payload %v", payload)
	}
	headers, _ = send(&sender.Notification{Title: "t", CollapseKey: strings.Repeat("k", 65), Priority: sender.PriorityLow})
	if len(headers["apns-collapse-id"]) != 32 || headers["apns-priority"] != "1" {
		t.Errorf("long key: headers %v", headers)
	}
}

// Where a token is good is known by the token.
func TestEnvironment(t *testing.T) {
	f := start(t)
	s := f.sender(t)
	results := s.Send(t.Context(), []sender.Push{
		{Target: sender.Target{Token: device("", 1), Environment: sender.Sandbox}, Notification: conformance.Full()},
		{Target: sender.Target{Token: device("", 2)}, Notification: conformance.Full()},
		{Target: sender.Target{Token: device("", 3), Environment: "elsewhere"}, Notification: conformance.Full()},
		{Target: sender.Target{Token: device("", 4), App: "com.example.other"}, Notification: conformance.Full()},
		{Target: sender.Target{Token: device("", 5), App: "org.example.app"}, Notification: conformance.Full()},
	})
	for i, want := range []string{"", "", sender.CodeBadTarget, "DeviceTokenNotForTopic", "TopicDisallowed"} {
		if results[i].Code != want || (want != "") != (results[i].Outcome == sender.Rejected) {
			t.Errorf("%d: %+v", i, results[i])
		}
	}
	if f.Sandbox.Requests() != 1 || f.Production.Requests() != 3 {
		t.Errorf("%d requests in the sandbox, %d in production", f.Sandbox.Requests(), f.Production.Requests())
	}
}

func TestCredentials(t *testing.T) {
	f := start(t)
	good := f.credentials()
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for field, c := range map[string]sut.Credentials{
		"key: must be the .p8 file that Apple lets you download once; this is no PEM": {Key: "text", KeyID: good.KeyID, TeamID: good.TeamID, Topic: good.Topic},
		"key: must be the .p8 file that Apple lets you download once; this is another": {
			Key: string(f.root.PEM()), KeyID: good.KeyID, TeamID: good.TeamID, Topic: good.Topic,
		},
		"keyId":  {Key: good.Key, KeyID: "short", TeamID: good.TeamID, Topic: good.Topic},
		"teamId": {Key: good.Key, KeyID: good.KeyID, TeamID: "", Topic: good.Topic},
		"topic":  {Key: good.Key, KeyID: good.KeyID, TeamID: good.TeamID, Topic: "app"},
	} {
		if err := c.Validate(); err == nil || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
		if _, err := sut.New(c, f.options(1, outbound.NewBreakers(0))); err == nil {
			t.Errorf("%s: a sender is made", field)
		}
	}
}
