// Package schedule tells when a cron expression comes next, and which of its times have come.
package schedule

import (
	"time"

	"github.com/pocketbase/pocketbase/tools/cron"
)

// Next is the first time of the schedule after t, in UTC; zero if there is none in the next four years.
func Next(s *cron.Schedule, t time.Time) time.Time {
	t = t.UTC().Truncate(time.Minute).Add(time.Minute)
	for end := t.AddDate(4, 0, 1); t.Before(end); {
		m := cron.NewMoment(t)
		if s.IsDue(m) {
			return t
		}
		_, month := s.Months[m.Month]
		_, day := s.Days[m.Day]
		_, weekday := s.DaysOfWeek[m.DayOfWeek]
		_, hour := s.Hours[m.Hour]
		switch {
		case !month || !day || !weekday:
			t = t.Truncate(24 * time.Hour).Add(24 * time.Hour)
		case !hour:
			t = t.Truncate(time.Hour).Add(time.Hour)
		default:
			t = t.Add(time.Minute)
		}
	}
	return time.Time{}
}
