// Package meter counts what this process sends: what became of deliveries, and how long providers take.
package meter

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/tally"
	"github.com/satchelbase/satchel/extensions/push/sender"
)

// Outcomes are what may become of a delivery, in the order of the numbers that [Meter.Delivered] takes. The first one is that of
// an attempt after which there is another.
func Outcomes() []string {
	return []string{"retried", "accepted", "dead", "rejected", "failed", "expired", "skipped", "collapsed"}
}

const outcomes = 8

// Meter counts. It is safe for concurrent use.
type Meter struct {
	platforms []sender.Platform
	sent      [][outcomes]atomic.Uint64 // by platform
	calls     []*tally.Histogram
}

// New returns a meter with nothing counted.
func New() *Meter {
	m := &Meter{platforms: []sender.Platform{sender.APNs, sender.FCM, sender.WebPush, sender.UnifiedPush, sender.Expo}}
	m.sent = make([][outcomes]atomic.Uint64, len(m.platforms))
	const ms = time.Millisecond
	for range m.platforms {
		m.calls = append(m.calls, tally.NewHistogram(10*ms, 25*ms, 50*ms, 100*ms, 250*ms, 500*ms, time.Second, 2500*ms, 5*time.Second, 10*time.Second))
	}
	return m
}

// Delivered counts what became of a delivery.
func (m *Meter) Delivered(p sender.Platform, outcome int) {
	if at := slices.Index(m.platforms, p); at >= 0 && outcome < outcomes {
		m.sent[at][outcome].Add(1)
	}
}

// Timed returns a context in which calls to a provider are timed.
func (m *Meter) Timed(ctx context.Context, p sender.Platform) context.Context {
	if at := slices.Index(m.platforms, p); at >= 0 {
		return sender.Timed(ctx, m.calls[at].Observe)
	}
	return ctx
}

// Metrics are what was counted since the process began.
func (m *Meter) Metrics() []extensions.Metric {
	return []extensions.Metric{
		{
			Name: "satchel_push_deliveries_total", Help: "Deliveries that this process has ended, or tries again, by what became of them.", Counter: true,
			Labels: []string{"platform", "outcome"}, Series: func(add func(extensions.Sample)) {
				for i, p := range m.platforms {
					for o, name := range Outcomes() {
						if n := m.sent[i][o].Load(); n > 0 {
							add(extensions.Sample{Labels: []string{string(p), name}, Value: float64(n)})
						}
					}
				}
			},
		},
		{
			Name: "satchel_push_call_seconds", Help: "Time that calls to providers take, which for Expo are up to a hundred pushes each.",
			Labels: []string{"platform"}, Series: func(add func(extensions.Sample)) {
				for i, p := range m.platforms {
					if d := m.calls[i].Read(); d.Count > 0 {
						add(extensions.Sample{Labels: []string{string(p)}, Distribution: d})
					}
				}
			},
		},
	}
}
