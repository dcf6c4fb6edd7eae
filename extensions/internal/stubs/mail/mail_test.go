package mail_test

import (
	"bufio"
	"fmt"
	"net"
	netmail "net/mail"
	"net/smtp"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/tools/mailer"

	"github.com/satchelbase/satchel/extensions/internal/stubs/inbox"
	"github.com/satchelbase/satchel/extensions/internal/stubs/mail"
)

func start(t *testing.T) (*mail.Server, *inbox.Inbox) {
	t.Helper()
	box := &inbox.Inbox{}
	s, err := mail.Start("127.0.0.1:0", box)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, box
}

// PocketBase's own mailer delivers, with each of its ways to sign in.
func TestMailer(t *testing.T) {
	s, box := start(t)
	address := strings.Split(s.Address, ":")
	var port int
	if _, err := fmt.Sscan(address[1], &port); err != nil {
		t.Fatal(err)
	}
	for _, method := range []string{mailer.SMTPAuthPlain, mailer.SMTPAuthLogin} {
		client := &mailer.SMTPClient{Host: address[0], Port: port, Username: "user", Password: "password", AuthMethod: method}
		err := client.Send(&mailer.Message{
			From: netmail.Address{Name: "App", Address: "app@example.com"}, To: []netmail.Address{{Address: "ada@example.com"}},
			Subject: "Grüße " + method, HTML: "<p>Hello</p>", Text: "Hello",
		})
		if err != nil {
			t.Fatal(err)
		}
		list := box.List("mail")
		if last := list[len(list)-1]; last.Title != "Grüße "+method || last.To != "ada@example.com" || strings.TrimSpace(last.Text) != "Hello" || last.Headers["From"] != "app@example.com" {
			t.Errorf("%s: %+v", method, last)
		}
	}
}

func TestStandardLibrary(t *testing.T) {
	s, box := start(t)
	body := "Subject: Dots\r\n\r\n.\r\n..line\r\n"
	if err := smtp.SendMail(s.Address, nil, "a@example.com", []string{"b@example.com", "c@example.com"}, []byte(body)); err != nil {
		t.Fatal(err)
	}
	if last := box.List("mail")[0]; last.To != "b@example.com, c@example.com" || last.Text != ".\n..line\n" {
		t.Errorf("%+v", last)
	}
	if err := smtp.SendMail(s.Address, nil, "a@example.com", []string{"b@example.com"}, []byte("no headers at all")); err == nil {
		t.Error("a message without headers is taken")
	}
}

func TestCommands(t *testing.T) {
	s, _ := start(t)
	c, err := new(net.Dialer).DialContext(t.Context(), "tcp", s.Address)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	in := bufio.NewReader(c)
	read := func() string {
		line, err := in.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return line
	}
	read()
	for _, step := range [][2]string{
		{"HELO x", "250"},
		{"DATA", "503"},
		{"MAIL", "501"},
		{"MAIL FROM:<>", "250"},
		{"RCPT TO:<>", "501"},
		{"rcpt to:<a@b.example>", "250"},
		{"VRFY x", "502"},
		{"NOOP", "250"},
		{"RSET", "250"},
		{"DATA", "503"},
		{"QUIT", "221"},
	} {
		if _, err := fmt.Fprintf(c, "%s\r\n", step[0]); err != nil {
			t.Fatal(err)
		}
		if line := read(); !strings.HasPrefix(line, step[1]) {
			t.Errorf("%s: %s", step[0], line)
		}
	}
	if _, err := in.ReadString('\n'); err == nil {
		t.Error("the session goes on after QUIT")
	}
}
