// Package mail is a mail server on loopback that delivers nothing and remembers everything: enough of RFC 5321 for the
// mailers of applications. It serves tests and `satchel dev stubs`.
package mail

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net"
	netmail "net/mail"
	"net/textproto"
	"strings"
	"sync"
	"time"

	"github.com/satchelbase/satchel/extensions/internal/stubs/inbox"
	"github.com/satchelbase/satchel/extensions/internal/stubs/loopback"
)

const (
	maxLine       = 4096     // more than the 1000 of RFC 5321 section 4.5.3.1.6, because bodies come longer
	maxMessage    = 16 << 20 // bytes
	maxRecipients = 100
	maxSessions   = 64
	patience      = time.Minute // between two lines
)

// Server is the running mail server. It is safe for concurrent use.
type Server struct {
	// Address is host and port.
	Address string

	inbox    *inbox.Inbox
	listener net.Listener
	slots    chan struct{}

	mu   sync.Mutex
	open map[net.Conn]struct{}
}

// Start listens on a loopback address.
func Start(address string, box *inbox.Inbox) (*Server, error) {
	listener, err := loopback.Listen(address)
	if err != nil {
		return nil, err
	}
	s := &Server{Address: listener.Addr().String(), inbox: box, listener: listener, slots: make(chan struct{}, maxSessions), open: map[net.Conn]struct{}{}}
	go s.accept()
	return s, nil
}

// Close ends the server and its sessions.
func (s *Server) Close() error {
	err := s.listener.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.open {
		_ = c.Close()
	}
	return err
}

func (s *Server) accept() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.slots <- struct{}{}
		s.mu.Lock()
		s.open[c] = struct{}{}
		s.mu.Unlock()
		go func() {
			defer func() {
				_ = c.Close()
				s.mu.Lock()
				delete(s.open, c)
				s.mu.Unlock()
				<-s.slots
			}()
			(&session{Conn: c, in: bufio.NewReaderSize(c, maxLine), inbox: s.inbox}).run()
		}()
	}
}

// session is one connection.
type session struct {
	net.Conn

	in    *bufio.Reader
	inbox *inbox.Inbox
	from  string
	to    []string
}

func (s *session) say(code int, text string) bool {
	_, err := fmt.Fprintf(s.Conn, "%d %s\r\n", code, text)
	return err == nil
}

// line reads a line without its end. An error ends the session.
func (s *session) line() (string, error) {
	if err := s.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	raw, err := s.in.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	return strings.TrimRight(string(raw), "\r\n"), nil
}

func (s *session) run() {
	if !s.say(220, "satchel mail catcher") {
		return
	}
	for {
		text, err := s.line()
		if err != nil {
			return
		}
		verb, rest, _ := strings.Cut(text, " ")
		if !s.command(strings.ToUpper(verb), rest) {
			return
		}
	}
}

// command does what one line says and reports whether the session goes on.
func (s *session) command(verb, rest string) bool {
	switch verb {
	case "EHLO":
		_, err := fmt.Fprintf(s.Conn, "250-localhost\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250-SIZE %d\r\n250 AUTH PLAIN LOGIN\r\n", maxMessage)
		return err == nil
	case "HELO":
		return s.say(250, "localhost")
	case "AUTH":
		return s.auth(rest)
	case "MAIL":
		address, ok := path(rest, "FROM:")
		if !ok {
			return s.say(501, "MAIL FROM:<address> is expected")
		}
		s.from, s.to = address, nil
		return s.say(250, "ok")
	case "RCPT":
		address, ok := path(rest, "TO:")
		if !ok || address == "" || len(s.to) == maxRecipients {
			return s.say(501, "RCPT TO:<address> is expected, at most 100 times")
		}
		s.to = append(s.to, address)
		return s.say(250, "ok")
	case "DATA":
		if len(s.to) == 0 {
			return s.say(503, "RCPT comes first")
		}
		return s.data()
	case "RSET", "NOOP":
		if verb == "RSET" {
			s.from, s.to = "", nil
		}
		return s.say(250, "ok")
	case "QUIT":
		s.say(221, "bye")
		return false
	}
	return s.say(502, "the command is not known")
}

// auth accepts anybody.
func (s *session) auth(rest string) bool {
	kind, initial, given := strings.Cut(rest, " ")
	questions := []string{""}
	if strings.EqualFold(kind, "LOGIN") {
		questions = []string{"VXNlcm5hbWU6", "UGFzc3dvcmQ6"} // "Username:" and "Password:"
	}
	if given && initial != "" {
		questions = questions[1:]
	}
	for _, q := range questions {
		if !s.say(334, q) {
			return false
		}
		if _, err := s.line(); err != nil {
			return false
		}
	}
	return s.say(235, "welcome")
}

// path reads "FROM:<a@b> SIZE=1".
func path(text, prefix string) (string, bool) {
	if len(text) < len(prefix) || !strings.EqualFold(text[:len(prefix)], prefix) {
		return "", false
	}
	address, _, found := strings.Cut(strings.TrimPrefix(strings.TrimSpace(text[len(prefix):]), "<"), ">")
	return address, found
}

// data reads the message up to the lonely dot.
func (s *session) data() bool {
	if !s.say(354, "end with a dot on a line of its own") {
		return false
	}
	raw, err := io.ReadAll(io.LimitReader(textproto.NewReader(s.in).DotReader(), maxMessage+1))
	if err != nil {
		return false
	}
	if len(raw) > maxMessage {
		s.say(552, "the message is too large")
		return false // the rest of it would be read as commands
	}
	status, reason := 250, ""
	a := inbox.Arrival{Provider: "mail", To: strings.Join(s.to, ", "), Body: string(raw), Headers: map[string]string{"From": s.from}}
	if m, err := netmail.ReadMessage(bytes.NewReader(raw)); err != nil {
		status, reason = 554, "the message has no headers: "+err.Error()
	} else {
		a.Title, a.Text = decoded(m.Header.Get("Subject")), text(textproto.MIMEHeader(m.Header), m.Body)
	}
	a.Status, a.Reason = status, reason
	s.inbox.Add(a)
	s.from, s.to = "", nil
	if reason != "" {
		return s.say(status, reason)
	}
	return s.say(250, "kept")
}

func decoded(header string) string {
	if plain, err := new(mime.WordDecoder).DecodeHeader(header); err == nil {
		return plain
	}
	return header
}

// text finds the part that a person reads without HTML.
func text(h textproto.MIMEHeader, body io.Reader) string {
	kind, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	if err == nil && strings.HasPrefix(kind, "multipart/") {
		parts := multipart.NewReader(body, params["boundary"])
		for {
			part, err := parts.NextPart()
			if err != nil {
				return ""
			}
			if found := text(part.Header, part); found != "" {
				return found
			}
		}
	}
	if err == nil && kind != "text/plain" {
		return ""
	}
	if strings.EqualFold(h.Get("Content-Transfer-Encoding"), "quoted-printable") {
		body = quotedprintable.NewReader(body)
	}
	raw, err := io.ReadAll(body)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return ""
	}
	return string(raw)
}
