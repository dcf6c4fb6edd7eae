package device

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Policy is what becomes of a message that somebody does not want now.
type Policy string

// The policies.
const (
	Defer    Policy = "defer"    // it is sent later
	Drop     Policy = "drop"     // it is not sent
	Collapse Policy = "collapse" // it is sent later, unless another one of the category has come by then
	Always   Policy = "always"   // it is sent; people can neither switch the category off nor make it wait
)

// Cap is how many messages an account gets in any time of a length. The zero value is no cap.
type Cap struct {
	Count int
	Per   time.Duration
}

// Category is a kind of message that people can switch on and off.
type Category struct {
	Name string

	// Policy is for messages in quiet hours, and for those beyond a cap.
	Policy Policy

	// Off makes it silent until somebody switches it on.
	Off bool

	Cap Cap
}

// Bounds of caps: a cap counts rows, one for each message that an account has got.
const (
	maxCount  = 10_000
	maxPer    = 31 * 24 * time.Hour
	maxLength = 40 // bytes of a name
)

// ParseCap reads "count/duration", such as 3/24h.
func ParseCap(text string) (Cap, error) {
	count, per, _ := strings.Cut(text, "/")
	n, err := strconv.Atoi(count)
	d, bad := time.ParseDuration(per)
	if err != nil || bad != nil || n < 1 || n > maxCount || d < time.Second || d > maxPer {
		return Cap{}, fmt.Errorf("%q must be a number up to %d, a slash and a time from 1s to %.0fh, such as 3/24h", text, maxCount, maxPer.Hours())
	}
	return Cap{n, d}, nil
}

// ParseCategory reads "name" or "name=words", where the words are a policy, off, and a cap: "likes=collapse off 10/1h".
func ParseCategory(text string) (Category, error) {
	name, words, _ := strings.Cut(text, "=")
	c := Category{Name: strings.TrimSpace(name), Policy: Defer}
	for word := range strings.FieldsSeq(words) {
		switch p := Policy(word); {
		case slices.Contains([]Policy{Defer, Drop, Collapse, Always}, p):
			c.Policy = p
		case word == "off":
			c.Off = true
		default:
			limit, err := ParseCap(word)
			if err != nil {
				return c, fmt.Errorf("%s: %q is neither defer, drop, collapse, always nor off, and no cap: %w", c.Name, word, err)
			}
			c.Cap = limit
		}
	}
	return c, c.Check()
}

// Check tells what is wrong with a category.
func (c Category) Check() error {
	switch {
	case len(c.Name) > maxLength || !regexp.MustCompile(`^[a-z][A-Za-z0-9_-]*$`).MatchString(c.Name):
		return fmt.Errorf("%q must begin with a small letter and have at most %d letters, digits, hyphens and underscores", c.Name, maxLength)
	case !slices.Contains([]Policy{Defer, Drop, Collapse, Always}, c.Policy):
		return fmt.Errorf("%s: %q is no policy", c.Name, c.Policy)
	case c.Policy == Always && (c.Off || c.Cap != Cap{}):
		return fmt.Errorf("%s: what is always sent is not off and has no cap", c.Name)
	case c.Cap != Cap{} && (c.Cap.Count < 1 || c.Cap.Count > maxCount || c.Cap.Per < time.Second || c.Cap.Per > maxPer):
		return fmt.Errorf("%s: the cap is out of range", c.Name)
	}
	return nil
}

// Check tells what is wrong with options.
func (o Options) Check() error {
	names := map[string]bool{}
	for _, c := range o.Categories {
		if err := c.Check(); err != nil {
			return err
		}
		if names[c.Name] {
			return fmt.Errorf("%s: the category is declared twice", c.Name)
		}
		names[c.Name] = true
	}
	return nil
}

// Category returns one that is declared.
func (r *Registry) Category(name string) (Category, bool) {
	c, ok := r.byName[name]
	return c, ok
}

// longest is the longest time that a cap looks back.
func (r *Registry) longest() time.Duration {
	d := r.options.Cap.Per
	for _, c := range r.options.Categories {
		d = max(d, c.Cap.Per)
	}
	return d
}
