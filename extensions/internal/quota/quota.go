// Package quota judges requests by several quotas at once and tells the client about the one that is nearest to its end.
package quota

import (
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/gcra"
)

// Where a request keeps what it has learned.
const (
	// verdictKey holds the tightest verdict so far.
	verdictKey = "satchelRateLimitVerdict"

	// ownKey marks a request that has quotas of its own.
	ownKey = "satchelRateLimitOwn"
)

// Charge is what a request costs one key.
type Charge struct {
	Policy gcra.Policy
	Key    []byte
	Cost   int
}

// Verdict is the answer of several quotas: the one that refuses for longest, or else the one that is nearest to its end.
// The zero Verdict is that of no quota.
type Verdict struct {
	gcra.Decision
	Policy   gcra.Policy
	Violated []string // names of the policies that refuse
}

// Admit charges all or nothing, except that requests at the same moment may each be charged by some quotas and refused
// by another.
func Admit(table *gcra.Table, charges []Charge) Verdict {
	if v := Judge(charges, table.Peek); !v.Allowed {
		return v
	}
	return Judge(charges, table.Take)
}

// Judge asks every quota, by the table's Peek or Take.
func Judge(charges []Charge, ask func([]byte, gcra.Policy, int) gcra.Decision) Verdict {
	var tightest Verdict
	var violated []string
	for i, c := range charges {
		v := Verdict{Decision: ask(c.Key, c.Policy, c.Cost), Policy: c.Policy}
		if !v.Allowed {
			violated = append(violated, c.Policy.Name)
		}
		if i == 0 || v.tighterThan(tightest) {
			tightest = v
		}
	}
	tightest.Allowed, tightest.Violated = len(violated) == 0, violated
	return tightest
}

func (v Verdict) tighterThan(other Verdict) bool {
	switch {
	case v.Allowed != other.Allowed:
		return !v.Allowed
	case !v.Allowed:
		return v.RetryAfter > other.RetryAfter
	case v.Remaining != other.Remaining:
		return v.Remaining < other.Remaining
	}
	return v.Reset > other.Reset
}

// Answer sets the headers for the tightest verdict on this request so far, and returns a problem of the code for a
// refusal.
func Answer(e *core.RequestEvent, v Verdict, code *extensions.Code) error {
	if v.Policy.Name == "" {
		return nil
	}
	if earlier, ok := e.Get(verdictKey).(Verdict); ok && !v.tighterThan(earlier) {
		return nil
	}
	e.Set(verdictKey, v)
	v.setHeaders(e.Response.Header())
	if v.Allowed {
		return nil
	}
	p := api.Fail(code, "over the quota of: "+strings.Join(v.Violated, ", "))
	p.RetryAfter = retryAfter(v.RetryAfter, rand.IntN)
	return p
}

// Own says that the request is bound by quotas of its own from here on, so that those of the address do not count.
func Own(e *core.RequestEvent) {
	e.Set(verdictKey, nil)
	e.Set(ownKey, true)
}

// IsOwn reports whether [Own] was said of the request.
func IsOwn(e *core.RequestEvent) bool { return e.Get(ownKey) != nil }

// setHeaders writes structured fields (RFC 9651). t is when the request would pass, if it was refused, and else when the
// quota is whole again. The names of policies are constants without a quote or backslash.
func (v Verdict) setHeaders(h http.Header) {
	wait := v.Reset
	if !v.Allowed {
		wait = v.RetryAfter
	}
	h.Set("RateLimit-Policy", `"`+v.Policy.Name+`";q=`+strconv.Itoa(v.Policy.Limit)+`;w=`+strconv.Itoa(seconds(v.Policy.Window)))
	h.Set("RateLimit", `"`+v.Policy.Name+`";r=`+strconv.Itoa(v.Remaining)+`;t=`+strconv.Itoa(seconds(wait)))
}

// retryAfter adds up to a fifth, so that clients that were refused together do not return together. It is whole seconds
// and never less than t in the RateLimit header.
func retryAfter(wait time.Duration, random func(n int) int) time.Duration {
	t := seconds(wait)
	return time.Duration(t+random(t/5+1)) * time.Second
}

// seconds rounds up.
func seconds(d time.Duration) int {
	return int((d + time.Second - 1) / time.Second)
}
