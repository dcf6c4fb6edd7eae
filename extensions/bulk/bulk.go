// Package bulk writes many records at the price of one commit, for sync and imports. What can be checked is checked
// before the transaction, so that the database's only writer is held for nothing but the writes.
//
// All hooks of records run, with two differences to saving one by one: OnRecordValidate comes before OnRecordCreate and
// OnRecordUpdate, so what these set is not validated and cannot make up for a missing value; and a record that refers
// to one that an earlier change creates is validated inside the transaction, where it can find it. Hooks after success
// run once everything is on disk; their errors are logged, for nothing can be undone then.
//
// Nobody's rules are asked: that is the caller's part. Uploads are refused, because they would hold the writer while
// they go to the storage. The package is a library: no tables, routes or settings. Failure modes: a database that is
// busy or failing ends the whole call, in every mode, with its error; the caller tries again.
package bulk

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"

	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
)

// Mode says what becomes of the other changes when one is refused.
type Mode int

const (
	// Together writes all changes or none.
	Together Mode = iota
	// Apart writes whatever can be written.
	Apart
)

// Change creates or updates a record, or deletes it. Nobody else may use the record meanwhile.
type Change struct {
	Record *core.Record
	Delete bool
}

// Result is the outcome of one change: written, refused with Err, or neither, when another one was refused and all go
// together. Err is [validation.Errors] by field when the record is not valid, otherwise what a hook or the database
// says against it.
type Result struct {
	Written bool
	Err     error
}

var (
	// ErrRefused reports that nothing was written, because a change was refused.
	ErrRefused = errors.New("a change was refused")

	// ErrUpload refuses a change that brings a file along.
	ErrUpload = errors.New("files cannot be uploaded in bulk")

	// ErrTransaction refuses a call within a transaction: the checks would hold the writer.
	ErrTransaction = errors.New("bulk writes have a transaction of their own")
)

// Write applies the changes in their order, with one result for each. The error is [ErrRefused] or that of the database.
func Write(ctx context.Context, app core.App, changes []Change, mode Mode) ([]Result, error) {
	if app.IsTransactional() {
		return nil, ErrTransaction
	}
	b := &batch{ctx: ctx, app: app, changes: changes, results: make([]Result, len(changes)), late: make([]bool, len(changes))}
	accepted, err := b.check()
	if err != nil {
		return nil, err
	}
	if mode == Together && len(accepted) < len(changes) {
		return b.results, ErrRefused
	}
	if len(accepted) == 0 {
		return b.results, nil
	}
	err = b.commit(accepted)
	if err == nil || !errors.Is(err, ErrRefused) || mode == Together {
		return b.results, err
	}
	// One by one, because a part of a change that was refused halfway cannot be told from the others: its hooks may have
	// written more, and promised what to do after success.
	for _, i := range accepted {
		b.results[i] = Result{}
		if err := b.commit([]int{i}); err != nil && !errors.Is(err, ErrRefused) {
			return b.results, err
		}
	}
	return b.results, nil
}

// batch is one call of Write.
type batch struct {
	ctx     context.Context
	app     core.App
	changes []Change
	results []Result
	late    []bool // validated inside the transaction
}

// check validates what can be validated now and returns the indexes of the changes that are not refused.
func (b *batch) check() ([]int, error) {
	var accepted []int
	coming := map[string][]string{} // ids to be created, by collection
	for i, c := range b.changes {
		err := b.validate(i, coming)
		if outage(b.ctx, err) {
			return nil, err
		}
		if err != nil {
			b.results[i].Err = err
			continue
		}
		accepted = append(accepted, i)
		if !c.Delete && c.Record.IsNew() {
			id := c.Record.Collection().Id
			coming[id] = append(coming[id], c.Record.Id)
		}
	}
	return accepted, nil
}

func (b *batch) validate(i int, coming map[string][]string) error {
	c := b.changes[i]
	if c.Delete {
		return nil
	}
	for _, f := range c.Record.Collection().Fields {
		if f.Type() == core.FieldTypeFile && len(c.Record.GetUnsavedFiles(f.GetName())) > 0 {
			return fmt.Errorf("field %s: %w", f.GetName(), ErrUpload)
		}
	}
	err := b.app.ValidateWithContext(b.ctx, c.Record)
	if err != nil && refersTo(coming, c.Record, err) {
		b.late[i] = true
		return nil
	}
	return err
}

// refersTo reports whether all that is wrong with a record may be that it refers to records that are yet to come.
func refersTo(coming map[string][]string, record *core.Record, err error) bool {
	wrong, ok := errors.AsType[validation.Errors](err)
	if !ok {
		return false
	}
	for name := range wrong {
		relation, ok := record.Collection().Fields.GetByName(name).(*core.RelationField)
		if !ok || !slices.ContainsFunc(record.GetStringSlice(name), func(id string) bool {
			return slices.Contains(coming[relation.CollectionId], id)
		}) {
			return false
		}
	}
	return len(wrong) > 0
}

// commit writes the changes in one transaction. It returns ErrRefused if one of them was refused, which its result says.
func (b *batch) commit(indexes []int) error {
	var committed bool
	refused := -1
	var reason error
	err := b.app.RunInTransaction(func(tx core.App) error {
		tx.TxInfo().OnComplete(func(err error) error { committed = err == nil; return nil })
		for _, i := range indexes {
			if reason = b.apply(tx, i); reason != nil {
				refused = i
				return reason
			}
		}
		return nil
	})
	switch {
	case committed:
		for _, i := range indexes {
			b.results[i].Written = true
		}
		if err != nil {
			b.app.Logger().Error("a hook after a bulk write failed", slog.Any("error", err))
		}
		return nil
	case refused < 0:
		return fmt.Errorf("write in bulk: %w", err)
	case outage(b.ctx, reason):
		return reason
	}
	b.results[refused].Err = reason
	return ErrRefused
}

func (b *batch) apply(tx core.App, i int) error {
	c := b.changes[i]
	switch {
	case c.Delete:
		return tx.DeleteWithContext(b.ctx, c.Record)
	case b.late[i]:
		return tx.SaveWithContext(b.ctx, c.Record)
	}
	return tx.SaveNoValidateWithContext(b.ctx, c.Record)
}

// outage reports an error that is not about the change: the request has ended, or the database cannot serve it.
func outage(ctx context.Context, err error) bool {
	if err == nil {
		return false
	}
	code, ok := errors.AsType[*extensions.Code](err)
	return ctx.Err() != nil || ok && code.Status == http.StatusServiceUnavailable
}
