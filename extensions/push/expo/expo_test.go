package expo_test

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/internal/stubs/expo"
	"github.com/satchelbase/satchel/extensions/internal/stubs/loopback"
	sut "github.com/satchelbase/satchel/extensions/push/expo"
	"github.com/satchelbase/satchel/extensions/push/sender"
	"github.com/satchelbase/satchel/extensions/push/sender/conformance"
)

type fixture struct {
	*expo.Server

	root   *loopback.Authority
	access string
}

func start(t testing.TB) *fixture {
	t.Helper()
	authority, err := loopback.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	stub, err := expo.Start("127.0.0.1:0", authority, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stub.Close() })
	return &fixture{Server: stub, root: authority}
}

func (f *fixture) rotate() error {
	f.access += "n"
	f.RequireAccess(f.access)
	return nil
}

func (f *fixture) sender(size int, breakers *outbound.Breakers) (*sut.Sender, error) {
	return sut.New(sut.Credentials{AccessToken: f.access}, sut.Options{
		Outbound: outbound.Options{AllowLoopback: true, Root: f.root.Root}, Size: size, Breakers: breakers, Endpoint: f.URL,
	})
}

func token(prefix string, n int) string { return fmt.Sprintf("ExponentPushToken[%s%d]", prefix, n) }

func provider(t testing.TB, size int) conformance.Provider {
	f, n := start(t), 0
	return conformance.Provider{
		New:       func(b *outbound.Breakers) (sender.Sender, error) { return f.sender(size, b) },
		Token:     func(prefix string) string { n++; return token(prefix, n) },
		BehaveAll: f.BehaveAll, Rotate: f.rotate, Server: f.Server.Server, Batch: 100, Denied: sender.Unauthorized,
	}
}

func TestConformance(t *testing.T) {
	conformance.Run(t, func(t *testing.T) conformance.Provider { return provider(t, conformance.Size) })
}

func BenchmarkBurst(b *testing.B) { conformance.Burst(b, provider(b, conformance.BurstSize)) }

func TestMessage(t *testing.T) {
	f := start(t)
	s, err := f.sender(4, outbound.NewBreakers(0))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	send := func(n *sender.Notification) map[string]any {
		t.Helper()
		r := s.Send(t.Context(), []sender.Push{{Target: sender.Target{Token: token("", 1)}, Notification: n, Data: map[string]string{"delivery": "d1"}}})[0]
		if r.Outcome != sender.Accepted {
			t.Fatalf("%+v", r)
		}
		return f.Message()
	}
	want := map[string]any{
		"to": token("", 1), "title": "Ada & Bob", "body": "Grüße <b>an alle</b> 👋", "sound": "default", "ttl": 3600.0, "priority": "high", "badge": 3.0,
		"channelId": "posts", "categoryId": "post", "collapseId": "post:1", "tag": "post:1", "mutableContent": true,
		"richContent": map[string]any{"image": "https://example.com/a.png"},
		"data":        map[string]any{"route": "/posts/1", "delivery": "d1", "actions": `[{"id":"open","title":"Open"}]`},
	}
	if m := send(conformance.Full()); !reflect.DeepEqual(m, want) {
		t.Errorf("message %v", m)
	}
	want = map[string]any{
		"to": token("", 1), "ttl": 0.0, "priority": "normal", "_contentAvailable": true, "collapseId": "sync", "tag": "sync",
		"data": map[string]any{"sync": "1", "delivery": "d1"},
	}
	if m := send(conformance.Silent()); !reflect.DeepEqual(m, want) {
		t.Errorf("silent %v", m)
	}
}

func TestBatches(t *testing.T) {
	f := start(t)
	s, err := f.sender(4, outbound.NewBreakers(0))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	pushes := make([]sender.Push, 250)
	for i := range pushes {
		pushes[i] = sender.Push{Target: sender.Target{Token: token("", i)}, Notification: conformance.Full()}
	}
	s.Send(t.Context(), pushes)
	total := 0
	for _, n := range f.Batches() {
		total += n
	}
	if len(f.Batches()) != 3 || total != 250 {
		t.Errorf("batches %v", f.Batches())
	}
}

// A token of another project costs nobody else a push, though Expo refuses the whole request.
func TestForeignTokens(t *testing.T) {
	f := start(t)
	s, err := f.sender(4, outbound.NewBreakers(0))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	pushes := make([]sender.Push, 100)
	for i := range pushes {
		pushes[i] = sender.Push{Target: sender.Target{Token: token("", i)}, Notification: conformance.Full()}
	}
	f.Behave("3", loopback.Dead)
	pushes[50].Target.Token, pushes[70].Target.Token = token(expo.Foreign, 1), token(expo.Foreign, 2)
	for i, r := range s.Send(t.Context(), pushes) {
		if i != 3 && r.Outcome != sender.Accepted || i == 3 && r.Outcome != sender.Dead {
			t.Errorf("%d: %+v", i, r)
		}
	}
	total := 0
	for _, n := range f.Batches() {
		total += n
	}
	if total != len(pushes) {
		t.Errorf("batches %v", f.Batches())
	}
}

// What a ticket could not know, the receipt does.
func TestReceipts(t *testing.T) {
	f := start(t)
	s, err := f.sender(4, outbound.NewBreakers(0))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	f.DieLate(token("", 1))
	pushes := []sender.Push{
		{Target: sender.Target{Token: token("", 0)}, Notification: conformance.Full()}, {Target: sender.Target{Token: token("", 1)}, Notification: conformance.Full()},
	}
	ids := make([]string, len(pushes))
	for i, r := range s.Send(t.Context(), pushes) {
		if ids[i] = r.ID; r.Outcome != sender.Accepted {
			t.Fatalf("%d: %+v", i, r)
		}
	}
	var receipts sender.Receipts = s
	f.HoldReceipts(true)
	for i, r := range receipts.Receipts(t.Context(), ids) {
		if r.Outcome != sender.Pending || r.ID != ids[i] {
			t.Errorf("too early, %d: %+v", i, r)
		}
	}
	f.HoldReceipts(false)
	got := receipts.Receipts(t.Context(), append(ids, "unknown"))
	for i, want := range []sender.Outcome{sender.Accepted, sender.Dead, sender.Pending} {
		if got[i].Outcome != want {
			t.Errorf("%d: %+v", i, got[i])
		}
	}
	f.BehaveAll(loopback.Busy)
	for _, r := range receipts.Receipts(t.Context(), ids) {
		if r.Outcome != sender.Retry || r.After == 0 {
			t.Errorf("busy: %+v", r)
		}
	}
	if r := receipts.Receipts(t.Context(), make([]string, sender.MaxReceipts+1)); len(r) != sender.MaxReceipts+1 || r[0].Outcome != sender.Rejected {
		t.Errorf("too many: %+v", r[0])
	}
}
