package device

import (
	"fmt"
	"time"
)

// clock is a time of the day in minutes.
type clock int

const day clock = 24 * 60

// parseClock reads "22:00".
func parseClock(text string) (clock, error) {
	t, err := time.Parse("15:04", text)
	if err != nil || len(text) != len("15:04") {
		return 0, fmt.Errorf("%q is no time of the day, such as 22:00", text)
	}
	return clock(t.Hour()*60 + t.Minute()), nil
}

func clockOf(t time.Time) clock { return clock(t.Hour()*60 + t.Minute()) }

// quiet is the hours of every day in which nobody is to be disturbed, by the clock on the wall. They may include midnight.
type quiet struct{ start, end clock }

func (q quiet) includes(c clock) bool {
	if q.start < q.end {
		return q.start <= c && c < q.end
	}
	return c >= q.start || c < q.end
}

// until returns when the hours that include a moment end, and false if it is in none. The clock of the location may be
// put forward or back meanwhile: hours that end at a time that the day does not have end when the clock is past it, and
// those that the day has twice end the first time that the clock shows a time outside of them.
func (q quiet) until(now time.Time, where *time.Location) (time.Time, bool) {
	local := now.In(where)
	if !q.includes(clockOf(local)) {
		return time.Time{}, false
	}
	y, m, d := local.Date()
	if clockOf(local) >= q.end {
		d++
	}
	end := time.Date(y, m, d, int(q.end)/60, int(q.end)%60, 0, 0, where)
	_, offset := local.Zone()
	if _, then := end.Zone(); then == offset && clockOf(end) == q.end && end.After(now) {
		return end, true
	}
	// The clock changes before the end, and may pass it more than once or not at all: try every minute.
	t := local.Truncate(time.Minute)
	for range 2 * int(day) {
		if t = t.Add(time.Minute); !q.includes(clockOf(t)) {
			return t, true
		}
	}
	return now, false // hours that never end, which no change of a clock makes
}

// maxZones bounds what is kept of time zones. The database has about 600 names.
const maxZones = 2000

// zone returns a time zone by its name, nil if there is none.
func (r *Registry) zone(name string) *time.Location {
	r.mu.Lock()
	defer r.mu.Unlock()
	if known := r.zones[name]; known != nil {
		return known
	}
	if name == "" || name == "Local" || len(name) > maxZone {
		return nil
	}
	found, err := time.LoadLocation(name)
	if err != nil {
		return nil
	}
	if len(r.zones) < maxZones {
		r.zones[name] = found
	}
	return found
}
