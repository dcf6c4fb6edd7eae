package push

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"encoding/json/jsontext"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/pocketbase/dbx"
	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/forms"
	"github.com/pocketbase/pocketbase/tools/inflector"
	"github.com/pocketbase/pocketbase/tools/router"
	"github.com/pocketbase/pocketbase/tools/security"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/changes"
	"github.com/satchelbase/satchel/extensions/records/body"
	"github.com/satchelbase/satchel/extensions/rows"
	"github.com/satchelbase/satchel/extensions/sync/sight"
)

// writing is one change in its transaction.
type writing struct {
	change     Change
	log        *changes.Log
	tx         core.App
	auth       *core.Record
	outer      *core.RequestEvent
	collection *core.Collection
}

// execute does what the record API does for the same request, in PocketBase's order, and returns the result. What the
// handlers of PocketBase do is not exported; a test compares the two.
func (p *Pusher) execute(w *writing) (Result, error) {
	switch w.change.Op {
	case Create:
		return p.create(w)
	case Update:
		return p.update(w)
	}
	return p.remove(w)
}

// protected are the fields of accounts that have routes of their own.
func protected(name string) bool {
	return slices.Contains([]string{
		core.FieldNamePassword, "passwordConfirm", "oldPassword", core.FieldNameTokenKey, core.FieldNameEmail, core.FieldNameVerified,
	}, strings.Trim(name, "+-"))
}

// members are the body of the record API for a change; set stands for the fields that it sets.
func (w *writing) members(set map[string]jsontext.Value) (map[string]jsontext.Value, error) {
	var mistakes []api.FieldError
	out := make(map[string]jsontext.Value, len(set)+len(w.change.Apply)+1)
	for name, v := range set {
		if w.collection.Fields.GetByName(name) == nil || name == core.FieldNameId {
			mistakes = append(mistakes, api.Invalid(name, body.ErrUnknown, w.collection.Name+" has no such field to set"))
			continue
		}
		out[name] = v
	}
	for name, v := range w.change.Apply {
		plain := strings.Trim(name, "+-")
		if _, both := set[plain]; both || plain == name || w.collection.Fields.GetByName(plain) == nil {
			mistakes = append(mistakes, api.Invalid(name, body.ErrUnknown, "must be a field that is not set as well, with + or -"))
			continue
		}
		out[name] = v
	}
	if w.collection.IsAuth() {
		for name := range out {
			if protected(name) {
				mistakes = append(mistakes, api.Invalid(name, ErrProtected, ""))
			}
		}
	}
	mistakes = append(mistakes, body.Mistakes(w.collection, out)...)
	if len(mistakes) > 0 {
		slices.SortFunc(mistakes, func(a, b api.FieldError) int { return strings.Compare(a.Field, b.Field) })
		return nil, refuse(Invalid, api.ErrValidation, "", mistakes...)
	}
	return out, nil
}

// event is the request that the record API would have got.
func (w *writing) event(method string, members map[string]jsontext.Value) (*core.RequestEvent, *core.RequestInfo, error) {
	path := "/api/collections/" + w.collection.Name + "/records"
	if w.change.Op != Create {
		path += "/" + w.change.ID
	}
	var raw []byte
	if members != nil {
		var err error
		if raw, err = marshal(members); err != nil {
			return nil, nil, err
		}
	}
	e := sight.Event(w.outer, method, path, raw)
	e.App, e.Auth = w.tx, w.auth
	e.Request.SetPathValue("collection", w.collection.Name)
	if w.change.Op != Create {
		e.Request.SetPathValue("id", w.change.ID)
	}
	info, err := e.RequestInfo()
	if err != nil {
		return nil, nil, fmt.Errorf("read change: %w", err)
	}
	return e, info, nil
}

func marshal(members map[string]jsontext.Value) ([]byte, error) {
	var buf bytes.Buffer
	buf.WriteByte('{')
	for i, name := range slices.Sorted(maps.Keys(members)) {
		if i > 0 {
			buf.WriteByte(',')
		}
		key, err := json.Marshal(name)
		if err != nil {
			return nil, fmt.Errorf("encode change: %w", err)
		}
		buf.Write(key)
		buf.WriteByte(':')
		buf.Write(members[name])
	}
	buf.WriteByte('}')
	return buf.Bytes(), nil
}

