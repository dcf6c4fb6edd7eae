package fcm_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/internal/stubs/fcm"
	"github.com/satchelbase/satchel/extensions/internal/stubs/inbox"
	"github.com/satchelbase/satchel/extensions/internal/stubs/loopback"
	sut "github.com/satchelbase/satchel/extensions/push/fcm"
	"github.com/satchelbase/satchel/extensions/push/sender"
	"github.com/satchelbase/satchel/extensions/push/sender/conformance"
)

type fixture struct {
	*fcm.Server

	root *loopback.Authority
}

func start(t testing.TB, box *inbox.Inbox) fixture {
	t.Helper()
	authority, err := loopback.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	stub, err := fcm.Start(fcm.Options{Address: "127.0.0.1:0", Authority: authority, Inbox: box})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stub.Close() })
	return fixture{stub, authority}
}

func (f fixture) credentials() sut.Credentials { return sut.Credentials{Account: string(f.Account())} }

func (f fixture) options(size int, breakers *outbound.Breakers) sut.Options {
	return sut.Options{Outbound: outbound.Options{AllowLoopback: true, Root: f.root.Root}, Size: size, Breakers: breakers, Endpoint: f.URL}
}

// wires are both ways to make a request. Each must do the same as the other.
func wires() map[string]func(sut.Credentials, sut.Options) (*sut.Sender, error) {
	return map[string]func(sut.Credentials, sut.Options) (*sut.Sender, error){"built": sut.New, "raw": sut.NewRaw}
}

// registration is a token of the length that real ones have.
func registration(prefix string, n int) string {
	return prefix + fmt.Sprintf("%0*d", 160-len(prefix), n)
}

func provider(t testing.TB, size int, make func(sut.Credentials, sut.Options) (*sut.Sender, error)) conformance.Provider {
	f, n := start(t, nil), 0
	return conformance.Provider{
		New:       func(b *outbound.Breakers) (sender.Sender, error) { return make(f.credentials(), f.options(size, b)) },
		Token:     func(prefix string) string { n++; return registration(prefix, n) },
		BehaveAll: f.BehaveAll, Rotate: f.Rotate, Minted: f.Grants, Server: f.Server.Server, Batch: 1, Denied: sender.Unauthorized,
	}
}

func TestConformance(t *testing.T) {
	for name, make := range wires() {
		t.Run(name, func(t *testing.T) {
			conformance.Run(t, func(t *testing.T) conformance.Provider { return provider(t, conformance.Size, make) })
		})
	}
}

func BenchmarkBurst(b *testing.B) {
	for name, make := range wires() {
		b.Run(name, func(b *testing.B) { conformance.Burst(b, provider(b, conformance.BurstSize, make)) })
	}
}

func TestMessages(t *testing.T) {
	for name, make := range wires() {
		t.Run(name, func(t *testing.T) {
			f := start(t, &inbox.Inbox{})
			s, err := make(f.credentials(), f.options(4, outbound.NewBreakers(0)))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			token := registration("", 1)
			send := func(n *sender.Notification) map[string]any {
				t.Helper()
				r := s.Send(t.Context(), []sender.Push{{Target: sender.Target{Token: token}, Notification: n, Data: map[string]string{"delivery": "d1"}}})[0]
				if r.Outcome != sender.Accepted || !strings.HasPrefix(r.ID, "projects/"+fcm.Project+"/messages/") {
					t.Fatalf("%+v", r)
				}
				return f.Message()
			}
			m := send(conformance.Full())
			headers := m["apns"].(map[string]any)["headers"].(map[string]any)
			if len(fmt.Sprint(headers["apns-expiration"])) != 10 {
				t.Errorf("apns-expiration %v", headers["apns-expiration"])
			}
			delete(headers, "apns-expiration")
			var want map[string]any
			err = json.Unmarshal([]byte(`{
				"token": "`+token+`",
				"data": {"route": "/posts/1", "delivery": "d1", "actions": "[{\"id\":\"open\",\"title\":\"Open\"}]"},
				"notification": {"title": "Ada & Bob", "body": "Grüße <b>an alle</b> 👋", "image": "https://example.com/a.png"},
				"android": {"collapse_key": "post:1", "priority": "high", "ttl": "3600s",
					"notification": {"sound": "default", "tag": "post:1", "channel_id": "posts", "click_action": "post", "notification_count": 3}},
				"apns": {"headers": {"apns-priority": "10", "apns-push-type": "alert", "apns-collapse-id": "post:1"},
					"payload": {"aps": {"alert": {"title": "Ada & Bob", "body": "Grüße <b>an alle</b> 👋"}, "badge": 3, "sound": "default", "category": "post", "mutable-content": 1}},
					"fcm_options": {"image": "https://example.com/a.png"}},
				"webpush": {"headers": {"TTL": "3600", "Urgency": "high", "Topic": "`+sender.Topic("post:1")+`"}}
			}`), &want)
			if err != nil || !reflect.DeepEqual(m, want) {
				t.Errorf("message %v, want %v, %v", m, want, err)
			}
			m = send(conformance.Silent())
			android, ios := m["android"].(map[string]any), m["apns"].(map[string]any)
			if m["notification"] != nil || android["priority"] != "normal" || android["ttl"] != "0s" || !reflect.DeepEqual(ios["payload"], map[string]any{"aps": map[string]any{"content-available": 1.0}}) {
				t.Errorf("silent: %v", m)
			}
		})
	}
}

