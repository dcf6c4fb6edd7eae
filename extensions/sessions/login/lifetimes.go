package login

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/satchelbase/satchel/extensions/settings"
)

// Lifetimes is a duration for each platform: "15m" for all, or "15m,web=5m".
type Lifetimes map[string]time.Duration

// UnmarshalText parses the form of the setting. There must be a value for platforms that are not named.
func (l *Lifetimes) UnmarshalText(text []byte) error {
	*l = Lifetimes{}
	for part := range strings.SplitSeq(string(text), ",") {
		platform, value, found := strings.Cut(strings.TrimSpace(part), "=")
		if !found {
			platform, value = "", platform
		}
		d, err := settings.ParseDuration(value)
		if err != nil {
			return fmt.Errorf("%q %w", value, err)
		}
		(*l)[strings.ToLower(platform)] = d
	}
	if _, ok := (*l)[""]; !ok {
		return errors.New("a value for all other platforms is missing")
	}
	return nil
}

// String is the form that UnmarshalText reads.
func (l Lifetimes) String() string {
	parts := []string{l[""].String()}
	for _, platform := range slices.Sorted(maps.Keys(l)) {
		if platform != "" {
			parts = append(parts, platform+"="+l[platform].String())
		}
	}
	return strings.Join(parts, ",")
}

// Of is the duration for a platform.
func (l Lifetimes) Of(platform string) time.Duration {
	if own, ok := l[strings.ToLower(platform)]; ok {
		return own
	}
	return l[""]
}

// Longest is the longest of all platforms.
func (l Lifetimes) Longest() time.Duration {
	return slices.Max(slices.Collect(maps.Values(l)))
}

// Within reports a duration outside of the bounds, by the name of the setting.
func (l Lifetimes) Within(name string, least, most time.Duration) error {
	for _, d := range l {
		if d < least || d > most {
			return fmt.Errorf("%s: must be from %v to %v", name, least, most)
		}
	}
	return nil
}
