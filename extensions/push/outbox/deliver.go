package outbox

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/serial"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/push/batch"
	"github.com/satchelbase/satchel/extensions/push/credentials"
	"github.com/satchelbase/satchel/extensions/push/device"
	"github.com/satchelbase/satchel/extensions/push/ending"
	"github.com/satchelbase/satchel/extensions/push/sender"
	"github.com/satchelbase/satchel/extensions/push/template"
	"github.com/satchelbase/satchel/extensions/push/track"
)

// dataKey is where the app finds the signed delivery in the data of a push, to say that it was opened.
const dataKey = "delivery"

// receiptWaits are how long after a push its receipt is asked for, and then again: Expo has most after a quarter of an hour
// and keeps them for a day.
func receiptWaits() []time.Duration {
	return []time.Duration{15 * time.Minute, 45 * time.Minute, 3 * time.Hour, 12 * time.Hour}
}

// sliceSize is how many pushes are handed to a sender at a time. Expo takes a hundred in a request, and their results come
// together.
func sliceSize(p sender.Platform) int {
	if p == sender.Expo {
		return 100
	}
	return 50
}

// parcel is pushes of one platform.
type parcel struct {
	platform sender.Platform
	devices  []device.Device
	pushes   []sender.Push
}

// pack renders the notifications and sorts them by platform. What cannot be sent is decided.
func (s *shipment) pack(devices []device.Device) ([]parcel, error) {
	render, err := s.renderer()
	if err != nil {
		return nil, err
	}
	badge, err := s.badges(devices)
	if err != nil {
		return nil, err
	}
	if err := s.deps.Vault.Unlock(); err != nil {
		return nil, fmt.Errorf("unlock vault: %w", err)
	}
	slices.SortStableFunc(devices, func(a, b device.Device) int { return cmp.Compare(a.Platform, b.Platform) })
	var parcels []parcel
	for _, d := range devices {
		target, err := s.deps.Devices.Open(d)
		if err != nil {
			s.log.Warn("the token of a device cannot be read", "device", d.ID, "error", err)
			s.decide(d.ID, failed, "token_sealed")
			continue
		}
		n, err := render(d.Locale)
		if err != nil {
			s.decide(d.ID, rejected, sender.CodeInvalid)
			continue
		}
		if last := len(parcels) - 1; last < 0 || parcels[last].platform != d.Platform || len(parcels[last].devices) == sliceSize(d.Platform) {
			parcels = append(parcels, parcel{platform: d.Platform})
		}
		p := &parcels[len(parcels)-1]
		push := sender.Push{Target: target, Notification: badge(n, d)}
		if !s.m.Hint {
			push.Data = map[string]string{dataKey: track.Signer{Vault: s.deps.Vault}.Sign(s.row.ID, d.ID, d.User)}
		}
		p.devices, p.pushes = append(p.devices, d), append(p.pushes, push)
	}
	return parcels, nil
}

// renderer makes one notification for each text that receivers get.
func (s *shipment) renderer() (func(locale string) (*sender.Notification, error), error) {
	texts, err := s.m.ByLanguage()
	if err != nil {
		return nil, err
	}
	var set *template.Set
	if texts != nil {
		if set, err = template.Compile(texts); err != nil {
			return nil, jobs.Permanent(fmt.Errorf("read texts: %w", err))
		}
	}
	remaining := time.UnixMilli(s.row.EndsAt).Sub(s.begun)
	made := map[string]*sender.Notification{}
	return func(locale string) (*sender.Notification, error) {
		name := template.Default
		if set != nil {
			name = set.Locale(locale)
		}
		if n := made[name]; n != nil {
			return n, nil
		}
		var text template.Text
		if set != nil {
			if text, err = set.Render(name, s.m.Values); err != nil {
				return nil, err
			}
		}
		n := s.m.Notification(text, serial.Format(s.row.ID))
		if n.TTL > 0 { // what has waited here need not wait as long there
			n.TTL = max(min(n.TTL, remaining), time.Second)
		}
		made[name] = n
		return n, nil
	}, nil
}

// send sends a parcel.
func (s *shipment) send(p parcel) []result {
	var answers []sender.Result
	carrier, err := s.deps.Sender(s.ctx, p.platform)
	if err == nil {
		p, err = s.still(p)
	}
	results := make([]result, len(p.devices))
	switch {
	case errors.Is(err, credentials.ErrNotConnected):
		answers = slices.Repeat([]sender.Result{{Outcome: sender.Unauthorized, Code: sender.CodeNoSender}}, len(p.pushes))
	case err != nil:
		s.log.Warn("pushes wait", "platform", string(p.platform), "error", err)
		answers = slices.Repeat([]sender.Result{{Outcome: sender.Retry, Code: "sender"}}, len(p.pushes))
	default:
		answers = carrier.Send(s.meter.Timed(s.ctx, p.platform), p.pushes)
	}
	for i, d := range p.devices {
		a := answers[i]
		r := result{
			message: s.row.ID, device: d.ID, attempts: s.open[d.ID].Attempts + 1, code: a.Code, provider: a.ID, platform: d.Platform,
			since: s.begun, wait: a.After, state: s.judge(a), // a device that has registered since has another token
		}
		if !a.At.IsZero() && a.At.Before(s.begun) {
			r.since = a.At
		}
		results[i] = r
	}
	return results
}

