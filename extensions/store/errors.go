package store

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/pocketbase/dbx"
	validation "github.com/pocketbase/ozzo-validation/v4"
	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/store/gate"
)

// ErrUnavailable is the answer to a request that the database could not serve through no fault of the client: it is
// busy, the disk failed, or it is unknown whether a commit survives a power failure. The client keeps its data and
// sends the request again with the same idempotency key.
var ErrUnavailable = &extensions.Code{
	Name: "store.unavailable", Status: http.StatusServiceUnavailable, Title: "The database cannot take the request right now",
}

// Reasons of a [Failure] that other causes stand behind.
var (
	// ErrBusy: the write lock was not free in time.
	ErrBusy = errors.New("the database is busy")

	// ErrNotDurable: the commit is visible but its fsync failed, so it may be lost with the power.
	ErrNotDurable = errors.New("the commit could not be made durable")

	// ErrStorage: SQLite reports the disk, the file or the memory.
	ErrStorage = errors.New("the database storage failed")

	// ErrAborted: SQLite has rolled the transaction back, for example because its context ended.
	ErrAborted = errors.New("the transaction was rolled back")

	// ErrClosed: the application has closed the database.
	ErrClosed = errors.New("the database is closed")
)

// Retry-After of the reasons, in the order of how soon they pass: a lock is free again in a moment, a disk is not.
const (
	retryBusy    = time.Second
	retryStorage = 10 * time.Second
)

// Failure is an error of the database that the HTTP edge answers with [ErrUnavailable]. It matches ErrUnavailable, its
// Reason and its Cause with errors.Is. Its text never contains SQLite's words for a lock, because PocketBase repeats
// statements that fail with these, and the wait was long enough already.
type Failure struct {
	Reason     error
	RetryAfter time.Duration
	Cause      error
}

// Error names the reason and, unless the reason says it all, the cause.
func (f *Failure) Error() string {
	if f.Cause == nil || errors.Is(f.Reason, ErrBusy) {
		return f.Reason.Error()
	}
	return fmt.Sprintf("%v: %v", f.Reason, f.Cause)
}

// Unwrap makes the failure match what it stands for.
func (f *Failure) Unwrap() []error {
	list := []error{ErrUnavailable, f.Reason}
	if f.Cause != nil {
		list = append(list, f.Cause)
	}
	return list
}

func busy(cause error) error {
	return &Failure{Reason: ErrBusy, RetryAfter: retryBusy, Cause: cause}
}

// lockFailure explains why the write lock was not got.
func lockFailure(err error, patience time.Duration) error {
	if !errors.Is(err, gate.ErrPatience) {
		return err
	}
	return &Failure{
		RetryAfter: retryBusy, Cause: err,
		Reason: fmt.Errorf("%w: no write lock within %s; a transaction is too long, or code inside a transaction writes through the outer app instead of txApp", ErrBusy, patience),
	}
}

func notDurable(cause error) error {
	return &Failure{Reason: ErrNotDurable, RetryAfter: retryStorage, Cause: cause}
}

// Primary result codes of SQLite, see https://www.sqlite.org/rescode.html.
const (
	codeError    = 1
	codeBusy     = 5
	codeLocked   = 6
	codeNoMem    = 7
	codeReadOnly = 8
	codeIOErr    = 10
	codeCorrupt  = 11
	codeFull     = 13
	codeCantOpen = 14
	codeProtocol = 15
	codeNotADB   = 26
)

// mapped turns what is not the statement's own fault into a Failure.
func mapped(err error) error {
	if err == nil || errors.Is(err, ErrUnavailable) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	code, ok := resultCode(err)
	if !ok {
		return err
	}
	switch code & 0xff {
	case codeBusy, codeLocked:
		return busy(err)
	case codeNoMem, codeReadOnly, codeIOErr, codeCorrupt, codeFull, codeCantOpen, codeProtocol, codeNotADB:
		return &Failure{Reason: ErrStorage, RetryAfter: retryStorage, Cause: err}
	default:
		return err
	}
}

// IsUnavailable reports whether an error of a handler is one of the database's state, wherever PocketBase has put it.
func IsUnavailable(err error) bool {
	_, ok := find(err)
	return ok || errors.Is(err, ErrUnavailable)
}

// find looks for a Failure below everything that PocketBase wraps errors in. Some of these wrappers hide their content
// from errors.As.
func find(err error) (*Failure, bool) {
	if err == nil {
		return nil, false
	}
	if f, ok := errors.AsType[*Failure](err); ok {
		return f, true
	}
	if list, ok := errors.AsType[dbx.Errors](err); ok {
		for _, inner := range list {
			if f, ok := find(inner); ok {
				return f, true
			}
		}
	}
	if fields, ok := errors.AsType[validation.Errors](err); ok {
		for _, inner := range fields {
			if f, ok := find(inner); ok {
				return f, true
			}
		}
	}
	if item, ok := errors.AsType[*apis.BatchResponseError](err); ok { // which shows its error nowhere else
		if data, ok := item.Resolve(map[string]any{}).(map[string]any); ok {
			inner, _ := data["response"].(error)
			return find(inner)
		}
	}
	if stock, ok := errors.AsType[*router.ApiError](err); ok {
		if inner, ok := stock.RawData().(error); ok {
			return find(inner)
		}
	}
	return nil, false
}
