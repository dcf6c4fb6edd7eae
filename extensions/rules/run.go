package rules

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pocketbase/pocketbase/core"
)

// runner tries the checks of one table.
type runner struct {
	table  *table
	open   Open
	base   string            // the copy with everybody and everything that the table declares
	ids    map[string]string // name -> id of its record
	tokens map[string]string // name of a person -> token
}

// runTable copies dataDir below dir and runs the table there.
func runTable(ctx context.Context, t *table, dataDir, dir string, open Open) (Report, error) {
	r := &runner{table: t, open: open, base: filepath.Join(dir, "base"), ids: map[string]string{}, tokens: map[string]string{guest: ""}}
	if err := r.prepare(ctx, dataDir); err != nil {
		return Report{}, err
	}
	report := Report{File: t.file, Checks: make([]Result, 0, len(t.checks))}
	var box *sandbox
	for i, c := range t.checks {
		err := ctx.Err()
		if err == nil && box == nil {
			box, err = r.copyAndOpen(ctx, r.base, filepath.Join(dir, "check"))
		}
		if err != nil {
			return Report{}, fmt.Errorf("begin check of line %d: %w", c.line, err)
		}
		result, err := r.try(ctx, box, c)
		if err != nil {
			return Report{}, errors.Join(err, box.close())
		}
		report.Checks = append(report.Checks, result)
		if result.OK {
			report.Passed++
		} else {
			report.Failed++
		}
		dirty, err := box.changed(ctx)
		if err != nil || dirty || i == len(t.checks)-1 {
			err = errors.Join(err, box.close())
			box = nil
		}
		if err != nil {
			return Report{}, fmt.Errorf("end check of line %d: %w", c.line, err)
		}
	}
	return report, nil
}

// prepare makes the copy that every check starts from.
func (r *runner) prepare(ctx context.Context, dataDir string) error {
	box, err := r.copyAndOpen(ctx, dataDir, r.base)
	if err != nil {
		return err
	}
	for _, d := range r.table.names {
		if err := r.make(box.app, d); err != nil {
			return errors.Join(&Mistake{File: r.table.file, Line: d.line, Reason: err.Error()}, box.close())
		}
	}
	return box.close()
}

// copyAndOpen opens a copy of the folder from in place of what is in to.
func (r *runner) copyAndOpen(ctx context.Context, from, to string) (*sandbox, error) {
	if err := errors.Join(os.RemoveAll(to), os.MkdirAll(to, 0o700)); err != nil {
		return nil, fmt.Errorf("make folder for the copy: %w", err)
	}
	if err := copyData(ctx, from, to); err != nil {
		return nil, err
	}
	return openSandbox(ctx, to, r.open)
}

// make finds or creates the record behind a name. Its errors are mistakes of the line.
func (r *runner) make(app core.App, d declared) error {
	collection, err := app.FindCollectionByNameOrId(d.collection)
	if err != nil {
		return fmt.Errorf("there is no collection %s", d.collection)
	}
	record := core.NewRecord(collection)
	if d.email != "" {
		if !collection.IsAuth() {
			return fmt.Errorf("%s is not an auth collection, so nobody can log in there", d.collection)
		}
		have, err := app.FindAuthRecordByEmail(collection, d.email)
		switch {
		case err == nil:
			record = have
		case !errors.Is(err, sql.ErrNoRows):
			return err
		}
		record.SetEmail(d.email)
	}
	if record.IsNew() && collection.IsAuth() {
		record.SetRandomPassword()
	}
	if data, ok := r.resolve(d.data).(map[string]any); ok {
		record.Load(data)
	}
	if err := app.Save(record); err != nil {
		return fmt.Errorf("%s cannot be saved: %w", d.name, err)
	}
	r.ids[d.name] = record.Id
	if d.email == "" {
		return nil
	}
	r.tokens[d.name], err = record.NewAuthToken()
	return err
}

// resolve puts ids in the place of "@name".
func (r *runner) resolve(v any) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for key, item := range v {
			out[key] = r.resolve(item)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, item := range v {
			out[i] = r.resolve(item)
		}
		return out
	case string:
		if name, ok := strings.CutPrefix(v, "@"); ok {
			if id, known := r.ids[name]; known {
				return id
			}
			return name // written @@
		}
	}
	return v
}

// idOf is the id behind a name, or the id itself.
func (r *runner) idOf(id string) string {
	if own, ok := r.ids[id]; ok {
		return own
	}
	return id
}

