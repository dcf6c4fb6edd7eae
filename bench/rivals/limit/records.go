package main

import (
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"encoding/json/jsontext"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

const (
	userColumns = "avatar,created,email,emailVisibility,id,name,updated,verified"
	dateFormat  = "2006-01-02 15:04:05.000Z"
)

// shape is how the rows of a table become JSON.
type shape struct {
	head    string
	columns []string
	kinds   map[string]kind // of the columns that are not text
}

type kind int

const (
	text    kind = iota
	rawJSON      // JSON already
	boolean      // 0 or 1
)

func noteShape() shape {
	return shape{`{"collectionId":"notes0000benche","collectionName":"bench_notes"`, strings.Split(noteColumns, ","), map[string]kind{"meta": rawJSON}}
}

func messageShape() shape {
	return shape{`{"collectionId":"message00benche","collectionName":"message"`, strings.Split(messageColumns, ","), nil}
}

func userShape() shape {
	return shape{
		`{"collectionId":"_pb_users_auth_","collectionName":"users"`, strings.Split(userColumns, ","),
		map[string]kind{"emailVisibility": boolean, "verified": boolean},
	}
}

// appendRow appends one record.
func (s shape) appendRow(b []byte, values []sql.RawBytes) ([]byte, error) {
	b = append(b, s.head...)
	for i, column := range s.columns {
		b = append(b, ',', '"')
		b = append(b, column...)
		b = append(b, '"', ':')
		var err error
		switch s.kinds[column] {
		case text:
			b, err = jsontext.AppendQuote(b, values[i])
		case boolean:
			b = strconv.AppendBool(b, string(values[i]) == "1")
		case rawJSON:
			if len(values[i]) == 0 {
				b = append(b, "null"...)
			}
			b = append(b, values[i]...)
		}
		if err != nil {
			return nil, fmt.Errorf("write column %s: %w", column, err)
		}
	}
	return append(b, '}'), nil
}

// appendRows appends what a query finds, with commas between, and returns how many there were.
func (s shape) appendRows(b []byte, rows *sql.Rows) ([]byte, int, error) {
	values, targets := make([]sql.RawBytes, len(s.columns)), make([]any, len(s.columns))
	for i := range values {
		targets[i] = &values[i]
	}
	n := 0
	for ; rows.Next(); n++ {
		if n > 0 {
			b = append(b, ',')
		}
		if err := rows.Scan(targets...); err != nil {
			return nil, 0, err
		}
		var err error
		if b, err = s.appendRow(b, values); err != nil {
			return nil, 0, err
		}
	}
	return b, n, rows.Err()
}

func (s *server) userRecord(id string) ([]byte, error) {
	rows, err := s.user.Query(id)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	record, n, err := userShape().appendRows(nil, rows)
	if err == nil && n == 0 {
		err = sql.ErrNoRows
	}
	return record, err
}

func (s *server) view(w http.ResponseWriter, r *http.Request, user string) {
	rows, err := s.note.Query(r.PathValue("id"), user)
	if err != nil {
		fail(w, err)
		return
	}
	defer rows.Close()
	s.pooled(w, func(b []byte) ([]byte, error) {
		b, n, err := noteShape().appendRows(b, rows)
		if err == nil && n == 0 {
			err = sql.ErrNoRows
		}
		return b, err
	})
}

// list answers 304 without a query while nobody has written: the tag is the number of writes and the reader.
func (s *server) list(w http.ResponseWriter, r *http.Request, user string) {
	tag := `"` + strconv.FormatInt(s.version.Load(), 10) + "-" + user + `"`
	w.Header().Set("ETag", tag)
	if r.Header.Get("If-None-Match") == tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	query := r.URL.Query()
	perPage, err := strconv.Atoi(query.Get("perPage"))
	if err != nil || perPage < 1 {
		perPage = 30
	}
	total, pages := -1, -1
	if query.Get("skipTotal") == "" {
		if err := s.count.QueryRow(user).Scan(&total); err != nil {
			fail(w, err)
			return
		}
		pages = (total + perPage - 1) / perPage
	}
	rows, err := s.notes.Query(user, perPage)
	if err != nil {
		fail(w, err)
		return
	}
	defer rows.Close()
	s.pooled(w, func(b []byte) ([]byte, error) {
		b, _, err := noteShape().appendRows(append(b, `{"items":[`...), rows)
		return fmt.Appendf(b, `],"page":1,"perPage":%d,"totalItems":%d,"totalPages":%d}`, perPage, total, pages), err
	})
}

// pooled sends what fn appends to a buffer that is used again.
func (s *server) pooled(w http.ResponseWriter, fn func([]byte) ([]byte, error)) {
	p, ok := s.buffers.Get().(*[]byte)
	if !ok {
		p = new([]byte)
	}
	defer s.buffers.Put(p)
	b, err := fn((*p)[:0])
	switch {
	case errors.Is(err, sql.ErrNoRows):
		http.Error(w, `{"status":404}`, http.StatusNotFound)
	case err != nil:
		fail(w, err)
	default:
		*p = b
		send(w, b)
	}
}

// note is what a client sends.
type note struct {
	Owner, Title, Body, Status string
	Meta                       json.RawMessage
}

func (n note) valid(user string) bool {
	return n.Owner == user && n.Title != "" && len(n.Title) <= 200 && len(n.Body) <= 20_000 &&
		(n.Status == "" || n.Status == "open" || n.Status == "done" || n.Status == "archived")
}

// insert writes one note and appends it to b as it is answered.
func (n note) insert(b []byte, stmt *sql.Stmt) ([]byte, error) {
	id, now := newID(), time.Now().UTC().Format(dateFormat)
	if _, err := stmt.Exec("", n.Body, now, id, string(n.Meta), n.Owner, n.Status, n.Title, now); err != nil {
		return nil, err
	}
	return noteShape().appendRow(b, []sql.RawBytes{
		nil, sql.RawBytes(n.Body), sql.RawBytes(now), sql.RawBytes(id), sql.RawBytes(n.Meta), sql.RawBytes(n.Owner), sql.RawBytes(n.Status),
		sql.RawBytes(n.Title), sql.RawBytes(now),
	})
}

func (s *server) create(w http.ResponseWriter, r *http.Request, user string) {
	var n note
	if err := decode(r, &n); err != nil {
		refuse(w, err)
		return
	}
	if !n.valid(user) {
		refuse(w, errInvalid)
		return
	}
	record, err := n.insert(nil, s.insertNote)
	if err != nil {
		fail(w, err)
		return
	}
	s.version.Add(1)
	send(w, record)
}

// batch inserts all notes in one transaction.
func (s *server) batch(w http.ResponseWriter, r *http.Request, user string) {
	var body struct {
		Requests []struct{ Body note }
	}
	if err := decode(r, &body); err != nil {
		refuse(w, err)
		return
	}
	for _, item := range body.Requests {
		if !item.Body.valid(user) {
			refuse(w, errInvalid)
			return
		}
	}
	tx, err := s.writer.Begin()
	if err != nil {
		fail(w, err)
		return
	}
	defer func() { _ = tx.Rollback() }() // without effect after the commit
	insert := tx.Stmt(s.insertNote)
	answer := []byte{'['}
	for i, item := range body.Requests {
		if i > 0 {
			answer = append(answer, ',')
		}
		if answer, err = item.Body.insert(append(answer, `{"status":200,"body":`...), insert); err != nil {
			fail(w, err)
			return
		}
		answer = append(answer, '}')
	}
	if err := tx.Commit(); err != nil {
		fail(w, err)
		return
	}
	s.version.Add(1)
	send(w, append(answer, ']'))
}

func (s *server) createMessage(w http.ResponseWriter, r *http.Request, user string) {
	var m struct{ Owner, Room, Data string }
	if err := decode(r, &m); err != nil {
		refuse(w, err)
		return
	}
	var one int
	if err := s.isMember.QueryRow(m.Room, user).Scan(&one); err != nil || m.Owner != user {
		refuse(w, errInvalid)
		return
	}
	id, now := newID(), time.Now().UTC().Format(dateFormat)
	if _, err := s.insertMessage.Exec(now, m.Data, id, user, m.Room, now); err != nil {
		fail(w, err)
		return
	}
	s.version.Add(1)
	record, err := messageShape().appendRow(nil, []sql.RawBytes{
		sql.RawBytes(now), sql.RawBytes(m.Data), sql.RawBytes(id), sql.RawBytes(user), sql.RawBytes(m.Room), sql.RawBytes(now),
	})
	if err != nil {
		fail(w, err)
		return
	}
	s.hub.publish(record)
	send(w, record)
}

var errInvalid = errors.New("the record is not valid, or not yours to write")

func decode(r *http.Request, v any) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	return json.Unmarshal(body, v)
}

// newID is a record id of PocketBase's form.
func newID() string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	b := make([]byte, 15)
	_, _ = rand.Read(b) // never fails
	for i := range b {
		b[i] = letters[int(b[i])%len(letters)]
	}
	return string(b)
}
