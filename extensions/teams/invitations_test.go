package teams

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions/api"
)

func TestInvitationByMail(t *testing.T) {
	w := open(t, func(cfg *Config, _ *Deps) { cfg.InviteURL = "myapp://join?via=mail" })
	w.people(t, "olga", "mia", "max")
	team := w.found(t, "olga", nil)
	answer := w.must(t, "olga", "invite", map[string]any{"team": team, "email": "New@Example.test"})
	if answer["email"] != "new@example.test" || answer["role"] != Member || answer["token"] != nil || answer["link"] != nil {
		t.Errorf("answer: %v", answer)
	}
	m := w.mail(t)
	token := tokenIn(t, m)
	if m.To[0].Address != "new@example.test" || !strings.Contains(m.Subject, "Team of olga") || !strings.Contains(m.Text, "Olga invites you") ||
		!strings.Contains(m.Text, "myapp://join?via=mail#token="+token) || !strings.Contains(m.HTML, token) {
		t.Errorf("mail: %+v", m)
	}

	// It can be looked at before there is an account.
	preview := w.must(t, "guest", "previewInvitation", map[string]any{"token": token})
	if preview["teamName"] != "Team of olga" || preview["inviter"] != "Olga" || preview["role"] != Member || preview["email"] != "new@example.test" {
		t.Errorf("preview: %v", preview)
	}

	// Whoever got the mail from somebody else cannot use it.
	w.refuse(t, &ErrInvitationAddress.Name, "mia", "acceptInvitation", map[string]any{"token": token})

	// The one who was invited signs up. The token has proved the address.
	user, accessToken := w.User(t, "NEW@example.test")
	user.SetVerified(false)
	if err := w.Save(user); err != nil {
		t.Fatal(err)
	}
	w.ids["new"], w.tokens["new"] = user.Id, accessToken
	id, _ := preview["id"].(string)
	w.refuse(t, &ErrInvitationInvalid.Name, "new", "acceptInvitation", map[string]any{"invitation": id}) // by the address alone, which may be anybody's
	member := w.must(t, "new", "acceptInvitation", map[string]any{"token": token})
	if member["team"] != team || member["user"] != user.Id || member["role"] != Member {
		t.Errorf("accepted: %v", member)
	}
	if user, err := w.FindRecordById("users", user.Id); err != nil || !user.Verified() {
		t.Errorf("the address is not verified (%v)", err)
	}
	if !has(w.entries(t), "teams.acceptInvitation success", `"addressVerified":true`, team) {
		t.Error("the audit lacks the verification")
	}

	// Once.
	for _, who := range []string{"new", "max"} {
		w.refuse(t, &ErrInvitationClosed.Name, who, "acceptInvitation", map[string]any{"token": token})
	}
	w.refuse(t, &ErrInvitationClosed.Name, "guest", "previewInvitation", map[string]any{"token": token})
	if strings.Contains(strings.Join(w.entries(t), "\n"), token) {
		t.Error("the audit holds a token")
	}
	mustNotStore(t, w, token)
}

// mustNotStore looks for a text in every table of the database.
func mustNotStore(t *testing.T, w *world, secret string) {
	t.Helper()
	var tables []string
	if err := w.DB().NewQuery("SELECT name FROM sqlite_schema WHERE type = 'table'").Column(&tables); err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		var rows []dbx.NullStringMap
		if err := w.DB().NewQuery("SELECT * FROM [[" + table + "]]").All(&rows); err != nil {
			t.Fatal(err)
		}
		for _, row := range rows {
			for column, value := range row {
				if strings.Contains(value.String, secret) {
					t.Errorf("%s.%s holds the secret", table, column)
				}
			}
		}
	}
}

// The owner of a verified address needs no mail.
func TestInvitationByAddress(t *testing.T) {
	w := open(t, nil)
	w.people(t, "olga", "mia", "max")
	team := w.found(t, "olga", nil)
	id, _ := w.invited(t, "olga", team, "mia@example.test", "viewer")
	for _, who := range []string{"max", "guest"} {
		w.refuse(t, &ErrInvitationInvalid.Name, who, "previewInvitation", map[string]any{"invitation": id})
		w.refuse(t, &ErrInvitationInvalid.Name, who, "declineInvitation", map[string]any{"invitation": id})
	}
	w.refuse(t, &ErrInvitationInvalid.Name, "max", "acceptInvitation", map[string]any{"invitation": id})
	w.must(t, "mia", "acceptInvitation", map[string]any{"invitation": id})
	if got := w.roles(t, team); got != "mia viewer, olga owner" {
		t.Error(got)
	}
	link, _ := w.linked(t, "olga", team, Member)
	w.refuse(t, &ErrInvitationInvalid.Name, "max", "acceptInvitation", map[string]any{"invitation": link}) // the id is no secret
}

