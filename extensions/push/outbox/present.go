package outbox

import (
	"encoding/json"
	"fmt"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/push/caps"
	"github.com/satchelbase/satchel/extensions/push/device"
)

// present returns those of the devices whose owners are signed in on them still, and decides the others.
func (s *shipment) present(ids []string) ([]device.Device, error) {
	list, others, err := s.deps.Devices.Get(s.ctx, s.app, ids)
	if err != nil {
		return nil, err
	}
	for id, reason := range others {
		s.decide(id, skipped, reason)
	}
	return list, nil
}

// still leaves out of a parcel whoever has gone while the parcels before it were sent. It is asked right before the
// provider is, so that whoever has signed out gets no push that was not on its way already.
func (s *shipment) still(p parcel) (parcel, error) {
	ids := make([]string, len(p.devices))
	for i, d := range p.devices {
		ids[i] = d.ID
	}
	list, err := s.present(ids)
	if err != nil || len(list) == len(ids) {
		return p, err
	}
	here := make(map[string]bool, len(list))
	for _, d := range list {
		here[d.ID] = true
	}
	left := parcel{platform: p.platform}
	for i, d := range p.devices {
		if here[d.ID] {
			left.devices, left.pushes = append(left.devices, d), append(left.pushes, p.pushes[i])
		}
	}
	return left, nil
}

// release gives back what deliveries have taken of caps that have ended without being accepted.
func (o *Outbox) release(tx core.App, lost []any) error {
	if len(lost) == 0 || !o.deps.Devices.Caps() {
		return nil
	}
	text, err := json.Marshal(lost)
	if err != nil {
		return fmt.Errorf("encode deliveries: %w", err)
	}
	return caps.Release(tx, string(text))
}
