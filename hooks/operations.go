package hooks

import (
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/tools/types"

	"github.com/satchelbase/satchel/extensions/operations"
)

// Operations are what this app's clients may ask the server to do. They are the model for your own: the types say what
// goes in and what comes out, the server does the rest.
func Operations() []operations.Operation {
	return []operations.Operation{
		operations.Define(operations.Spec[clearDone, cleared]{
			Name:    "notes.clearDone",
			Summary: "Delete the caller's notes that are done and have not changed since a moment",
			Callers: operations.Callers{Collections: []string{"users"}},
			Limit:   operations.Limit{Count: 30, Per: time.Hour},
			Audit:   []string{"before"},
			Do:      clearDoneNotes,
		}),
		operations.Define(operations.Spec[struct{}, overview]{
			Name:    "notes.overview",
			Summary: "Count the caller's notes and show the latest: one request for a home screen",
			Read:    true,
			Callers: operations.Callers{Collections: []string{"users"}},
			Do:      notesOverview,
		}),
	}
}

type clearDone struct {
	Before time.Time `json:"before" description:"notes that changed later are kept: the phone has not shown them yet"`
}

type cleared struct {
	Deleted int `json:"deleted"`
}

// maxCleared bounds one transaction, which holds the only writer. The client calls again while Deleted is that many.
const maxCleared = 200

func clearDoneNotes(c *operations.Call, in clearDone) (cleared, error) {
	before, err := types.ParseDateTime(in.Before) // the form in which records keep times
	if err != nil {
		return cleared{}, fmt.Errorf("convert time: %w", err)
	}
	notes, err := c.App.FindRecordsByFilter("notes", "owner = {:owner} && done = true && updated <= {:before}", "updated", maxCleared, 0,
		dbx.Params{"owner": c.Auth.Id, "before": before.String()})
	if err != nil {
		return cleared{}, fmt.Errorf("find notes that are done: %w", err)
	}
	for _, note := range notes {
		if err := c.App.Delete(note); err != nil {
			return cleared{}, fmt.Errorf("delete note %s: %w", note.Id, err)
		}
	}
	c.Detail("deleted", len(notes))
	return cleared{Deleted: len(notes)}, nil
}

type overview struct {
	Open   int       `json:"open"`
	Done   int       `json:"done"`
	Latest []heading `json:"latest"`
}

type heading struct {
	ID    string `json:"id" db:"id"`
	Title string `json:"title" db:"title"`
}

func notesOverview(c *operations.Call, _ struct{}) (overview, error) {
	own := dbx.HashExp{"owner": c.Auth.Id}
	var out overview
	counts := c.App.DB().Select("COALESCE(SUM(NOT done), 0)", "COALESCE(SUM(done), 0)").From("notes").Where(own)
	if err := counts.WithContext(c.Context()).Row(&out.Open, &out.Done); err != nil {
		return overview{}, fmt.Errorf("count notes: %w", err)
	}
	out.Latest = []heading{}
	latest := c.App.DB().Select("id", "title").From("notes").Where(own).OrderBy("updated DESC", "id DESC").Limit(5)
	if err := latest.WithContext(c.Context()).All(&out.Latest); err != nil {
		return overview{}, fmt.Errorf("find latest notes: %w", err)
	}
	return out, nil
}
