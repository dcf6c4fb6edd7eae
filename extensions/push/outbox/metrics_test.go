package outbox_test

import (
	"maps"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/stubs/loopback"
)

// What became of deliveries, how long providers take and what waits is told by platform and state.
func TestMetrics(t *testing.T) {
	f := start(t, options{})
	ada, _ := f.user(t, "ada")
	bob, _ := f.user(t, "bob")
	f.live[bob] = nil // the app is open
	f.devices(t, spec{id: "dead", user: ada, token: token("dead00", 1)}, spec{id: "expo", user: ada, token: "ExponentPushToken[aaaaaaaaaaaaaaaaaaaaaa]", platform: "expo"})
	f.apns.Behave(tokenOf("ada"), loopback.Down)
	sent := f.send(t, m{"to": m{"users": []string{ada, bob}}, "title": "Hello"})
	f.hurry(t, "push.chunk")
	f.done(t, sent.ID)
	if r := f.operation(t, "push.send", m{"to": m{"all": true}, "title": "Later", "sendAt": time.Now().Add(time.Hour).UTC().Format(time.RFC3339)}, nil); r.Status != http.StatusOK {
		t.Fatalf("%d %s", r.Status, r.Body)
	}
	want := map[string]float64{
		"deliveries_total apns accepted": 1, "deliveries_total apns retried": 1, "deliveries_total apns dead": 1, "deliveries_total apns skipped": 1,
		"deliveries_total expo accepted": 1, "call_seconds apns": 3, "call_seconds expo": 1,
		"messages_count scheduled": 1, "messages_count sending": 0, "messages_count done": 1, "messages_count cancelled": 0,
	}
	await(t, "the counts", func() bool { return maps.Equal(f.series(), want) }) // what is written is counted then
}

// series are the numbers of messages by name and labels; of distributions, how much was observed.
func (f *fixture) series() map[string]float64 {
	got := map[string]float64{}
	for _, metric := range f.push.Outbox().Metrics() {
		metric.Series(func(s extensions.Sample) {
			name := strings.Join(append([]string{strings.TrimPrefix(metric.Name, "satchel_push_")}, s.Labels...), " ")
			if got[name] = s.Value; s.Distribution != nil {
				got[name] = float64(s.Distribution.Count)
			}
		})
	}
	return got
}
