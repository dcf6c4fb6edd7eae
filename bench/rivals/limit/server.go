package main

import (
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
)

const (
	noteColumns    = "attachment,body,created,id,meta,owner,status,title,updated"
	messageColumns = "created,data,id,owner,room,updated"
)

// authMethods is what PocketBase answers for the collection users as the benchmark has it.
const authMethods = `{"password":{"identityFields":["email"],"enabled":true},"oauth2":{"providers":[],"enabled":false},` +
	`"mfa":{"enabled":false,"duration":0},"otp":{"enabled":false,"duration":0},"authProviders":[],"usernamePassword":false,"emailPassword":true}`

// server answers all routes. It is safe for concurrent use.
type server struct {
	writer                                          *sql.DB
	note, notes, count, user, userByEmail, isMember *sql.Stmt
	insertNote, insertMessage                       *sql.Stmt

	mu     sync.RWMutex
	tokens map[string]string // token -> user id

	version atomic.Int64
	buffers sync.Pool // of *[]byte
	hub     hub
}

func newServer(reader, writer *sql.DB) (*server, error) {
	s := &server{writer: writer, tokens: map[string]string{}, hub: hub{clients: map[string]*client{}}}
	for _, p := range []struct {
		stmt **sql.Stmt
		db   *sql.DB
		sql  string
	}{
		{&s.note, reader, "select " + noteColumns + " from bench_notes where id=? and owner=?"},
		{&s.notes, reader, "select " + noteColumns + " from bench_notes where owner=? order by updated desc limit ?"},
		{&s.count, reader, "select count(*) from bench_notes where owner=?"},
		{&s.user, reader, "select " + userColumns + " from users where id=?"},
		{&s.userByEmail, reader, "select id from users where email=?"},
		{&s.isMember, reader, "select 1 from room_members where room=? and user=?"},
		{&s.insertNote, writer, "insert into bench_notes(" + noteColumns + ") values(?,?,?,?,?,?,?,?,?)"},
		{&s.insertMessage, writer, "insert into message(" + messageColumns + ") values(?,?,?,?,?,?)"},
	} {
		var err error
		if *p.stmt, err = p.db.Prepare(p.sql); err != nil {
			return nil, fmt.Errorf("prepare %q: %w", p.sql, err)
		}
	}
	return s, nil
}

// routes are PocketBase's, as far as the benchmark uses them.
func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /api/health", func(w http.ResponseWriter, _ *http.Request) { send(w, []byte("{}")) })
	mux.HandleFunc("POST /api/collections/users/auth-with-password", s.signIn)
	mux.HandleFunc("GET /api/collections/users/auth-methods", s.signedIn(func(w http.ResponseWriter, _ *http.Request, _ string) {
		send(w, []byte(authMethods))
	}))
	mux.HandleFunc("POST /api/collections/users/auth-refresh", s.signedIn(s.refresh))
	mux.HandleFunc("GET /api/collections/bench_notes/records", s.signedIn(s.list))
	mux.HandleFunc("GET /api/collections/bench_notes/records/{id}", s.signedIn(s.view))
	mux.HandleFunc("POST /api/collections/bench_notes/records", s.signedIn(s.create))
	mux.HandleFunc("POST /api/collections/message/records", s.signedIn(s.createMessage))
	mux.HandleFunc("POST /api/batch", s.signedIn(s.batch))
	mux.HandleFunc("GET /api/realtime", s.subscribe)
	mux.HandleFunc("POST /api/realtime", s.signedIn(s.setSubscriptions))
	return mux
}

// signedIn looks the token up.
func (s *server) signedIn(next func(w http.ResponseWriter, r *http.Request, user string)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		s.mu.RLock()
		user, ok := s.tokens[r.Header.Get("Authorization")]
		s.mu.RUnlock()
		if !ok {
			http.Error(w, `{"status":401}`, http.StatusUnauthorized)
			return
		}
		next(w, r, user)
	}
}

// signIn believes every password: what a hash costs is known and is not what this program shows.
func (s *server) signIn(w http.ResponseWriter, r *http.Request) {
	var body struct{ Identity string }
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		refuse(w, err)
		return
	}
	var id string
	if err := s.userByEmail.QueryRow(body.Identity).Scan(&id); err != nil {
		refuse(w, err)
		return
	}
	s.sendToken(w, id)
}

func (s *server) refresh(w http.ResponseWriter, _ *http.Request, user string) { s.sendToken(w, user) }

func (s *server) sendToken(w http.ResponseWriter, user string) {
	token := rand.Text()
	s.mu.Lock()
	s.tokens[token] = user
	s.mu.Unlock()
	record, err := s.userRecord(user)
	if err != nil {
		fail(w, err)
		return
	}
	send(w, fmt.Appendf(nil, `{"record":%s,"token":%q}`, record, token))
}

func send(w http.ResponseWriter, body []byte) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	_, _ = w.Write(body) // the client is gone; nobody is left to tell
}

func fail(w http.ResponseWriter, err error) {
	http.Error(w, err.Error(), http.StatusInternalServerError)
}

func refuse(w http.ResponseWriter, err error) { http.Error(w, err.Error(), http.StatusBadRequest) }