func TestInvitationByLink(t *testing.T) {
	w := open(t, nil)
	w.people(t, "olga", "mia", "max")
	team := w.found(t, "olga", nil)
	got := w.call(t, "olga", "invite", map[string]any{"team": team})
	if got.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("the answer may be kept: %v", got.Header)
	}
	answer, _ := got.JSON(t)["data"].(map[string]any)
	token, _ := answer["token"].(string)
	if answer["link"] != "https://api.example.test/invitation#token="+token || answer["email"] != "" || w.mailed() != 0 {
		t.Errorf("answer: %v", answer)
	}
	w.refuse(t, &ErrAlreadyMember.Name, "olga", "acceptInvitation", map[string]any{"token": token}) // and it is not used up
	w.must(t, "mia", "acceptInvitation", map[string]any{"token": token})
	w.refuse(t, &ErrInvitationClosed.Name, "max", "acceptInvitation", map[string]any{"token": token})
	mustNotStore(t, w, token)
}

func TestInvitationEnds(t *testing.T) {
	w := open(t, nil)
	w.people(t, "olga", "ada", "mia", "max")
	team := w.found(t, "olga", map[string]string{"ada": Admin})
	cases := []struct {
		name string
		end  func(id, token string)
		code string
	}{
		{"revoked", func(id, _ string) { w.must(t, "olga", "revokeInvitation", map[string]any{"invitation": id}) }, ErrInvitationClosed.Name},
		{"declined", func(_, token string) { w.must(t, "mia", "declineInvitation", map[string]any{"token": token}) }, ErrInvitationClosed.Name},
		{"declined by a guest", func(_, token string) { w.must(t, "guest", "declineInvitation", map[string]any{"token": token}) }, ErrInvitationClosed.Name},
		{"sent again", func(id, _ string) { w.must(t, "olga", "resendInvitation", map[string]any{"invitation": id}) }, ErrInvitationInvalid.Name},
		{"expired", func(string, string) { w.wait(w.cfg.Lifetime) }, ErrInvitationExpired.Name},
		{"deleted by a superuser", func(id, _ string) {
			inv, err := w.FindRecordById(invitationsCollection, id)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Delete(inv); err != nil {
				t.Fatal(err)
			}
		}, ErrInvitationInvalid.Name},
	}
	for _, c := range cases {
		id, token := w.linked(t, "ada", team, Member)
		c.end(id, token)
		w.refuse(t, &c.code, "max", "acceptInvitation", map[string]any{"token": token})
		w.refuse(t, &c.code, "guest", "previewInvitation", map[string]any{"token": token})
	}
	w.refuse(t, &ErrInvitationInvalid.Name, "max", "acceptInvitation", map[string]any{"token": strings.Repeat("x", tokenLength)})

	// An expired one can be sent again.
	id, _ := w.linked(t, "ada", team, Member)
	w.wait(w.cfg.Lifetime)
	token, _ := w.must(t, "ada", "resendInvitation", map[string]any{"invitation": id})["token"].(string)
	w.must(t, "max", "acceptInvitation", map[string]any{"token": token})
	w.refuse(t, &ErrInvitationClosed.Name, "ada", "resendInvitation", map[string]any{"invitation": id})
	w.refuse(t, &ErrInvitationClosed.Name, "ada", "revokeInvitation", map[string]any{"invitation": id})

	// A team takes its invitations along.
	_, token = w.linked(t, "ada", team, Member)
	w.must(t, "olga", "delete", map[string]any{"team": team})
	w.refuse(t, &ErrInvitationInvalid.Name, "mia", "acceptInvitation", map[string]any{"token": token})
	var left int
	if err := w.DB().Select("count(*)").From(tokensTable).Row(&left); err != nil || left != 0 {
		t.Errorf("%d tokens are left (%v)", left, err)
	}
}

