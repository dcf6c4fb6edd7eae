package pb

import (
	"bytes"
	"errors"
	"net/http"
	"strings"

	"github.com/pocketbase/pocketbase/core"
)

// enclosed is the app of a transaction that does not show it. PocketBase's handlers ask TxInfo whether the answer must
// wait for the commit, and nothing else about it; without one they answer at once, into whatever e.Response is.
// IsTransactional still tells the truth.
type enclosed struct {
	core.App // of the transaction

	failed *bool
}

// TxInfo hides the transaction.
func (enclosed) TxInfo() *core.TxAppInfo { return nil }

// RunInTransaction joins the transaction, as PocketBase does, and keeps it hidden from a handler that puts the
// transaction's app into its request. What fn has written before an error cannot be undone by itself.
func (e enclosed) RunInTransaction(fn func(tx core.App) error) error {
	return e.App.RunInTransaction(func(tx core.App) error {
		err := fn(enclosed{App: tx, failed: e.failed})
		if err != nil {
			*e.failed = true
		}
		return err
	})
}

// Enclose returns the app with which a handler runs as a part of the transaction tx, its answer included. failed
// reports whether a transaction that the handler took for its own has failed: what it wrote is still there, so that the
// whole must be rolled back.
func Enclose(tx core.App) (app core.App, failed func() bool) {
	e := enclosed{App: tx, failed: new(bool)}
	return e, func() bool { return *e.failed }
}

// TransactionOf is TxInfo also of an app that hides it.
func TransactionOf(app core.App) *core.TxAppInfo {
	if e, ok := app.(enclosed); ok {
		return TransactionOf(e.App)
	}
	return app.TxInfo()
}

// AfterCommit runs fn when the transaction of app has been committed, at once if it has none, and never if it is rolled
// back. Transactions within it count as one with it, but one of the auxiliary database ends by itself.
func AfterCommit(app core.App, fn func()) {
	info := TransactionOf(app)
	if info == nil {
		fn()
		return
	}
	info.OnComplete(func(err error) error {
		if err == nil {
			fn()
		}
		return nil
	})
}

// AfterRollback runs fn when the transaction of app has been rolled back, and never if it is committed or if there is none.
func AfterRollback(app core.App, fn func()) {
	if info := TransactionOf(app); info != nil {
		info.OnComplete(func(err error) error {
			if err != nil {
				fn()
			}
			return nil
		})
	}
}

// BatchOf reports whether the stack, as runtime.Stack shows it, is that of the goroutine in which PocketBase handles the
// requests of a batch, and which goroutine waits for it.
func BatchOf(stack string) (waiting string, ok bool) {
	if !strings.Contains(stack, "/apis.(*batchProcessor).process(") {
		return "", false
	}
	_, created, ok := strings.Cut(stack, "created by github.com/pocketbase/pocketbase/tools/routine.FireAndForget in goroutine ")
	if !ok {
		return "", false
	}
	waiting, _, _ = strings.Cut(created, "\n")
	return waiting, waiting != ""
}

// EventOf names the event whose hooks are called by the function, as it stands in a stack; empty if none are.
func EventOf(function string) string {
	name, ok := strings.CutPrefix(function, "github.com/pocketbase/pocketbase/")
	if !ok {
		return ""
	}
	for _, known := range [...][2]string{
		{"core.(*BaseApp).ValidateWithContext", "onRecordValidate"},
		{"core.(*BaseApp).create.func1", "onRecordCreateExecute"},
		{"core.(*BaseApp).create", "onRecordCreate"},
		{"core.(*BaseApp).update.func1", "onRecordUpdateExecute"},
		{"core.(*BaseApp).update", "onRecordUpdate"},
		{"core.(*BaseApp).delete.func1", "onRecordDeleteExecute"},
		{"core.(*BaseApp).delete", "onRecordDelete"},
		{"apis.triggerRecordEnrichHooks", "onRecordEnrich"},
		{"apis.batchTransaction", "onBatchRequest"},
		{"apis.recordCreate", "onRecordCreateRequest"},
		{"apis.recordUpdate", "onRecordUpdateRequest"},
		{"apis.recordDelete", "onRecordDeleteRequest"},
	} {
		if strings.HasPrefix(name, known[0]) {
			return known[1]
		}
	}
	return ""
}

// ErrAnswerTooLarge is the error of an answer that does not fit into a [Buffer].
var ErrAnswerTooLarge = errors.New("the answer is too large to be held back")

// Buffer holds an answer back. The headers are those of the real answer. It cannot be flushed: what is meant to arrive in
// parts cannot be held back.
type Buffer struct {
	header http.Header
	limit  int
	status int
	body   bytes.Buffer
}

// NewBuffer returns a buffer for up to limit bytes; 0 is no limit.
func NewBuffer(header http.Header, limit int) *Buffer { return &Buffer{header: header, limit: limit} }

// Header implements http.ResponseWriter.
func (b *Buffer) Header() http.Header { return b.header }

// WriteHeader implements http.ResponseWriter. The first status counts, informational ones do not.
func (b *Buffer) WriteHeader(status int) {
	if b.status == 0 && status >= http.StatusOK {
		b.status = status
	}
}

// Write implements http.ResponseWriter.
func (b *Buffer) Write(p []byte) (int, error) {
	b.WriteHeader(http.StatusOK)
	if b.limit > 0 && b.body.Len()+len(p) > b.limit {
		return 0, ErrAnswerTooLarge
	}
	return b.body.Write(p)
}

// Written and Status tell PocketBase what was answered; the status is 0 before.
func (b *Buffer) Written() bool { return b.status != 0 }

// Status is the status of the answer.
func (b *Buffer) Status() int { return b.status }

// Body is what was written. It is good until the next write.
func (b *Buffer) Body() []byte { return b.body.Bytes() }
