package doors

import (
	"encoding/json"
	"encoding/json/jsontext"
	jsonv2 "encoding/json/v2"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/sync/push"
	"github.com/satchelbase/satchel/extensions/sync/view"
)

// rxRow is one document of a push: as it should be, and as the client believes that the server has it.
type rxRow struct {
	New     map[string]jsontext.Value `json:"newDocumentState"`
	Assumed map[string]jsontext.Value `json:"assumedMasterState"`
	id      string
}

func gone(doc map[string]jsontext.Value) bool { return doc["_deleted"].Kind() == 't' }

// rxBatch is a push on its way into changes.
type rxBatch struct {
	*visit
	door    *doors
	c       *core.Collection
	vc      view.Collection
	rows    []rxRow
	states  map[string]state
	refused map[string]bool // answered with what the server has, whatever comes of the others
	list    []push.Change
	missing bool // a document waits for another one
}

// rxPush executes a push and answers with the documents that are not as the client believes now: it replaces its own by
// them, or its conflict handler makes a new document of both. It never fails because of one document: the client would
// send the same ones again and again and nothing else.
func (d *doors) rxPush(e *core.RequestEvent) error {
	name := e.Request.PathValue("collection")
	raw, err := api.ReadBody(e)
	if err != nil {
		return err
	}
	b := &rxBatch{door: d, refused: map[string]bool{}}
	if err := jsonv2.Unmarshal(raw, &b.rows); err != nil {
		return api.Malformed(err)
	}
	if len(b.rows) > maxRows {
		return api.Fail(api.ErrBodyTooLarge, fmt.Sprintf("at most %d documents fit into a request", maxRows))
	}
	if b.visit, err = d.enter(e, rxChannel(name), name); err != nil {
		return err
	}
	defer b.close()
	if b.vc, err = b.src.Collection(b.ctx, name); err == nil {
		b.c, err = e.App.FindCachedCollectionByNameOrId(name)
	}
	if errors.Is(err, view.ErrGone) {
		return api.Fail(api.ErrNotFound, "there is no such collection")
	}
	if err != nil {
		return err
	}
	conflicts, err := b.run()
	if err != nil {
		return err
	}
	body, err := encode(conflicts)
	if err != nil {
		return err
	}
	return answer(e, body)
}

func (b *rxBatch) run() ([]json.RawMessage, error) {
	b.rows = slices.DeleteFunc(b.rows, func(r rxRow) bool {
		id := textOf(r.New[core.FieldNameId])
		return id == "" || len(id) > maxID // nothing could be said of it
	})
	ids := make([]string, len(b.rows))
	for i, r := range b.rows {
		b.rows[i].id = textOf(r.New[core.FieldNameId])
		ids[i] = b.rows[i].id
	}
	if err := b.device.Settled(b.ctx, b.vc, ids...); err != nil {
		return nil, err
	}
	var err error
	if b.states, err = b.look(b.c, b.vc, ids); err != nil {
		return nil, err
	}
	for _, i := range b.sorted() {
		if err := b.judge(b.rows[i]); err != nil {
			return nil, err
		}
	}
	if err := b.await(); err != nil {
		return nil, err
	}
	results, err := b.door.sync.Push(b.RequestEvent, b.caller, b.device, b.src, b.list)
	if err != nil {
		return nil, err
	}
	for i, r := range results {
		switch {
		case b.door.mustWait(b.visit, b.list[i], r):
			return nil, again()
		case b.list[i].Op == push.Create && !slices.Contains([]string{push.Applied, push.Merged, push.Duplicate}, r.Status):
			b.door.waiting.refuse(b.key(b.c.Id, b.list[i].ID), b.door.now())
		}
	}
	if b.missing {
		return nil, &api.Problem{Code: ErrParent, RetryAfter: time.Second}
	}
	return b.conflicts(ids)
}

// sorted are the rows in an order in which documents come behind those of the same push that they refer to.
func (b *rxBatch) sorted() []int {
	places := map[string]int{}
	for i, r := range b.rows {
		places[r.id] = i
	}
	out, _ := order(len(b.rows), func(i int) (needs []int) {
		for _, f := range relations(b.c) {
			if f.CollectionId != b.c.Id {
				continue
			}
			for _, id := range related(f, b.rows[i].New[f.Name]) {
				if place, ok := places[id]; ok {
					needs = append(needs, place)
				}
			}
		}
		return needs
	})
	return out
}

// judge makes a change of a row, if one is needed.
func (b *rxBatch) judge(r rxRow) error {
	s, base := b.states[r.id], r.Assumed
	if gone(base) {
		base = nil
	}
	switch {
	case gone(r.New) && r.Assumed != nil && base == nil: // the client agrees that it is not there
		return nil
	case gone(r.New):
		if !s.sees() {
			return nil
		}
		change := push.Change{Op: push.Delete, Base: &push.Base{V: b.version(s, base)}}
		return b.add(r, change)
	case base == nil && s.record == nil && !s.deleted:
		set := b.settable(r.New)
		return b.add(r, push.Change{Op: push.Create, Set: set})
	case base == nil || !s.sees():
		return nil // there is another one, or it is gone: the answer tells
	case !equal(orNull(base[versionMember]), orNull(r.New[versionMember])) && !b.door.faults.noGhost:
		// The client sometimes pushes an older state that it has pulled, against a newer base.
		b.refused[r.id] = true
		return nil
	}
	return b.merge(r, s, base)
}