// What somebody has offered is void when they may not offer it any more, whichever way that came about.
func TestInviterLosesTheRole(t *testing.T) {
	ends := map[string]struct {
		by func(t *testing.T, w *world, team string)
		as string // what the second invitation is for, which may outlive the first
	}{
		"removed": {func(t *testing.T, w *world, team string) {
			w.must(t, "olga", "removeMember", map[string]any{"member": w.member(t, team, "otto")})
		}, ""},
		"left": {func(t *testing.T, w *world, team string) { w.must(t, "otto", "leave", map[string]any{"team": team}) }, ""},
		"demoted": {func(t *testing.T, w *world, team string) {
			w.must(t, "olga", "changeRole", map[string]any{"member": w.member(t, team, "otto"), "role": Admin})
		}, Member},
		"handed on": {func(t *testing.T, w *world, team string) {
			w.must(t, "otto", "transferOwnership", map[string]any{"member": w.member(t, team, "olga")})
		}, Member},
		"raw SQL": {func(t *testing.T, w *world, team string) {
			if _, err := w.NonconcurrentDB().Update(membersCollection, dbx.Params{"role": Admin}, dbx.HashExp{"id": w.member(t, team, "otto")}).Execute(); err != nil {
				t.Fatal(err)
			}
		}, Member},
		"account deleted": {func(t *testing.T, w *world, _ string) {
			user, err := w.FindRecordById("users", w.ids["otto"])
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Delete(user); err != nil {
				t.Fatal(err)
			}
		}, ""},
	}
	for name, c := range ends {
		t.Run(name, func(t *testing.T) {
			w := open(t, nil)
			w.people(t, "olga", "otto", "mia", "max")
			team := w.found(t, "olga", map[string]string{"otto": Owner})
			_, asAdmin := w.linked(t, "otto", team, Admin)
			_, asMember := w.linked(t, "otto", team, Member)
			c.by(t, w, team)
			want := &ErrInvitationClosed.Name
			if name == "account deleted" {
				want = &ErrInvitationInvalid.Name
			}
			w.refuse(t, want, "mia", "acceptInvitation", map[string]any{"token": asAdmin})
			if c.as == "" {
				w.refuse(t, want, "max", "acceptInvitation", map[string]any{"token": asMember})
			} else {
				w.must(t, "max", "acceptInvitation", map[string]any{"token": asMember})
			}
		})
	}
}

func TestReplacement(t *testing.T) {
	w := open(t, nil)
	w.people(t, "olga", "ada", "mia")
	team := w.found(t, "olga", map[string]string{"ada": Admin})
	_, first := w.invited(t, "ada", team, "mia@example.test", Member)
	_, second := w.invited(t, "olga", team, "MIA@example.test", Admin)
	w.refuse(t, &ErrInvitationClosed.Name, "mia", "acceptInvitation", map[string]any{"token": first})
	w.refuse(t, &ErrRole.Name, "ada", "invite", map[string]any{"team": team, "email": "mia@example.test"}) // it would take an owner's back
	w.must(t, "mia", "acceptInvitation", map[string]any{"token": second})

	// A removed member does not come back by an invitation that waits.
	id, _ := w.invited(t, "olga", team, "mia@example.test", Member)
	w.must(t, "olga", "removeMember", map[string]any{"member": w.member(t, team, "mia")})
	w.refuse(t, &ErrInvitationClosed.Name, "mia", "acceptInvitation", map[string]any{"invitation": id})
}

// Whether the address has an account, even one in the team, cannot be told from the answer or from what is mailed.
func TestAnswersAreEqual(t *testing.T) {
	w := open(t, nil)
	w.people(t, "olga", "mia", "max")
	team := w.found(t, "olga", map[string]string{"mia": Member})
	var shapes []string
	for _, email := range []string{"mia@example.test", "max@example.test", "nobody@example.test"} {
		got := w.call(t, "olga", "invite", map[string]any{"team": team, "email": email})
		data, _ := got.JSON(t)["data"].(map[string]any)
		id, _ := data["id"].(string)
		m := w.mail(t)
		shape := jsonOf(t, data) + m.Text
		for _, part := range []string{email, id, tokenIn(t, m)} {
			shape = strings.ReplaceAll(shape, part, "·")
		}
		expires, _ := data["expiresAt"].(string)
		shapes = append(shapes, http.StatusText(got.Status)+strings.ReplaceAll(shape, expires, "·"))
	}
	if shapes[0] != shapes[1] || shapes[1] != shapes[2] {
		t.Errorf("answers differ:\n%s", strings.Join(shapes, "\n"))
	}
}