// judge is what an answer means for the delivery.
func (s *shipment) judge(a sender.Result) int {
	switch a.Outcome {
	case sender.Accepted, sender.Pending:
		return accepted
	case sender.Dead:
		return dead
	case sender.Rejected:
		return rejected
	case sender.Unauthorized:
		if a.Code == sender.CodeNoSender {
			return failed
		}
	case sender.Retry:
	}
	// Bad credentials may be mended while the message still makes sense.
	if s.attempt >= attempts {
		return failed
	}
	return queued
}

// save writes batches in one transaction.
func (o *Outbox) save(list []*batch.Batch[result]) error {
	err := o.app.RunInTransaction(func(tx core.App) error {
		var rows []any
		var receipts []result
		now := o.now()
		var lost []any
		of := map[int64]bool{}
		for _, b := range list {
			for _, r := range b.Rows {
				of[r.message] = true
				rows = append(rows, []any{r.message, r.device, r.state, r.attempts, r.code, r.provider, string(r.platform)})
				if r.state == dead {
					if err := o.deps.Devices.Dead(tx, r.device, r.since, r.code); err != nil {
						return err
					}
				}
				if r.state != accepted && r.state != queued {
					lost = append(lost, rows[len(rows)-1])
				}
				if r.state == accepted && r.platform == sender.Expo && r.provider != "" {
					receipts = append(receipts, r)
				}
			}
		}
		if err := o.record(tx, rows, now); err != nil {
			return err
		}
		if err := o.ends().Changed(tx, slices.Collect(maps.Keys(of)), ending.Settle); err != nil { // late for one that was cancelled
			return err
		}
		if err := o.release(tx, lost); err != nil {
			return err
		}
		if err := o.askReceipts(tx, receipts, 0); err != nil {
			return err
		}
		for _, b := range list {
			if b.Also != nil {
				if err := b.Also(tx); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	for _, b := range list {
		for _, r := range b.Rows {
			o.meter.Delivered(r.platform, r.state)
		}
	}
	return nil
}

// record writes results over deliveries that have none, or were stopped with the push on its way.
func (o *Outbox) record(tx core.App, rows []any, now time.Time) error {
	if len(rows) == 0 {
		return nil
	}
	text, err := json.Marshal(rows)
	if err != nil {
		return fmt.Errorf("encode results: %w", err)
	}
	_, err = exec(tx, `INSERT INTO `+deliveriesTable+` AS d (message, device, state, attempts, code, provider, platform, at)
		SELECT value->>0, value->>1, value->>2, value->>3, value->>4, value->>5, value->>6, {:now} FROM json_each({:rows})
		WHERE EXISTS (SELECT 1 FROM `+deliveriesTable+` AS k WHERE k.message = value->>0 AND k.device = value->>1)
		ON CONFLICT (message, device) DO UPDATE SET state = excluded.state, attempts = excluded.attempts, code = excluded.code,
			provider = excluded.provider, at = excluded.at
		WHERE d.state = {:queued} OR (d.state = {:stopped} AND excluded.state NOT IN ({:queued}, {:failed}, {:skipped}, {:expired}))`,
		dbx.Params{"rows": string(text), "now": now.UnixMilli(), "queued": queued, "stopped": stopped, "failed": failed, "skipped": skipped, "expired": expired})
	if err != nil {
		return fmt.Errorf("write deliveries: %w", err)
	}
	return nil
}

// receipts is what the job that asks for them is given: accepted pushes by the provider's ids, which lead to the devices as
// long as the deliveries have them.
type receipts struct {
	Round  int       `json:"round"`
	Pushes []receipt `json:"pushes"`
}

type receipt struct {
	Message string    `json:"message"`
	ID      string    `json:"id"`
	Sent    time.Time `json:"sent"`
}

func (o *Outbox) askReceipts(tx core.App, list []result, round int) error {
	if len(list) == 0 {
		return nil
	}
	in := receipts{Round: round}
	for _, r := range list {
		in.Pushes = append(in.Pushes, receipt{serial.Format(r.message), r.provider, r.since})
	}
	_, err := o.deps.Jobs.Enqueue(tx, receiptKind, in, jobs.Options{Delay: receiptWaits()[round]})
	return err
}
