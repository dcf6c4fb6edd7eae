package webpush_test

import (
	"encoding/base64"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/internal/stubs/loopback"
	"github.com/satchelbase/satchel/extensions/internal/stubs/webpush"
	"github.com/satchelbase/satchel/extensions/push/sender"
	"github.com/satchelbase/satchel/extensions/push/sender/conformance"
	sut "github.com/satchelbase/satchel/extensions/push/webpush"
)

type fixture struct {
	*webpush.Server

	root *loopback.Authority
}

func start(t testing.TB) fixture {
	t.Helper()
	authority, err := loopback.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	stub, err := webpush.Start("127.0.0.1:0", authority, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stub.Close() })
	return fixture{stub, authority}
}

func (f fixture) sender(t testing.TB, size int, breakers *outbound.Breakers) *sut.Sender {
	t.Helper()
	c, err := sut.Generate("mailto:admin@satchel.dev")
	if err != nil {
		t.Fatal(err)
	}
	s, err := sut.New(c, sut.Options{Outbound: outbound.Options{AllowLoopback: true, Root: f.root.Root}, Size: size, Breakers: breakers})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// subscription is one in the form that a client registers.
func (f fixture) subscription(t testing.TB, prefix, serverKey string) string {
	t.Helper()
	sub, err := f.Subscribe(prefix, serverKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(sub)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func provider(t testing.TB, size int) conformance.Provider {
	f := start(t)
	return conformance.Provider{
		New:       func(b *outbound.Breakers) (sender.Sender, error) { return f.sender(t, size, b), nil },
		Token:     func(prefix string) string { return f.subscription(t, prefix, "") },
		BehaveAll: f.BehaveAll, Minted: f.Tokens, Server: f.Server.Server, Batch: 1, Denied: sender.Rejected,
	}
}

func TestConformance(t *testing.T) {
	conformance.Run(t, func(t *testing.T) conformance.Provider { return provider(t, conformance.Size) })
}

func BenchmarkBurst(b *testing.B) { conformance.Burst(b, provider(b, conformance.BurstSize)) }

// The example of RFC 8291 section 5.
func TestVector(t *testing.T) {
	decode := func(text string) []byte {
		raw, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	sub := sut.Subscription{}
	sub.Keys.P256DH = "BCVxsr7N_eNgVRqvHtD0zTZsEc6-VV-JvLexhqUzORcxaOzi6-AYWXvTBHm4bjyPjs7Vd8pZGH6SRpkNtoIAiw4"
	sub.Keys.Auth = "BTBZMqHH6r4Tts7J_aSIgg"
	got, err := sut.Seal(sub, []byte("When I grow up, I want to be a watermelon"), decode("yfWPiYE-n46HLnH0KqZOF1fJJU3MYrct3AELtAQ-oRw"), decode("DGv6ra1nlYgDCS1FRnbzlw"))
	want := "DGv6ra1nlYgDCS1FRnbzlwAAEABBBP4z9KsN6nGRTbVYI_c7VJSPQTBtkgcy27mlmlMoZIIgDll6e3vCYLocInmYWAmS6TlzAC8wEqKK6PBru3jl7A_yl95bQpu6cVPTpK4Mqgkf1CXztLVBSt2Ks3oZwbuwXPXLWyouBWLVWGNWQexSgSxsj_Qulcy4a-fN"
	if text := base64.RawURLEncoding.EncodeToString(got); err != nil || text != want {
		t.Errorf("%v\n%s\n%s", err, text, want)
	}
}

func TestMessages(t *testing.T) {
	f := start(t)
	s := f.sender(t, 4, outbound.NewBreakers(0))
	send := func(n *sender.Notification) (webpush.Delivery, map[string]any) {
		t.Helper()
		r := s.Send(t.Context(), []sender.Push{{Target: sender.Target{Token: f.subscription(t, "", s.PublicKey())}, Notification: n, Data: map[string]string{"delivery": "d1"}}})[0]
		last := f.Last()
		var content map[string]any
		if err := json.Unmarshal([]byte(last.Text), &content); err != nil || r.Outcome != sender.Accepted || !strings.HasSuffix(r.ID, last.ID) {
			t.Fatalf("%+v, %v", r, err)
		}
		return last, content
	}
	last, content := send(conformance.Full())
	headers := map[string]string{"TTL": "3600", "Urgency": "high", "Topic": sender.Topic("post:1"), "Content-Encoding": "aes128gcm", "Content-Type": "application/octet-stream"}
	if !reflect.DeepEqual(last.Headers, headers) {
		t.Errorf("headers %v", last.Headers)
	}
	want := map[string]any{
		"title": "Ada & Bob", "body": "Grüße <b>an alle</b> 👋", "image": "https://example.com/a.png", "badge": 3.0, "sound": "default", "category": "post", "tag": "post:1",
		"actions": []any{map[string]any{"id": "open", "title": "Open"}}, "data": map[string]any{"route": "/posts/1", "delivery": "d1"},
	}
	if !reflect.DeepEqual(content, want) {
		t.Errorf("content %v", content)
	}
	last, content = send(conformance.Silent())
	if last.Headers["TTL"] != "0" || last.Headers["Urgency"] != "normal" || last.Headers["Topic"] != "sync" || content["silent"] != true {
		t.Errorf("silent: %v %v", last.Headers, content)
	}
}

// A subscription is for one application server key. Who replaces the key learns it from the push service.
func TestAnotherKey(t *testing.T) {
	f := start(t)
	s := f.sender(t, 4, outbound.NewBreakers(0))
	other := f.sender(t, 4, outbound.NewBreakers(0))
	push := []sender.Push{{Target: sender.Target{Token: f.subscription(t, "", other.PublicKey())}, Notification: conformance.Full()}}
	if r := s.Send(t.Context(), push)[0]; r.Outcome != sender.Rejected || r.Status != 403 {
		t.Errorf("%+v", r)
	}
}

// Subscriptions come from clients: where they lead to is checked like every other address.
func TestEndpoints(t *testing.T) {
	f := start(t)
	c, err := sut.Generate("https://satchel.dev/contact")
	if err != nil {
		t.Fatal(err)
	}
	strict, err := sut.New(c, sut.Options{Outbound: outbound.Options{Root: f.root.Root}, Size: 4, Breakers: outbound.NewBreakers(0)})
	if err != nil {
		t.Fatal(err)
	}
	good := f.subscription(t, "", "")
	for endpoint, code := range map[string]string{
		f.URL + "/push/": sender.CodeRefused, "https://localhost/": sender.CodeRefused, "https://169.254.169.254/": sender.CodeRefused,
		"https://[::1]/": sender.CodeRefused, "http://127.0.0.1/": sender.CodeBadTarget, "https://user@example.com/": sender.CodeBadTarget, "file:///etc/passwd": sender.CodeBadTarget,
	} {
		r := strict.Send(t.Context(), []sender.Push{{Target: sender.Target{Token: strings.Replace(good, f.URL+"/push/", endpoint, 1)}, Notification: conformance.Full()}})[0]
		if r.Outcome != sender.Rejected || r.Code != code || strings.Contains(r.Detail, "127.0.0.1") {
			t.Errorf("%s: %+v", endpoint, r)
		}
	}
	if f.Requests() != 0 {
		t.Error("the stub was called")
	}
}

func TestParse(t *testing.T) {
	f := start(t)
	good := f.subscription(t, "", "")
	if _, err := sut.Parse(good); err != nil {
		t.Error(err)
	}
	padded := strings.Replace(good, `"auth":"`, `"expirationTime":null,"auth":"`, 1)
	if _, err := sut.Parse(strings.Replace(padded, `"}}`, `=="}}`, 1)); err != nil {
		t.Errorf("padded, with another member: %v", err)
	}
	for name, text := range map[string]string{
		"no JSON": "x", "no keys": `{"endpoint":"https://example.com/"}`, "short auth": strings.Replace(good, `"auth":"`, `"auth":"AA","x":"`, 1),
		"no point": strings.Replace(good, `"p256dh":"B`, `"p256dh":"A`, 1),
	} {
		if _, err := sut.Parse(text); err == nil {
			t.Errorf("%s is taken", name)
		}
	}
}

func TestSubject(t *testing.T) {
	for subject, good := range map[string]bool{
		"mailto:admin@satchel.dev": true, "https://satchel.dev/contact": true, "mailto:mailto:a@b.dev": false, "admin@satchel.dev": false, "": false,
		"mailto:admin@localhost": false, "mailto:a@b.local": false, "https://localhost": false, "https://x.invalid": false, "http://satchel.dev": false,
		"mailto:<admin@satchel.dev>": false, "mailto: admin@satchel.dev": false, "mailto:@satchel.dev": false,
	} {
		if _, err := sut.Generate(subject); (err == nil) != good {
			t.Errorf("%q: %v", subject, err)
		}
	}
	if err := (sut.Credentials{PrivateKey: "AAAA", Subject: "mailto:admin@satchel.dev"}).Validate(); err == nil {
		t.Error("a short key is taken")
	}
}

// A token is made once for a push service and half a day, and replaced before it ends.
func TestTokens(t *testing.T) {
	c, err := sut.Generate("mailto:admin@satchel.dev")
	if err != nil {
		t.Fatal(err)
	}
	sut.Ages(t, c, []time.Duration{0, time.Hour, 10 * time.Hour, 12 * time.Hour})
}