func TestMailLimits(t *testing.T) {
	setUp := func(t *testing.T, perHour int) (*world, string) {
		w := open(t, func(cfg *Config, _ *Deps) { cfg.MailsPerHour, cfg.MaxPending = perHour, 1000 })
		w.people(t, "olga", "ada")
		return w, w.found(t, "olga", map[string]string{"ada": Admin})
	}
	address := func(i int) string { return strings.Repeat("x", i+1) + "@example.test" }
	limited := func(t *testing.T, w *world, who, team, email string, wait string) {
		t.Helper()
		got := w.call(t, who, "invite", map[string]any{"team": team, "email": email})
		if got.Code() != ErrMailLimit.Name || got.Header.Get("Retry-After") != wait {
			t.Errorf("%s: %d %s, Retry-After %q", email, got.Status, got.Body, got.Header.Get("Retry-After"))
		}
	}
	t.Run("server", func(t *testing.T) {
		w, team := setUp(t, 2)
		w.invited(t, "olga", team, address(0), Member)
		w.invited(t, "ada", team, address(1), Member)
		limited(t, w, "olga", team, address(2), "3600")
		if n, err := w.CountRecords(invitationsCollection); err != nil || n != 2 {
			t.Errorf("%d invitations (%v)", n, err)
		}
		w.wait(time.Hour)
		w.invited(t, "olga", team, address(2), Member)
	})
	t.Run("inviter", func(t *testing.T) {
		w, team := setUp(t, 1000)
		for i := range mailsPerInviter {
			w.invited(t, "ada", team, address(i), Member)
		}
		limited(t, w, "ada", team, "one@example.test", "3600")
		w.invited(t, "olga", team, "one@example.test", Member)
	})
	t.Run("address", func(t *testing.T) {
		w, team := setUp(t, 1000)
		other := w.found(t, "ada", nil)
		id, _ := w.invited(t, "olga", team, address(0), Member)
		w.must(t, "olga", "resendInvitation", map[string]any{"invitation": id})
		w.mail(t)
		w.invited(t, "ada", other, strings.ToUpper(address(0)), Member)
		limited(t, w, "ada", other, address(0), "86400")
		w.must(t, "ada", "invite", map[string]any{"team": other}) // a link is no mail
	})
	t.Run("unverified", func(t *testing.T) {
		w, team := setUp(t, 1000)
		user, err := w.FindRecordById("users", w.ids["ada"])
		if err != nil {
			t.Fatal(err)
		}
		user.SetVerified(false)
		if err := w.Save(user); err != nil {
			t.Fatal(err)
		}
		w.refuse(t, &ErrUnverified.Name, "ada", "invite", map[string]any{"team": team, "email": address(0)})
		w.must(t, "ada", "invite", map[string]any{"team": team})
	})
}