// An access token may end before its time. An OAuth server that is down is asked once, not by each push.
func TestAccess(t *testing.T) {
	f := start(t, nil)
	s, err := sut.New(f.credentials(), f.options(4, outbound.NewBreakers(0)))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	send := func(n int) []sender.Result {
		pushes := make([]sender.Push, n)
		for i := range pushes {
			pushes[i] = sender.Push{Target: sender.Target{Token: registration("", i)}, Notification: conformance.Full()}
		}
		return s.Send(t.Context(), pushes)
	}
	send(1)
	f.Forget()
	for i, r := range send(20) {
		if r.Outcome != sender.Accepted {
			t.Fatalf("%d: %+v", i, r)
		}
	}
	if n := f.Grants(); n != 2 {
		t.Errorf("%d access tokens for one that ended", n)
	}
	f.Forget()
	f.RefuseGrants(true)
	for i, r := range send(20) {
		if r.Outcome != sender.Retry {
			t.Fatalf("%d: %+v", i, r)
		}
	}
	if n := f.Grants(); n > 4 {
		t.Errorf("%d requests to an OAuth server that is down", n-2)
	}
}

func TestResults(t *testing.T) {
	body := func(status, code, field, text string) string {
		return fmt.Sprintf(`{"error":{"status":%q,"message":%q,"details":[{"errorCode":%q},{"fieldViolations":[{"field":%q}]}]}}`, status, text, code, field)
	}
	for name, c := range map[string]struct {
		status int
		body   string
		want   sender.Outcome
	}{
		"unregistered":            {404, body("NOT_FOUND", "UNREGISTERED", "", ""), sender.Dead},
		"no such project":         {404, body("NOT_FOUND", "", "", ""), sender.Rejected},
		"bad token by field":      {400, body("INVALID_ARGUMENT", "INVALID_ARGUMENT", "message.token", ""), sender.Dead},
		"bad token by text":       {400, body("INVALID_ARGUMENT", "INVALID_ARGUMENT", "", "The registration token is not a valid FCM registration token"), sender.Dead},
		"another bad field":       {400, body("INVALID_ARGUMENT", "INVALID_ARGUMENT", "message.data", ""), sender.Rejected},
		"another project's":       {403, body("PERMISSION_DENIED", "SENDER_ID_MISMATCH", "", ""), sender.Rejected},
		"the API is off":          {403, body("PERMISSION_DENIED", "", "", ""), sender.Unauthorized},
		"no APNs key at Firebase": {401, body("UNAUTHENTICATED", "THIRD_PARTY_AUTH_ERROR", "", ""), sender.Unauthorized},
		"quota":                   {429, body("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED", "", ""), sender.Retry},
		"internal":                {500, body("INTERNAL", "INTERNAL", "", ""), sender.Retry},
		"a page":                  {502, "<!doctype html>", sender.Retry},
		"an empty answer":         {200, "{}", sender.Retry},
	} {
		if r := sut.Result(c.status, c.body); r.Outcome != c.want {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

func TestCredentials(t *testing.T) {
	f := start(t, nil)
	good := string(f.Account())
	change := func(old, new string) string { return strings.Replace(good, old, new, 1) }
	for reason, account := range map[string]string{
		"must be the JSON file": "AIza", "another file": `{"project_info":{}}`, "no RSA key": change("BEGIN PRIVATE KEY", "BEGIN CERTIFICATE"),
		"project_id": change(`"project_id": "`+fcm.Project, `"project_id": "X`), "client_email": change("sender@", ""),
	} {
		if _, err := sut.New(sut.Credentials{Account: account}, f.options(1, outbound.NewBreakers(0))); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%s: %v", reason, err)
		}
	}
	// Without a stub, the account must not choose who gets the signed assertion.
	if err := (sut.Credentials{Account: good}).Validate(); err == nil || !strings.Contains(err.Error(), "token_uri") {
		t.Errorf("another OAuth server: %v", err)
	}
	if err := (sut.Credentials{Account: change(f.URL+"/token", "https://oauth2.googleapis.com/token")}).Validate(); err != nil {
		t.Error(err)
	}
}
