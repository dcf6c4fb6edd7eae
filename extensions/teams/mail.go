package teams

import (
	"crypto/sha256"
	"database/sql"
	"errors"
	"fmt"
	"html"
	"net/mail"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/mailer"
	"github.com/pocketbase/pocketbase/tools/routine"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/pb"
)

const mailsTable = "teams_mails"

const (
	day         = 24 * time.Hour
	maxLifetime = 90 * day
)

// How many invitations are mailed at most, besides the setting for the whole server.
const (
	mailsPerInviter = 30  // an hour
	mailsPerTeam    = 100 // an hour
	mailsPerAddress = 3   // a day, from all teams together: the owner of the address has asked for none
)

// Mail is what the mail of an invitation may say. Team and Inviter were written by users: they are on one line, bounded,
// hold no addresses of websites, and must be escaped in HTML. Inviter may be empty.
type Mail struct {
	App, Team, Inviter, Role string
	Link                     string // holds the token; it must go to the invited address alone
	ExpiresAt                time.Time
}

// Text is a mail. HTML or Plain may be empty.
type Text struct{ Subject, HTML, Plain string }

// message is the built-in text.
func message(m Mail) Text {
	who := m.Inviter
	if who == "" {
		who = "A member"
	}
	until := m.ExpiresAt.UTC().Format("2 January 2006, 15:04 UTC")
	const note = "If you do not know the sender, ignore this mail; nothing happens then."
	return Text{
		Subject: "Invitation to " + m.Team + " at " + m.App,
		Plain: fmt.Sprintf("Hello,\n\n%s invites you to the team %s at %s. To join, open\n\n%s\n\nThe invitation is good once, until %s. %s\n\n%s\n",
			who, m.Team, m.App, m.Link, until, note, m.App),
		HTML: fmt.Sprintf("<p>Hello,</p>\n<p>%s invites you to the team <b>%s</b> at %s.</p>\n<p><a href=\"%s\">Join the team</a></p>\n"+
			"<p>The invitation is good once, until %s. %s</p>\n<p>%s</p>", html.EscapeString(who), html.EscapeString(m.Team),
			html.EscapeString(m.App), html.EscapeString(m.Link), until, note, html.EscapeString(m.App)),
	}
}

// website is what mail programs turn into a link by themselves.
var website = regexp.MustCompile(`(?i)://|www\.|[\pL\pN-]\.[\pL]{2,}`)

// oneLine takes line breaks and what is not printable out of a text: nothing in it can begin a header of its own.
func oneLine(text string) string {
	return strings.Join(strings.FieldsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || hidden(r) }), " ")
}

// plain makes text of users fit for mails: on one line, bounded, and never an advertisement for a website.
func plain(text, instead string) string {
	text = oneLine(text)
	if text == "" || website.MatchString(text) {
		return instead
	}
	if runes := []rune(text); len(runes) > maxName {
		text = string(runes[:maxName])
	}
	return text
}

// link is where the token leads. It stands behind the #, which browsers keep to themselves: no server on the way logs it.
func (t *Teams) link(app core.App, token string) string {
	address := t.cfg.InviteURL
	if address == "" {
		base := t.deps.PublicURL
		if base == "" {
			base = app.Settings().Meta.AppURL
		}
		address = strings.TrimSuffix(base, "/") + "/invitation"
	}
	return address + "#token=" + token
}

// send mails the invitation in the background once the transaction is committed, so that the answer does not wait for it.
func (t *Teams) send(tx core.App, to string, m Mail) error {
	write := t.deps.Message
	if write == nil {
		write = message
	}
	text := write(m)
	app, logger := t.host.App, t.host.Logger
	meta := app.Settings().Meta
	letter := &mailer.Message{
		From: mail.Address{Name: meta.SenderName, Address: meta.SenderAddress}, To: []mail.Address{{Address: to}},
		Subject: oneLine(text.Subject), HTML: text.HTML, Text: text.Plain,
	}
	if t.deps.Mail != nil {
		return t.deps.Mail(tx, letter, m.ExpiresAt)
	}
	pb.AfterCommit(tx, func() {
		routine.FireAndForget(func() {
			if err := app.NewMailClient().Send(letter); err != nil {
				logger.Error("an invitation was not mailed", "error", err)
			}
		})
	})
	return nil
}

// postage notes that a mail goes out, unless too many have. It is part of the transaction: a mail that is not sent in the
// end is not counted.
func (t *Teams) postage(tx core.App, team, account, address string) error {
	now := t.now()
	hash := sha256.Sum256([]byte(address))
	bounds := []struct {
		column string
		value  any
		most   int
		per    time.Duration
		whose  string
	}{
		{"account", account, mailsPerInviter, time.Hour, "you may mail"},
		{"team", team, mailsPerTeam, time.Hour, "a team may mail"},
		{"address", hash[:], mailsPerAddress, day, "one address gets"},
		{"", nil, t.cfg.MailsPerHour, time.Hour, "the server mails"},
	}
	for _, b := range bounds {
		q := tx.ConcurrentDB().Select("at").From(mailsTable).OrderBy("at DESC").Offset(int64(b.most - 1)).Limit(1)
		if b.column != "" {
			q.AndWhere(dbx.HashExp{b.column: b.value})
		}
		var at int64
		err := q.Row(&at)
		if errors.Is(err, sql.ErrNoRows) {
			continue
		}
		if err != nil {
			return fmt.Errorf("count mails: %w", err)
		}
		if wait := time.UnixMilli(at).Add(b.per).Sub(now); wait > 0 {
			p := api.Fail(ErrMailLimit, fmt.Sprintf("%s at most %d invitations in %s", b.whose, b.most, b.per))
			p.RetryAfter = wait
			return p
		}
	}
	row := dbx.Params{"at": now.UnixMilli(), "account": account, "team": team, "address": hash[:]}
	if _, err := tx.NonconcurrentDB().Insert(mailsTable, row).Execute(); err != nil {
		return fmt.Errorf("note mail: %w", err)
	}
	return nil
}
