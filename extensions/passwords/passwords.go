// Package passwords decides how passwords are hashed, when, and which are too weak to be set. It covers every auth
// collection, the superusers' included.
//
// Cost: new passwords are hashed with bcrypt at SATCHEL_PASSWORDS_COST. Collections with a lower cost are raised when the
// application is opened. Hashes of a lower cost keep working, and are replaced when their owner signs in.
//
// Load: hashing is made slow on purpose, so a storm of logins would take the processors from everybody else. Only a few
// passwords are hashed at once; the others wait in a queue of bounded length and time that serves networks in turn, and
// are refused with 503 passwords.busy beyond that. While a login is checked, every other request goes first. Setting a
// password is admitted by the same queue, but hashed by PocketBase, which holds a processor up to 10 ms at a time.
//
// Weakness: a password that is on the built-in list of common ones is refused when it is set, in any case of its letters;
// with SATCHEL_PASSWORDS_RANGE_URL also one that a service of leaked passwords knows, of whose hash it learns five digits.
//
// Settings: SATCHEL_PASSWORDS_*. Tables and routes: none. Failure modes: without that service passwords are accepted; a
// hash that cannot be replaced stays, and the log says so.
package passwords

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"runtime"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"golang.org/x/crypto/bcrypt"

	"github.com/satchelbase/satchel/extensions"
)

// Bounds of the settings. 4 is the least that bcrypt takes and for tests alone; 16 takes some four seconds.
const (
	minCost  = 4
	maxCost  = 16
	maxSlots = 1024
	maxQueue = 100_000
	maxWait  = time.Minute
)

// admitPriority is behind the body limit (-990), and before anything that opens a transaction for the request (-980).
const admitPriority = -985

// Codes of passwords that are refused, and of a server that has too many to hash.
var (
	ErrTooCommon = &extensions.Code{Name: "passwords.too_common", Status: http.StatusBadRequest, Title: "The password is too common"}
	ErrLeaked    = &extensions.Code{Name: "passwords.leaked", Status: http.StatusBadRequest, Title: "The password is known from a data leak"}
	ErrBusy      = &extensions.Code{Name: "passwords.busy", Status: http.StatusServiceUnavailable, Title: "Too many passwords are being checked"}
)

// Config is read from SATCHEL_PASSWORDS_*.
type Config struct {
	Cost        int           `env:"COST" default:"12" help:"bcrypt cost of passwords, 4 to 16; one more doubles the time that a login takes"`
	Concurrency int           `env:"CONCURRENCY" default:"0" help:"passwords hashed at once; 0 is one less than there are processors, and at least 1"`
	Queue       int           `env:"QUEUE" default:"256" help:"logins and password changes that may wait for others; those beyond are answered 503"`
	Wait        time.Duration `env:"WAIT" default:"10s" help:"longest time that one of them waits"`
	RangeURL    string        `env:"RANGE_URL" default:"" help:"service of leaked passwords with the range protocol, such as https://api.pwnedpasswords.com/range; empty asks none"`
}

// Validate reports values that cannot work, all of them.
func (c Config) Validate() error {
	var problems []error
	if c.Cost < minCost || c.Cost > maxCost {
		problems = append(problems, fmt.Errorf("COST: must be from %d to %d", minCost, maxCost))
	}
	if c.Concurrency < 0 || c.Concurrency > maxSlots {
		problems = append(problems, fmt.Errorf("CONCURRENCY: must be from 0 to %d", maxSlots))
	}
	if c.Queue < 1 || c.Queue > maxQueue {
		problems = append(problems, fmt.Errorf("QUEUE: must be from 1 to %d", maxQueue))
	}
	if c.Wait < time.Second || c.Wait > maxWait {
		problems = append(problems, fmt.Errorf("WAIT: must be from 1s to %s", maxWait))
	}
	if u, err := url.Parse(c.RangeURL); c.RangeURL != "" && (err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "") {
		problems = append(problems, errors.New("RANGE_URL: must be an https address"))
	}
	return errors.Join(problems...)
}

func (c Config) slots() int {
	if c.Concurrency > 0 {
		return c.Concurrency
	}
	return max(1, runtime.GOMAXPROCS(0)-1)
}

// New returns the extension around a hasher, which other features use when they check a password themselves.
func New(h *Hasher) extensions.Extension {
	return extensions.Extension{
		Name:     "passwords",
		Settings: h.cfg,
		Codes:    []*extensions.Code{ErrTooCommon, ErrLeaked, ErrBusy},
		Bind: func(host *extensions.Host) error {
			host.App.OnBootstrap().BindFunc(h.raiseAll)
			host.App.OnCollectionCreate().BindFunc(h.raise)
			host.App.OnCollectionUpdate().BindFunc(h.raise)
			host.App.OnRecordValidate().BindFunc(h.refuseCommon)
			// The last of all handlers stands in the place of PocketBase's own.
			host.App.OnRecordAuthWithPasswordRequest().Bind(&hook.Handler[*core.RecordAuthWithPasswordRequestEvent]{
				Id: "satchelPasswords", Priority: math.MaxInt, Func: h.signIn,
			})
			return nil
		},
		Middlewares: []*hook.Handler[*core.RequestEvent]{
			{Id: "satchelPasswords", Priority: admitPriority, Func: h.admit},
		},
		Checks: []extensions.Check{{Name: "password cost", Run: h.checkCost}},
		Metrics: []extensions.Metric{
			{
				Name: "satchel_passwords_hashed_total", Help: "Logins and password changes that were admitted to hashing.", Counter: true,
				Read: func() float64 { return float64(h.hashed.Load()) },
			},
			{
				Name: "satchel_passwords_refused_total", Help: "Logins and password changes refused with 503.", Counter: true,
				Read: func() float64 { return float64(h.refused.Load()) },
			},
			{
				Name: "satchel_passwords_waiting_count", Help: "Logins and password changes that wait for others.",
				Read: func() float64 { return float64(h.queue.length()) },
			},
		},
	}
}

// checkCost names the collections whose cost could not be raised.
func (h *Hasher) checkCost(_ context.Context, host *extensions.Host) extensions.Result {
	collections, err := host.App.FindAllCollections(core.CollectionTypeAuth)
	if err != nil {
		return extensions.Result{Level: extensions.Fail, Message: err.Error(), Next: "satchel doctor shows whether the database can be read"}
	}
	var low []string
	for _, c := range collections {
		if costOf(c) < h.cfg.Cost {
			low = append(low, c.Name)
		}
	}
	if len(low) > 0 {
		return extensions.Result{
			Level: extensions.Warn, Message: fmt.Sprintf("below %d in %s", h.cfg.Cost, strings.Join(low, ", ")),
			Next: "restart the server; its log says why the cost could not be raised",
		}
	}
	if host.Production && h.cfg.Cost < bcrypt.DefaultCost {
		return extensions.Result{
			Level: extensions.Warn, Message: fmt.Sprintf("bcrypt %d is for tests: stolen hashes are guessed quickly", h.cfg.Cost),
			Next: "remove SATCHEL_PASSWORDS_COST, or set it to 12",
		}
	}
	return extensions.Result{Level: extensions.OK, Message: fmt.Sprintf("bcrypt %d in %d collections, %d at once", h.cfg.Cost, len(collections), h.cfg.slots())}
}
