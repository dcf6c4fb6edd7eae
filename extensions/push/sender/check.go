package sender

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"
)

// Limits of a notification, whatever the provider. The adapters check the size of what they make of it.
const (
	maxText     = 4096 // bytes: nothing longer fits into any payload
	maxData     = 64   // entries
	maxKey      = 128  // bytes
	maxActions  = 4    // iOS and browsers show fewer
	maxName     = 128  // bytes of sound, category, channel, and of an action's id and title
	maxCollapse = 256  // bytes; adapters shorten it by a hash
	maxURL      = 2048

	// MaxBadge is the largest number on an icon.
	MaxBadge = 99_999
)

// Check tells everything that is wrong with a notification, before any provider does: a mistake would be refused once for
// each device.
func (n *Notification) Check() error {
	var problems []error
	add := func(bad bool, format string, args ...any) {
		if bad {
			problems = append(problems, fmt.Errorf(format, args...))
		}
	}
	for name, text := range map[string]string{
		"title": n.Title, "body": n.Body, "sound": n.Sound, "category": n.Category, "channel": n.Channel, "collapseKey": n.CollapseKey,
	} {
		limit := maxName
		switch name {
		case "title", "body":
			limit = maxText
		case "collapseKey":
			limit = maxCollapse
		}
		add(len(text) > limit || !utf8.ValidString(text), "%s: must be UTF-8 of at most %d bytes", name, limit)
	}
	if n.Silent {
		add(n.Title != "" || n.Body != "" || n.Image != "" || n.Sound != "" || n.Badge != nil || len(n.Actions) > 0, "silent: shows nothing, so that it can have data only")
	} else {
		add(n.Title == "" && n.Body == "" && n.Badge == nil, "title: a notification that is not silent needs a title, a body or a badge")
	}
	if n.Image != "" {
		u, err := url.Parse(n.Image)
		add(err != nil || u.Scheme != "https" || u.Host == "" || len(n.Image) > maxURL, "image: must be an https address of at most %d bytes", maxURL)
	}
	add(n.Badge != nil && (*n.Badge < 0 || *n.Badge > MaxBadge), "badge: must be between 0 and %d", MaxBadge)
	add(n.Priority < PriorityDefault || n.Priority > PriorityLow, "priority: is not known")
	add(len(n.Actions) > maxActions, "actions: must be at most %d", maxActions)
	for _, a := range n.Actions {
		add(a.ID == "" || a.Title == "" || len(a.ID) > maxName || len(a.Title) > maxName, "actions: each needs an id and a title of at most %d bytes", maxName)
	}
	problems = append(problems, CheckData(n.Data))
	return errors.Join(problems...)
}

// CheckData tells what is wrong with data for the app.
func CheckData(data map[string]string) error {
	var problems []error
	if len(data) > maxData {
		problems = append(problems, fmt.Errorf("data: must be at most %d entries", maxData))
	}
	for key, value := range data {
		switch {
		case key == "" || len(key) > maxKey || !utf8.ValidString(key):
			problems = append(problems, fmt.Errorf("data: a key must be UTF-8 of 1 to %d bytes", maxKey))
		case Reserved(key):
			problems = append(problems, fmt.Errorf("data: the key %q is taken by a provider", key))
		case len(value) > maxText || !utf8.ValidString(value):
			problems = append(problems, fmt.Errorf("data: the value of %q must be UTF-8 of at most %d bytes", key, maxText))
		}
	}
	slices.SortFunc(problems, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(problems...)
}

// Reserved reports whether a key of data means something to APNs or FCM, or to this server.
func Reserved(key string) bool {
	return slices.Contains([]string{"aps", "from", "message_type", "notification", "image", "actions"}, key) ||
		strings.HasPrefix(key, "google") || strings.HasPrefix(key, "gcm")
}