// load is what the record API makes of a body.
func load(info *core.RequestInfo, record *core.Record) map[string]any {
	data := record.ReplaceModifiers(info.Body)
	for _, f := range record.Collection().Fields {
		if f.GetHidden() {
			delete(data, f.GetName())
		}
	}
	info.Body = data
	return data
}

func (p *Pusher) create(w *writing) (Result, error) {
	if w.collection.IsAuth() {
		return Result{}, refuse(Denied, ErrDenied, "accounts are made by signing up")
	}
	if w.collection.CreateRule == nil {
		return Result{}, refuse(Denied, ErrDenied, "")
	}
	members, err := w.members(w.change.Set)
	if err != nil {
		return Result{}, err
	}
	id, err := json.Marshal(w.change.ID)
	if err != nil {
		return Result{}, fmt.Errorf("encode id: %w", err)
	}
	members[core.FieldNameId] = id
	e, info, err := w.event(http.MethodPost, members)
	if err != nil {
		return Result{}, err
	}
	record := core.NewRecord(w.collection)
	form := forms.NewRecordUpsert(w.tx, record)
	form.SetContext(w.outer.Request.Context())
	form.Load(load(info, record))
	if err := w.mayCreate(record, info); err != nil {
		return Result{}, err
	}
	if err := w.absent(); err != nil { // which is only for those to know who may create it
		return Result{}, err
	}
	event := &core.RecordRequestEvent{RequestEvent: e, Record: record}
	event.Collection = w.collection
	err = w.tx.OnRecordCreateRequest().Trigger(event, func(e *core.RecordRequestEvent) error {
		form.SetApp(e.App)
		form.SetRecord(e.Record)
		return form.Submit()
	})
	if err != nil {
		return Result{}, w.refused(err)
	}
	return w.done(Applied, nil)
}

// absent refuses an id that a record has, or had.
func (w *writing) absent() error {
	version, deleted, err := w.version()
	if err != nil {
		return err
	}
	if deleted {
		return refuse(Gone, ErrGone, "")
	}
	_, err = w.tx.FindRecordById(w.collection, w.change.ID)
	if err == nil {
		r := refuse(Conflict, ErrExists, "")
		r.v = version
		return r
	}
	if !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("find record: %w", err)
	}
	return nil
}

// mayCreate tests the create rule on a row that pretends to be in the table, as PocketBase does.
func (w *writing) mayCreate(record *core.Record, info *core.RequestInfo) error {
	if *w.collection.CreateRule == "" {
		return nil
	}
	columns, err := record.Clone().DBExport(w.tx)
	if err != nil {
		return fmt.Errorf("export record: %w", err)
	}
	suffix := "__sync_create__" + security.PseudorandomString(6)
	params, selects := dbx.Params{}, make([]string, 0, len(columns))
	for name, v := range columns {
		name = inflector.Columnify(name)
		params["__sync_create__"+name] = v
		selects = append(selects, "{:__sync_create__"+name+"} AS [["+name+"]]")
	}
	pretended := *w.collection
	pretended.Id += suffix
	pretended.Name += inflector.Columnify(suffix)
	q := w.tx.ConcurrentDB().Select("(1)").PreFragment("WITH {{" + pretended.Name + "}} as (SELECT " + strings.Join(selects, ",") + ")").
		From(pretended.Name).AndBind(params)
	if err := rows.Where(q, w.tx, &pretended, info, pretended.CreateRule, ""); err != nil {
		return w.refused(err)
	}
	var one int
	err = q.Limit(1).Row(&one)
	if errors.Is(err, sql.ErrNoRows) {
		return refuse(Denied, ErrDenied, "")
	}
	if err != nil {
		return fmt.Errorf("judge create rule: %w", err)
	}
	return nil
}