// try sends the check's request and judges the answer. The error is a mistake when the check could not fail.
func (r *runner) try(ctx context.Context, box *sandbox, c check) (Result, error) {
	mistake := func(format string, args ...any) error {
		return &Mistake{File: r.table.file, Line: c.line, Reason: fmt.Sprintf(format, args...)}
	}
	collection, err := box.app.FindCollectionByNameOrId(c.collection)
	if err != nil {
		return Result{}, mistake("there is no collection %s", c.collection)
	}
	for _, id := range append(slices.Clone(c.only), c.id) {
		if id == "" {
			continue
		}
		if _, err := box.app.FindRecordById(collection, r.idOf(id)); err != nil {
			return Result{}, mistake("%s has no record %s: name it in a given line above", c.collection, id)
		}
	}
	request, err := r.request(ctx, c)
	if err != nil {
		return Result{}, fmt.Errorf("make request of line %d: %w", c.line, err)
	}
	recorder := httptest.NewRecorder()
	box.handler.ServeHTTP(recorder, request)
	a := answer{status: recorder.Code}
	if !a.ok() || c.verb == "list" { // other answers are records with fields of any name
		if err := json.Unmarshal(recorder.Body.Bytes(), &a); err != nil {
			return Result{}, fmt.Errorf("read answer of line %d: %w", c.line, err)
		}
	}
	var reason string
	if c.verb == "list" {
		total, err := box.app.CountRecords(collection)
		if err != nil {
			return Result{}, fmt.Errorf("count %s: %w", c.collection, err)
		}
		reason = r.judgeList(c, a, total)
	} else {
		reason = judge(c, a)
	}
	return Result{Line: c.line, Check: c.text, OK: reason == "", Status: a.status, Reason: reason}, nil
}

func (r *runner) request(ctx context.Context, c check) (*http.Request, error) {
	target := "/api/collections/" + c.collection + "/records"
	if c.id != "" {
		target += "/" + url.PathEscape(r.idOf(c.id))
	}
	method := map[string]string{"create": http.MethodPost, "update": http.MethodPatch, "delete": http.MethodDelete}[c.verb]
	data, _ := r.resolve(c.data).(map[string]any)
	var body []byte
	if c.verb == "list" {
		query := url.Values{"perPage": {"1000"}, "skipTotal": {"1"}}
		for key, value := range data {
			query.Set(key, fmt.Sprint(value))
		}
		target += "?" + query.Encode()
	} else if data != nil {
		var err error
		if body, err = json.Marshal(data); err != nil {
			return nil, err
		}
	}
	request, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.RemoteAddr = "127.0.0.1:0"
	request.Header.Set("Content-Type", "application/json")
	if token := r.tokens[c.who]; token != "" {
		request.Header.Set("Authorization", token)
	}
	return request, nil
}

// answer is what a check needs of PocketBase's answers.
type answer struct {
	status  int
	Message string         `json:"message"`
	Data    map[string]any `json:"data"` // errors by field
	Items   []struct {
		ID string `json:"id"`
	} `json:"items"`
}

func (a answer) ok() bool { return a.status < http.StatusBadRequest }

// refused is true for a no of the rules or of a hook. Server errors and limits are neither yes nor no.
func (a answer) refused() bool {
	return a.status >= http.StatusBadRequest && a.status < http.StatusInternalServerError && a.status != http.StatusTooManyRequests
}

// explain is the status with what the server says, fields included.
func (a answer) explain() string {
	var text strings.Builder
	fmt.Fprintf(&text, "answered %d", a.status)
	if a.Message != "" {
		text.WriteString(": " + a.Message)
	}
	for _, field := range slices.Sorted(maps.Keys(a.Data)) {
		detail, _ := a.Data[field].(map[string]any)
		fmt.Fprintf(&text, " %s: %v", field, detail["message"])
	}
	return text.String()
}

// judge says why the check does not hold, or nothing.
func judge(c check, a answer) string {
	switch {
	case c.can && a.ok(), !c.can && a.refused() && len(a.Data) == 0:
		return ""
	case c.can:
		return a.explain()
	case a.ok():
		return fmt.Sprintf("answered %d: it was allowed", a.status)
	case a.refused():
		return a.explain() + " (the data is bad, which says nothing about the rule)"
	default:
		return a.explain()
	}
}

// judgeList is judge for lists, which rules filter rather than refuse. total is what the collection holds.
func (r *runner) judgeList(c check, a answer, total int64) string {
	switch {
	case !a.ok() && !c.can && a.status != http.StatusBadRequest && a.refused():
		return ""
	case !a.ok():
		return a.explain() // 400 is a wrong query: a rule either refuses with 403 or leaves records out
	case total == 0:
		return "there are no records in " + c.collection + ", so the answer proves nothing: add a given line"
	case !c.can && len(a.Items) > 0:
		return fmt.Sprintf("sees %d records, such as %s", len(a.Items), r.nameOf(a.Items[0].ID))
	case c.can && len(a.Items) == 0:
		return "sees none of the records"
	case c.only == nil:
		return ""
	}
	want := map[string]bool{}
	for _, id := range c.only {
		want[r.idOf(id)] = true
	}
	var wrong []string
	for _, item := range a.Items {
		if !want[item.ID] {
			wrong = append(wrong, "sees "+r.nameOf(item.ID)+", too")
		}
		delete(want, item.ID)
	}
	for _, id := range slices.Sorted(maps.Keys(want)) {
		wrong = append(wrong, "does not see "+r.nameOf(id))
	}
	return strings.Join(wrong, "; ")
}

// nameOf is the table's name for a record, or its id.
func (r *runner) nameOf(id string) string {
	for name, own := range r.ids {
		if own == id {
			return name
		}
	}
	return id
}