func orNull(value jsontext.Value) jsontext.Value {
	if value == nil {
		return jsontext.Value("null")
	}
	return value
}

// merge makes a change of the fields that the client has edited and nobody else.
func (b *rxBatch) merge(r rxRow, s state, base map[string]jsontext.Value) error {
	change := push.Change{Op: push.Update, Set: map[string]jsontext.Value{}, Base: &push.Base{Set: map[string]jsontext.Value{}}}
	for name, value := range b.settable(r.New) {
		was := orNull(base[name])
		if equal(was, value) {
			continue
		}
		there, err := has(s.record, s.shown, name, value)
		if err != nil {
			return err
		}
		untouched := there
		if !there {
			if untouched, err = has(s.record, s.shown, name, was); err != nil {
				return err
			}
		}
		if !there && (untouched || b.door.faults.lastWrite) {
			change.Set[name], change.Base.Set[name] = value, was
		}
	}
	if len(change.Set) == 0 {
		return nil
	}
	change.Base.V = b.version(s, base)
	return b.add(r, change)
}

// version is the version that the client's base is of. After a push the client's base is what it has sent, with the
// version from before; it is the present state if nobody else has changed it.
func (b *rxBatch) version(s state, base map[string]jsontext.Value) int64 {
	for name, value := range b.settable(base) {
		if same, err := has(s.record, s.shown, name, value); err != nil || !same {
			var v int64
			_ = jsonv2.Unmarshal(base[versionMember], &v) // none is an old one
			return v
		}
	}
	if base == nil {
		return 0
	}
	return s.version
}

// settable are the members of a document that a client may give a value.
func (b *rxBatch) settable(doc map[string]jsontext.Value) map[string]jsontext.Value {
	out := map[string]jsontext.Value{}
	for name, value := range doc {
		f := b.c.Fields.GetByName(name)
		if f == nil || !settable(f) || strings.HasPrefix(name, "_") {
			continue
		}
		if value.Kind() == 'n' {
			value = empty(f)
		}
		out[name] = value
	}
	return out
}

func (b *rxBatch) add(r rxRow, c push.Change) error {
	c.Collection, c.ID = b.vc.Name, r.id
	var err error
	if c.CID, err = b.cid(c, ""); err == nil {
		b.list = append(b.list, c)
	}
	return err
}

// await holds back new documents that refer to records which are not there yet: those of other collections come by
// themselves. What is not worth waiting for is refused by the validation.
func (b *rxBatch) await() error {
	lacks, err := b.lacks()
	if err != nil {
		return err
	}
	b.list = slices.DeleteFunc(b.list, func(c push.Change) bool {
		if len(lacks[c.ID]) == 0 || !b.door.waiting.wait(b.key(b.c.Id, c.ID), lacks[c.ID], b.door.now()) {
			return false
		}
		b.missing = true
		return true
	})
	return nil
}

// lacks finds the records that changes refer to and that are neither there nor made by the same push.
func (b *rxBatch) lacks() (map[string][]string, error) {
	made, out := map[string]bool{}, map[string][]string{}
	for _, c := range b.list {
		made[c.ID] = made[c.ID] || c.Op == push.Create
	}
	for _, f := range relations(b.c) {
		wanted := map[string]bool{}
		for _, c := range b.list {
			for _, id := range related(f, c.Set[f.Name]) {
				if f.CollectionId != b.c.Id || !made[id] {
					wanted[id] = true
				}
			}
		}
		if len(wanted) == 0 {
			continue
		}
		target, err := b.App.FindCachedCollectionByNameOrId(f.CollectionId)
		if err != nil {
			return nil, fmt.Errorf("find target of %s: %w", f.Name, err)
		}
		there, err := b.records(target, slices.Collect(maps.Keys(wanted)))
		if err != nil {
			return nil, err
		}
		for _, c := range b.list {
			for _, id := range related(f, c.Set[f.Name]) {
				if wanted[id] && there[id] == nil {
					out[c.ID] = append(out[c.ID], b.key(target.Id, id))
				}
			}
		}
	}
	return out, nil
}

// conflicts are the documents that are not as the client believes after its push.
func (b *rxBatch) conflicts(ids []string) ([]json.RawMessage, error) {
	out := []json.RawMessage{}
	after, err := b.look(b.c, b.vc, ids)
	if err != nil {
		return nil, err
	}
	for _, r := range b.rows {
		s := after[r.id]
		same := !b.refused[r.id] && gone(r.New) != s.sees()
		if same && s.sees() {
			for name, value := range b.settable(r.New) {
				if same, err = has(s.record, s.shown, name, value); err != nil {
					return nil, err
				}
				if !same {
					break
				}
			}
		}
		if !same {
			out = append(out, s.canonical(r.id))
		}
	}
	return out, nil
}