// Names are text in mails, whatever users put into them.
func TestMailEscapes(t *testing.T) {
	w := open(t, nil)
	w.people(t, "olga")
	user, err := w.FindRecordById("users", w.ids["olga"])
	if err != nil {
		t.Fatal(err)
	}
	user.Set("name", "Olga\r\nBcc: victim@example.test")
	if err := w.Save(user); err != nil {
		t.Fatal(err)
	}
	meta := w.Settings()
	meta.Meta.AppName = "A & B"
	if err := w.Save(meta); err != nil {
		t.Fatal(err)
	}
	team, _ := w.must(t, "olga", "create", map[string]any{"name": `<a href="x">Win</a>`})["id"].(string)
	w.invited(t, "olga", team, "new@example.test", Member)
	m := w.mails[0]
	if strings.ContainsAny(m.Subject, "\r\n") || strings.Contains(m.HTML, `<a href="x">`) || !strings.Contains(m.HTML, "&lt;a href") || strings.Contains(m.HTML, "A & B") {
		t.Errorf("mail: %q\n%s", m.Subject, m.HTML)
	}
	if strings.Contains(m.HTML, "victim@example.test") { // an address is a website to mail programs
		t.Errorf("mail: %s", m.HTML)
	}
	for text, want := range map[string]string{
		"Team": "Team", "a\r\nb": "a b", "": "-", "Buy at evil.example": "-", "https://x": "-", "www.x": "-", "Dr. No": "Dr. No", "v2.0": "v2.0",
		strings.Repeat("ä", 100): strings.Repeat("ä", 80), "👨‍👩‍👧": "👨‍👩‍👧",
	} {
		if got := plain(text, "-"); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
}

func TestOwnMessage(t *testing.T) {
	w := open(t, func(_ *Config, deps *Deps) {
		deps.Message = func(m Mail) Text {
			return Text{Subject: "Komm zu\r\n" + m.Team, Plain: m.Inviter + " " + m.Role + " " + m.Link + "\n"}
		}
	})
	w.people(t, "olga")
	team := w.found(t, "olga", nil)
	w.invited(t, "olga", team, "new@example.test", "viewer")
	if m := w.mails[0]; m.Subject != "Komm zu Team of olga" || !strings.HasPrefix(m.Text, "Olga viewer https://") {
		t.Errorf("mail: %+v", m)
	}
}

// However many ask at once, one membership comes of a token, and one account is in a team once.
func TestParallelAccepts(t *testing.T) {
	w := open(t, nil)
	names := []string{"mia", "max", "mei", "moe"}
	w.people(t, append(names, "olga")...)
	team := w.found(t, "olga", nil)
	_, one := w.linked(t, "olga", team, Member)
	_, other := w.linked(t, "olga", team, Member)
	var mu sync.Mutex
	codes := map[string]int{}
	race := func(token string, who ...string) {
		var all sync.WaitGroup
		for _, name := range who {
			all.Go(func() {
				got := w.call(t, name, "acceptInvitation", map[string]any{"token": token})
				mu.Lock()
				defer mu.Unlock()
				codes[got.Code()]++
			})
		}
		all.Wait()
	}
	race(one, names...)
	if codes[""] != 1 || codes[ErrInvitationClosed.Name] != 3 {
		t.Errorf("one token, four people: %v", codes)
	}
	clear(codes)
	var winner string
	for _, name := range names {
		if strings.Contains(w.roles(t, team), name) {
			winner = name
		}
	}
	race(other, winner, winner)
	if codes[ErrAlreadyMember.Name] != 2 {
		t.Errorf("somebody who is in: %v", codes)
	}
	if n, err := count(w.App, membersCollection, dbx.HashExp{"team": team}); err != nil || n != 2 {
		t.Errorf("%d members (%v)", n, err)
	}
}

func TestGuessesAreBounded(t *testing.T) {
	w := open(t, nil)
	in := map[string]any{"token": strings.Repeat("x", tokenLength)}
	for range tries {
		w.refuse(t, &ErrInvitationInvalid.Name, "guest", "previewInvitation", in)
	}
	if got := w.call(t, "guest", "previewInvitation", in); got.Status != http.StatusTooManyRequests {
		t.Errorf("one too many: %d %s", got.Status, got.Body)
	}
}

func TestSweep(t *testing.T) {
	w := open(t, nil)
	w.people(t, "olga")
	team := w.found(t, "olga", nil)
	old, token := w.invited(t, "olga", team, "old@example.test", Member)
	w.wait(w.cfg.Lifetime + closed + time.Second)
	young, _ := w.linked(t, "olga", team, Member)
	if err := w.sweep(t.Context(), w.App); err != nil {
		t.Fatal(err)
	}
	if _, err := w.FindRecordById(invitationsCollection, old); err == nil {
		t.Error("the old one is left")
	}
	if _, err := w.FindRecordById(invitationsCollection, young); err != nil {
		t.Errorf("the young one is gone: %v", err)
	}
	w.refuse(t, &ErrInvitationInvalid.Name, "guest", "previewInvitation", map[string]any{"token": token})
	if n, err := count(w.App, mailsTable, nil); err != nil || n != 0 {
		t.Errorf("%d marks of mails (%v)", n, err)
	}
}

// A mail that cannot be sent leaves the invitation, and says so in the log alone.
func TestMailFails(t *testing.T) {
	w := open(t, nil)
	w.people(t, "olga")
	team := w.found(t, "olga", nil)
	tried := make(chan struct{}, 1)
	w.OnMailerSend().Bind(&hook.Handler[*core.MailerEvent]{Id: "broken", Priority: -1, Func: func(*core.MailerEvent) error {
		tried <- struct{}{}
		return api.ErrInternal
	}})
	id, _ := w.must(t, "olga", "invite", map[string]any{"team": team, "email": "new@example.test"})["id"].(string)
	<-tried
	w.OnMailerSend().Unbind("broken")
	w.must(t, "olga", "resendInvitation", map[string]any{"invitation": id})
	tokenIn(t, w.mail(t))
}