func (p *Pusher) update(w *writing) (Result, error) {
	record, err := w.find(nil)
	if err != nil {
		return Result{}, err
	}
	version, _, err := w.version()
	if err != nil {
		return Result{}, err
	}
	if _, err := w.members(w.change.Set); err != nil { // before its values are compared
		return Result{}, err
	}
	s, err := p.settle(w, record, version)
	if err != nil {
		return Result{}, err
	}
	members, err := w.members(s.set)
	if err != nil {
		return Result{}, err
	}
	e, info, err := w.event(http.MethodPatch, members)
	if err != nil {
		return Result{}, err
	}
	data := load(info, record)
	if w.collection.UpdateRule == nil {
		return Result{}, refuse(Denied, ErrDenied, "")
	}
	if record, err = w.find(func(q *dbx.SelectQuery) error {
		return rows.Where(q, w.tx, w.collection, info, w.collection.UpdateRule, "")
	}); err != nil {
		return Result{}, err
	}
	status := Applied
	if s.merged {
		status = Merged
	}
	if len(members) == 0 {
		return w.done(status, s.fields) // the server's values stay
	}
	form := forms.NewRecordUpsert(w.tx, record)
	form.SetContext(w.outer.Request.Context())
	form.Load(data)
	event := &core.RecordRequestEvent{RequestEvent: e, Record: record}
	event.Collection = w.collection
	err = w.tx.OnRecordUpdateRequest().Trigger(event, func(e *core.RecordRequestEvent) error {
		form.SetApp(e.App)
		form.SetRecord(e.Record)
		return form.Submit()
	})
	if err != nil {
		return Result{}, w.refused(err)
	}
	return w.done(status, s.fields)
}

func (p *Pusher) remove(w *writing) (Result, error) {
	record, err := w.find(nil)
	if err != nil {
		return Result{}, err
	}
	version, _, err := w.version()
	if err != nil {
		return Result{}, err
	}
	if err := p.settleDelete(w, record, version); err != nil {
		return Result{}, err
	}
	e, info, err := w.event(http.MethodDelete, nil)
	if err != nil {
		return Result{}, err
	}
	if w.collection.DeleteRule == nil {
		return Result{}, refuse(Denied, ErrDenied, "")
	}
	if record, err = w.find(func(q *dbx.SelectQuery) error {
		return rows.Where(q, w.tx, w.collection, info, w.collection.DeleteRule, "")
	}); err != nil {
		return Result{}, err
	}
	event := &core.RecordRequestEvent{RequestEvent: e, Record: record}
	event.Collection = w.collection
	err = w.tx.OnRecordDeleteRequest().Trigger(event, func(e *core.RecordRequestEvent) error {
		return e.App.DeleteWithContext(w.outer.Request.Context(), e.Record)
	})
	if err != nil {
		return Result{}, w.refused(err)
	}
	return w.done(Applied, nil)
}

// find reads the record of the change, under a rule if there is one.
func (w *writing) find(rule func(q *dbx.SelectQuery) error) (*core.Record, error) {
	record, err := w.tx.FindRecordById(w.collection, w.change.ID, rule)
	switch {
	case errors.Is(err, sql.ErrNoRows) && rule == nil:
		return nil, refuse(Gone, ErrGone, "")
	case errors.Is(err, sql.ErrNoRows):
		return nil, refuse(Denied, ErrDenied, "")
	case err != nil:
		return nil, fmt.Errorf("find record: %w", err)
	}
	return record, nil
}

// version is that of the record inside the transaction, with whether it is deleted.
func (w *writing) version() (seq int64, deleted bool, err error) {
	return w.log.VersionIn(w.tx, w.collection.Id, w.change.ID)
}

func (w *writing) done(status string, fields []string) (Result, error) {
	version, _, err := w.version()
	return Result{CID: w.change.CID, Status: status, V: version, Fields: fields}, err
}

// refused makes a refusal of what a hook, the validation or the database says against a change. Like the record API it
// takes an unknown error for a fault of the change; the store marks its own.
func (w *writing) refused(err error) error {
	if outage(w.outer.Request.Context(), err) {
		return err
	}
	if _, ok := errors.AsType[validation.Errors](err); ok {
		err = router.NewBadRequestError("", err)
	}
	problem := api.ProblemOf(err)
	if problem.Code == api.ErrInternal {
		if _, said := errors.AsType[*router.ApiError](err); !said {
			problem = api.ProblemOf(router.NewBadRequestError("", err))
		}
	}
	status := Invalid
	switch code := problem.Code.Status; {
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		status = Denied
	case code == http.StatusNotFound, code == http.StatusGone:
		status = Gone
	case code == http.StatusConflict:
		status = Conflict
	case code == http.StatusTooManyRequests, code >= http.StatusInternalServerError:
		status = Retry
	}
	return &refusal{status: status, Problem: problem}
}
