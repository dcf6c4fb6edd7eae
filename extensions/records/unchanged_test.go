package records

import (
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/apptest"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

// shelf is an application over the real store with books, readable by the members of their club.
type shelf struct {
	*apptest.App
	ada, bob     *core.Record
	adaT, bobT   string
	club, member *core.Record
	book         *core.Record
}

func newShelf(t *testing.T) *shelf {
	t.Helper()
	db, err := store.Open(settings.Defaults[store.Config](), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s := &shelf{App: apptest.Open(t, db.Connect, api.New(settings.Defaults[api.Config]()), store.New(db), New(settings.Defaults[Config](), db))}
	s.ada, s.adaT = s.User(t, "ada@example.test")
	s.bob, s.bobT = s.User(t, "bob@example.test")
	clubs := core.NewBaseCollection("clubs")
	clubs.Fields.Add(&core.TextField{Name: "name"})
	s.save(t, clubs)
	members := core.NewBaseCollection("members")
	members.Fields.Add(&core.RelationField{Name: "club", CollectionId: clubs.Id, MaxSelect: 1}, &core.RelationField{Name: "user", CollectionId: s.ada.Collection().Id, MaxSelect: 1})
	s.save(t, members)
	books := core.NewBaseCollection("books")
	books.Fields.Add(&core.RelationField{Name: "club", CollectionId: clubs.Id, MaxSelect: 1}, &core.TextField{Name: "title"}, &core.DateField{Name: "due"})
	rule := "club.members_via_club.user ?= @request.auth.id"
	books.ListRule, books.ViewRule = &rule, &rule
	s.save(t, books)
	s.club = core.NewRecord(clubs)
	s.save(t, s.club)
	s.member = core.NewRecord(members)
	s.member.Set("club", s.club.Id)
	s.member.Set("user", s.ada.Id)
	s.save(t, s.member)
	s.book = core.NewRecord(books)
	s.book.Set("club", s.club.Id)
	s.book.Set("title", "Emma")
	s.save(t, s.book)
	return s
}

func (s *shelf) save(t *testing.T, m core.Model) {
	t.Helper()
	if err := s.Save(m); err != nil {
		t.Fatal(err)
	}
}

// get asks with a validator and returns the status, the validator and the body.
func (s *shelf) get(t *testing.T, path, token, etag string) (int, string, string) {
	t.Helper()
	r := s.Do(t, apptest.Request{Path: path, Token: token, Header: map[string]string{"If-None-Match": etag}})
	return r.Status, r.Header.Get("ETag"), string(r.Body)
}

// warm asks until the answer is labelled, which the first one is not.
func (s *shelf) warm(t *testing.T, path, token string) string {
	t.Helper()
	var etag string
	for range 2 {
		status, tag, body := s.get(t, path, token, "")
		if status != 200 {
			t.Fatalf("%s: %d %s", path, status, body)
		}
		etag = tag
	}
	if !strings.Contains(etag, ".") {
		t.Fatalf("%s: the validator %s has no label", path, etag)
	}
	return etag
}

// Every change, made in any way, is seen by the next conditional request.
func TestUnchanged(t *testing.T) {
	sql := func(text string) func(*testing.T, *shelf) {
		return func(t *testing.T, s *shelf) {
			t.Helper()
			if _, err := s.NonconcurrentDB().NewQuery(text).Execute(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		change func(t *testing.T, s *shelf)
		status int // of the list afterwards, asked with the old validator
		has    bool
	}{
		"nothing":                      {func(*testing.T, *shelf) {}, 304, false},
		"the record":                   {func(t *testing.T, s *shelf) { s.book.Set("title", "Persuasion"); s.save(t, s.book) }, 200, true},
		"the record, by SQL":           {sql("UPDATE books SET title = 'Persuasion'"), 200, true},
		"the membership":               {func(t *testing.T, s *shelf) { s.member.Set("user", s.bob.Id); s.save(t, s.member) }, 200, false},
		"the membership, by SQL":       {sql("DELETE FROM members"), 200, false},
		"an unrelated record":          {func(t *testing.T, s *shelf) { s.bob.Set("name", "Bob"); s.save(t, s.bob) }, 304, true},
		"a write that changes nothing": {sql("UPDATE books SET title = title"), 304, true},
		"the rule": {func(t *testing.T, s *shelf) {
			books, err := s.FindCollectionByNameOrId("books")
			if err != nil {
				t.Fatal(err)
			}
			none := "id = ''"
			books.ListRule = &none
			s.save(t, books)
		}, 200, false},
		"another process": {func(t *testing.T, s *shelf) {
			other, err := core.DefaultDBConnect(s.DataDir() + "/data.db")
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			if _, err := other.NewQuery("UPDATE books SET title = 'Persuasion'").Execute(); err != nil {
				t.Fatal(err)
			}
		}, 200, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t)
			const path = "/api/v1/records/books?limit=5"
			old := s.warm(t, path, s.adaT)
			c.change(t, s)
			status, etag, body := s.get(t, path, s.adaT, old)
			if status != c.status {
				t.Fatalf("status %d, want %d: %s", status, c.status, body)
			}
			if status == 200 && (strings.Contains(body, "Persuasion") || strings.Contains(body, "Emma")) != c.has {
				t.Errorf("answer %s", body)
			}
			if name == "nothing" && etag != old {
				t.Errorf("the validator became %s", etag)
			}
		})
	}
}

// A validator answers the question of the account it was given to, and no other.
func TestUnchangedIsPersonal(t *testing.T) {
	s := newShelf(t)
	const path = "/api/v1/records/books"
	etag := s.warm(t, path, s.adaT)
	for name, c := range map[string]struct{ path, token string }{
		"another account": {path, s.bobT},
		"a guest":         {path, ""},
		"other fields":    {path + "?fields=id", s.adaT},
		"another record":  {path + "/" + s.book.Id, s.adaT},
	} {
		if status, _, body := s.get(t, c.path, c.token, etag); status != 200 {
			t.Errorf("%s: status %d %s", name, status, body)
		}
	}
	view := path + "/" + s.book.Id
	one := s.warm(t, view, s.adaT)
	if status, _, _ := s.get(t, view, s.adaT, one); status != 304 {
		t.Errorf("view: status %d", status)
	}
	if status, _, _ := s.get(t, view, s.bobT, one); status != 404 {
		t.Errorf("view by another account: status %d", status)
	}
}

// What depends on the time, or on other parts of the request, is always asked again.
func TestUnchangedNeedsLastingConditions(t *testing.T) {
	for _, rule := range []string{
		"due > @now", "due >= @todayStart", "@request.headers.x_club = 'a'", "@request.query.club = 'a'", "strftime('%Y', due) = '2020'",
	} {
		s := newShelf(t)
		books, err := s.FindCollectionByNameOrId("books")
		if err != nil {
			t.Fatal(err)
		}
		books.ListRule = &rule
		s.save(t, books)
		for range 3 {
			if _, etag, _ := s.get(t, "/api/v1/records/books", s.adaT, ""); strings.Contains(etag, ".") {
				t.Errorf("%s: the validator %s has a label", rule, etag)
			}
		}
	}
	s := newShelf(t)
	for range 3 {
		if _, etag, _ := s.get(t, "/api/v1/records/books?filter=(due%3E@now)", s.adaT, ""); strings.Contains(etag, ".") {
			t.Errorf("a filter with the time: the validator %s has a label", etag)
		}
	}
}

// While somebody writes, a 304 is given only for what was true when the request began, or later.
func TestUnchangedUnderConcurrentWrites(t *testing.T) {
	s := newShelf(t)
	const path, writes = "/api/v1/records/books", 300
	s.warm(t, path, s.adaT)
	var written atomic.Int64
	done := make(chan error, 1)
	go func() {
		for i := range int64(writes) {
			if _, err := s.NonconcurrentDB().NewQuery("UPDATE books SET title = '" + strings.Repeat("#", int(i)+1) + "'").Execute(); err != nil {
				done <- err
				return
			}
			written.Store(i + 1)
			if i%10 == 0 {
				time.Sleep(5 * time.Millisecond) // so that some answers stay true for a while
			}
		}
		done <- nil
	}()
	spared := 0
	for {
		_, etag, held := s.get(t, path, s.adaT, "")
		atLeast := int(written.Load())
		status, _, body := s.get(t, path, s.adaT, etag)
		if status == 304 {
			spared++
			body = held
		}
		if strings.Count(body, "#") < atLeast {
			t.Fatalf("status %d: after %d writes the client has %s", status, atLeast, body)
		}
		select {
		case err := <-done:
			if err != nil || spared == 0 {
				t.Fatalf("%v, %d answers were spared", err, spared)
			}
			return
		default:
		}
	}
}
