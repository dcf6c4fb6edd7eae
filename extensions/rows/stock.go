package rows

import (
	"errors"
	"math"
	"net/http"
	"strconv"

	"github.com/pocketbase/pocketbase/apis"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/router"
)

// stockHook is the id of the two handlers. They do what PocketBase does behind the hooks of its list and view, except
// that they write faster, so they must be the innermost: a handler with the same priority that is bound later would
// not run.
const (
	stockHook         = "satchelRows"
	stockHookPriority = math.MaxInt
)

// StockHooks is the number of handlers that [BindStock] adds to each of the two hooks; more mean that somebody else
// wants to see the records.
const StockHooks = 1

// BindStock makes PocketBase's own list and view write their records with the encoder of this package. The answers stay
// what they were, to the byte, with a Content-Length. A result that a hook has replaced by something else is left to
// PocketBase.
func BindStock(app core.App) {
	app.OnRecordsListRequest().Bind(&hook.Handler[*core.RecordsListRequestEvent]{
		Id: stockHook, Priority: stockHookPriority, Func: writeStockList,
	})
	app.OnRecordViewRequest().Bind(&hook.Handler[*core.RecordRequestEvent]{
		Id: stockHook, Priority: stockHookPriority, Func: writeStockView,
	})
}

// stockRequest reports that PocketBase's own handler has triggered the hook and not another feature.
func stockRequest(e *core.RequestEvent) bool {
	switch e.Request.Pattern {
	case "GET /api/collections/{collection}/records", "GET /api/collections/{collection}/records/{id}":
		return true
	}
	return false
}

func writeStockList(e *core.RecordsListRequestEvent) error {
	// Of an empty list there is nothing to write, and PocketBase may want to slow its reader down.
	if !stockRequest(e.RequestEvent) || len(e.Records) == 0 || e.Result == nil {
		return e.Next()
	}
	items, ok := e.Result.Items.(*[]*core.Record)
	if !ok || items == nil {
		return e.Next()
	}
	if err := apis.EnrichRecords(e.RequestEvent, e.Records); err != nil {
		return enrichError(e.RequestEvent, "Failed to enrich records", err)
	}
	return AfterCommit(e.App, func() error {
		return Buffered(func(buf []byte) ([]byte, error) {
			buf = append(buf, `{"items":`...)
			start := len(buf)
			buf, err := AppendRecords(buf, *items)
			if err != nil {
				return buf, e.JSON(http.StatusOK, e.Result) // fails as it always did
			}
			if picks(e.RequestEvent) {
				result := *e.Result
				result.Items = rawItems(buf[start:])
				return buf, e.JSON(http.StatusOK, &result) // PocketBase picks the fields
			}
			for _, n := range []struct {
				name  string
				value int
			}{{`,"page":`, e.Result.Page}, {`,"perPage":`, e.Result.PerPage}, {`,"totalItems":`, e.Result.TotalItems}, {`,"totalPages":`, e.Result.TotalPages}} {
				buf = strconv.AppendInt(append(buf, n.name...), int64(n.value), 10)
			}
			buf = append(buf, '}')
			return buf, writeStock(e.RequestEvent, buf)
		})
	})
}

func writeStockView(e *core.RecordRequestEvent) error {
	if !stockRequest(e.RequestEvent) || e.Record == nil {
		return e.Next()
	}
	if err := apis.EnrichRecord(e.RequestEvent, e.Record); err != nil {
		return enrichError(e.RequestEvent, "Failed to enrich record", err)
	}
	return AfterCommit(e.App, func() error {
		return Buffered(func(buf []byte) ([]byte, error) {
			buf, err := AppendRecord(buf, e.Record)
			if err != nil {
				return buf, e.JSON(http.StatusOK, e.Record) // fails as it always did
			}
			if picks(e.RequestEvent) {
				return buf, e.JSON(http.StatusOK, rawItems(buf)) // PocketBase picks the fields
			}
			return buf, writeStock(e.RequestEvent, buf)
		})
	})
}

// picks reports whether the client wants some of the fields only.
func picks(e *core.RequestEvent) bool {
	return e.Request.URL.RawQuery != "" && e.Request.URL.Query().Get("fields") != ""
}

// writeStock sends JSON with the headers of PocketBase's own writer.
func writeStock(e *core.RequestEvent, body []byte) error {
	h := e.Response.Header()
	if h.Get("Content-Type") == "" {
		h.Set("Content-Type", "application/json")
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	e.Response.WriteHeader(http.StatusOK)
	_, err := e.Response.Write(body)
	return err
}

// enrichError passes on what a hook wants the client to see and hides the rest, as PocketBase does.
func enrichError(e *core.RequestEvent, message string, err error) error {
	if known, ok := errors.AsType[*router.ApiError](err); ok {
		return known
	}
	return e.InternalServerError(message, err)
}

// AfterCommit runs fn at once, or after the commit when a hook has wrapped the request in a transaction.
func AfterCommit(app core.App, fn func() error) error {
	tx := app.TxInfo()
	if tx == nil {
		return fn()
	}
	tx.OnComplete(func(err error) error {
		if err != nil {
			return nil //nolint:nilerr // the transaction reports its own failure; there is only no answer to write
		}
		return fn()
	})
	return nil
}
