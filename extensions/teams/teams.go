// Package teams gives accounts teams to belong to, with roles that row rules can ask for, and invitations to join.
//
// Collections, all of the system kind: teams (name), team_members (team, user, role; a user is in a team once) and
// team_invitations (team, email, role, invitedBy, expiresAt, state). Members read their teams and who else is in them;
// owners and admins read the invitations of their team, and the owner of a verified address those that were sent to it.
// Nobody writes to them but the operations below and superusers. An app refers to teams by a relation and may add fields
// to the three collections by migrations of its own.
//
// Roles: owner, admin, member, and those of the setting ROLES, which are members to this package and whatever the rules
// of the app make of them. What a role may do is in one place, roles.go. A team always has an owner, whatever happens:
// the last one cannot leave, be removed or be demoted; when their account is deleted, the senior admin or else the senior
// member follows; a team without members is deleted. Hooks inside of the transaction see to it, for superusers and
// cascades, too. Only raw SQL gets past them; a check of the health summary tells what it left.
//
// Invitations are good once and for a limited time. What proves one is a token of 256 bits in the mail or the link, of
// which only the SHA-256 is stored. One that was mailed is good only for the account with that address. It is void as soon
// as whoever sent it may not invite for the role any more.
//
// Settings: SATCHEL_TEAMS_*. Tables: teams_tokens, teams_mails. Routes: none of its own, see [Teams.Operations]. Failure
// modes: a mail that cannot be sent is tried again until the invitation ends, and the invitation can be sent again.
package teams

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/mailer"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/operations"
)

// Config is read from SATCHEL_TEAMS_*.
type Config struct {
	Enabled      bool          `env:"ENABLED" default:"true" help:"whether there are teams; off before the first start, their collections are not made"`
	Accounts     string        `env:"ACCOUNTS" default:"users" help:"auth collection whose accounts form teams; for good, but for its name"`
	Roles        []string      `env:"ROLES" default:"" help:"roles besides owner, admin and member, such as viewer,billing; they are members with a name for your rules"`
	MaxMembers   int           `env:"MAX_MEMBERS" default:"500" help:"most members of a team"`
	MaxTeams     int           `env:"MAX_TEAMS" default:"100" help:"most teams that an account may belong to"`
	MaxPending   int           `env:"MAX_PENDING" default:"50" help:"most invitations of a team that wait for an answer"`
	Lifetime     time.Duration `env:"INVITATION_LIFETIME" default:"7d" help:"how long an invitation is good"`
	InviteURL    string        `env:"INVITE_URL" default:"" help:"page or app link that invitations lead to; the token is added as #token=...; empty is /invitation below PUBLIC_URL"`
	MailsPerHour int           `env:"MAILS_PER_HOUR" default:"200" help:"most invitations that the server mails in an hour"`
}

// maxRoles keeps the list of roles one that people can tell apart.
const maxRoles = 50

var rolePattern = regexp.MustCompile(`^[a-z][a-z0-9_]{0,30}$`)

// Validate reports values that cannot work.
func (c Config) Validate() error {
	var problems []error
	if c.Accounts == "" {
		problems = append(problems, errors.New("ACCOUNTS: must name an auth collection"))
	}
	if len(c.Roles) > maxRoles {
		problems = append(problems, fmt.Errorf("ROLES: must be at most %d", maxRoles))
	}
	for i, role := range c.Roles {
		if !rolePattern.MatchString(role) || slices.Contains(builtIn(), role) || slices.Contains(c.Roles[:i], role) {
			problems = append(problems, fmt.Errorf("ROLES: %q must be a new lower-case word", role))
		}
	}
	for name, n := range map[string]int{"MAX_MEMBERS": c.MaxMembers, "MAX_TEAMS": c.MaxTeams, "MAX_PENDING": c.MaxPending, "MAILS_PER_HOUR": c.MailsPerHour} {
		if n < 1 {
			problems = append(problems, fmt.Errorf("%s: must be at least 1", name))
		}
	}
	if c.Lifetime < time.Minute || c.Lifetime > maxLifetime {
		problems = append(problems, errors.New("INVITATION_LIFETIME: must be between a minute and 90 days"))
	}
	if err := checkInviteURL(c.InviteURL); err != nil {
		problems = append(problems, fmt.Errorf("INVITE_URL: %w", err))
	}
	return errors.Join(problems...)
}

// checkInviteURL takes web pages and schemes of apps. Schemes without // run scripts in browsers (javascript:, data:).
func checkInviteURL(text string) error {
	if text == "" {
		return nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme == "" || u.Opaque != "" || u.Host == "" || u.Fragment != "" || u.User != nil {
		return errors.New("must be an address like https://app.example.com/join or myapp://join, without #")
	}
	return nil
}

// Deps are what the extension takes from others. All may be missing.
type Deps struct {
	// PublicURL is the address of the server as clients see it.
	PublicURL string

	// Audit records what was done without an operation, in the transaction of tx. e is nil where no request is known.
	Audit func(tx core.App, e *core.RequestEvent, action, outcome string, subject *core.Record, details map[string]any) error

	// Check is the app's own policy: it runs inside of the transaction, after the caller's role is judged and before
	// anything is changed, and an error refuses. team is nil for teams.create.
	Check func(c *operations.Call, operation string, team *core.Record) error

	// Message writes the mail of an invitation instead of the built-in text.
	Message func(m Mail) Text

	// Mail sends a mail in the background if the transaction is committed, and not after until. Without it one attempt is
	// made.
	Mail func(tx core.App, m *mailer.Message, until time.Time) error
}

// Teams is the feature. It is safe for concurrent use.
type Teams struct {
	cfg    Config
	deps   Deps
	host   *extensions.Host
	now    func() time.Time
	writes sync.Map // *core.Record that a request of a superuser writes -> *core.RequestEvent

	ownerless atomic.Int64 // teams that the last sweep found without an owner
	sweeping  context.CancelFunc
	swept     sync.WaitGroup
}

// New returns the feature.
func New(cfg Config, deps Deps) *Teams {
	return &Teams{cfg: cfg, deps: deps, now: time.Now}
}

// Extension returns the extension.
func (t *Teams) Extension() extensions.Extension {
	x := extensions.Extension{Name: "teams", Settings: t.cfg, Codes: codes()}
	if !t.cfg.Enabled {
		return x
	}
	x.Tables = []string{tokensTable, mailsTable}
	x.Migrations = t.migrations()
	x.Bind = func(h *extensions.Host) error {
		t.host = h
		t.bind(h.App)
		return nil
	}
	x.Start, x.Stop = t.start, t.stop
	x.Checks = []extensions.Check{{Name: "teams", Run: t.check}}
	return x
}

// audit records what happened outside of operations. Those are recorded by whoever runs them.
func (t *Teams) audit(tx core.App, e *core.RequestEvent, action string, subject *core.Record, details map[string]any) error {
	if t.deps.Audit == nil {
		return nil
	}
	return t.deps.Audit(tx, e, action, "success", subject, details)
}

// check tells what the last sweep has found, since it is asked often and teams may be many.
func (t *Teams) check(context.Context, *extensions.Host) extensions.Result {
	if n := t.ownerless.Load(); n > 0 {
		return extensions.Result{
			Level: extensions.Warn, Message: fmt.Sprintf("%d teams have no owner; something wrote to the tables past the hooks", n),
			Next: "give each an owner in the dashboard, in the collection team_members",
		}
	}
	return extensions.Result{Level: extensions.OK, Message: "every team has an owner"}
}
