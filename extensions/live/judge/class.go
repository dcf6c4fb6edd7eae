package judge

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/live/watch"
	"github.com/satchelbase/satchel/extensions/rows"
)

// ClassKey stands for a question to the database.
type ClassKey struct {
	Collection string
	rule       string
	filter     string
	viewer     rows.Viewer
	own        string // account and options where the question serves these only
}

// Class is the viewers for whom one question is asked.
type Class struct {
	Key      ClassKey
	Question *Question
	Watches  []string // ids of the collections that the answer depends on beside the records it is about

	// Whoever serves the viewers guards these by a lock.
	Shifted   []*Shifts // in their order, each from one state that viewers have listed to another one
	Comparing []*Shifts // what is being compared
	Next      time.Time // when Shifted is

	listed bool // since the last change
}

// Classes keeps the questions. The zero value is ready; it is safe for concurrent use.
type Classes struct {
	mu   sync.Mutex
	kept map[ClassKey]*Class
}

// maxClasses bounds the questions that are kept; a client can make them by its filters. One takes some 3 KB.
const maxClasses = 4096

// Of finds the class of somebody who watches, or makes it.
func (c *Classes) Of(app core.App, w *watch.Watch, collection *core.Collection, rule *string, auth *core.Record) (*Class, error) {
	key := ClassKey{Collection: collection.Id, filter: w.Filter}
	if rule != nil {
		key.rule = *rule
	}
	viewer, _ := rows.ViewerOf(auth)
	shared := Shareable(collection, auth, rule, w.Filter)
	key.viewer = viewer
	own := w.Options()
	if auth != nil {
		own += auth.Collection().Id + "/" + auth.Id
	}
	if !shared {
		key.own = "/" + own
	}
	if kept := c.get(key); kept != nil {
		return kept, nil
	}
	question, err := NewQuestion(app, collection, rule, w.Filter, w.Info(auth), shared)
	if err != nil {
		return nil, err
	}
	if shared && !question.Shared() {
		key.own = "/" + own
	}
	made := &Class{Key: key, Question: question}
	for _, text := range []string{key.rule, w.Filter} {
		if text == "" || viewer.Superuser && text == key.rule {
			continue
		}
		d, err := changes.RuleDependencies(app, collection, text, auth)
		if err != nil {
			return nil, err
		}
		for _, id := range d.Collections {
			if (id != collection.Id || question.Reads(collection)) && !slices.Contains(made.Watches, id) {
				made.Watches = append(made.Watches, id)
			}
		}
	}
	return c.put(made), nil
}

func (c *Classes) get(key ClassKey) *Class {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kept[key]
}

// put keeps a class, unless another connection has made the same.
func (c *Classes) put(made *Class) *Class {
	c.mu.Lock()
	defer c.mu.Unlock()
	if kept := c.kept[made.Key]; kept != nil {
		return kept
	}
	if c.kept == nil || len(c.kept) >= maxClasses {
		c.kept = map[ClassKey]*Class{} // who is served has its class
	}
	c.kept[made.Key] = made
	return made
}

// Clear forgets all, because a definition has changed.
func (c *Classes) Clear() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept = nil
}

// maxShift is how many records may have changed for a comparison to pay.
const maxShift = 2000

// Shifts is what has changed of the records that a class watches. The zero value is nothing.
type Shifts struct {
	Blind bool  // of some it is not known how they were
	Seq   int64 // of the last change

	rows  map[string]map[string]*core.Record // by collection and id, as they were; nil if they were not there
	count int
}

// Empty reports that nothing has changed.
func (s *Shifts) Empty() bool { return s.count == 0 }

// Add notes a record as it was, nil if that is not known or if it was not there. The first image of a record stays.
func (s *Shifts) Add(k changes.Change, was *core.Record) {
	s.Seq = max(s.Seq, k.Seq)
	if _, known := s.rows[k.Collection][k.Record]; known {
		return
	}
	s.Blind = s.Blind || was == nil && k.Action != changes.Create
	if s.count++; s.count > maxShift {
		s.rows = nil
		return
	}
	if s.rows == nil {
		s.rows = map[string]map[string]*core.Record{}
	}
	if s.rows[k.Collection] == nil {
		s.rows[k.Collection] = map[string]*core.Record{}
	}
	s.rows[k.Collection][k.Record] = was
}

// Merge adds what another one has.
func (s *Shifts) Merge(o *Shifts) {
	blind, count := s.Blind || o.Blind, max(s.count, o.count)
	for collection, list := range o.rows {
		for id, was := range list {
			s.Add(changes.Change{Seq: o.Seq, Collection: collection, Record: id, Action: changes.Create}, was)
		}
	}
	s.Blind, s.Seq = blind, max(s.Seq, o.Seq)
	if s.count = max(s.count, count); s.count > maxShift {
		s.rows = nil
	}
}

// maxShifts bounds how many states are told apart until the next comparison.
const maxShifts = 8

// Shift notes what has changed, each record as it was.
func (c *Class) Shift(k changes.Change, was *core.Record) {
	if len(c.Shifted) == 0 || c.listed && len(c.Shifted) < maxShifts {
		c.Shifted = append(c.Shifted, &Shifts{})
	}
	c.listed = false
	c.Shifted[len(c.Shifted)-1].Add(k, was)
}

// Turned says what that has changed for viewers; see [Question.Turned].
func (c *Class) Turned(ctx context.Context, app core.App, s *Shifts, viewers []string) ([]Turn, error) {
	if s.count > maxShift {
		return nil, ErrUntold
	}
	var shifts []Shift
	for id, rows := range s.rows {
		found, err := app.FindCachedCollectionByNameOrId(id)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrUntold, err)
		}
		shifts = append(shifts, Shift{found, rows})
	}
	return c.Question.Turned(ctx, viewers, shifts, s.Blind)
}
