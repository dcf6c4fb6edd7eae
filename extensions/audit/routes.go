package audit

import (
	"bufio"
	"cmp"
	"context"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit/ledger"
)

const (
	defaultLimit = 25
	maxLimit     = 100

	// exportChunk is how many entries an export holds in memory.
	exportChunk = 500

	// exportPatience is how long a client may take for a chunk.
	exportPatience = time.Minute
)

// Formats of exports.
const (
	NDJSON = "ndjson"
	CSV    = "csv"
)

func (l *Log) routes(may May) func(g *router.RouterGroup[*core.RequestEvent]) {
	guarded := func(role string, next func(e *core.RequestEvent) error) func(e *core.RequestEvent) error {
		return func(e *core.RequestEvent) error {
			e.Response.Header().Set("Cache-Control", "no-store")
			if err := may(e, role); err != nil {
				return err
			}
			return next(e)
		}
	}
	return func(g *router.RouterGroup[*core.RequestEvent]) {
		g.GET("/audit", guarded(roleViewer, l.handleList))
		g.GET("/audit/export", guarded(roleOperator, l.handleExport))
		g.POST("/audit/verify", guarded(roleOperator, l.handleVerify))
	}
}

func (l *Log) handleList(e *core.RequestEvent) error {
	q := e.Request.URL.Query()
	f, err := parseFilter(q, "cursor", "limit")
	if err != nil {
		return err
	}
	limit := defaultLimit
	if text := q.Get("limit"); text != "" {
		if limit, err = strconv.Atoi(text); err != nil || limit < 1 || limit > maxLimit {
			return &api.Problem{Code: ErrFilter, Errors: []api.FieldError{api.Invalid("limit", ErrFilter, "a number from 1 to 100")}}
		}
	}
	list, next, err := l.List(e.Request.Context(), e.App.ConcurrentDB(), f, q.Get("cursor"), limit)
	if err != nil {
		return err
	}
	if list == nil {
		list = []View{}
	}
	return api.WritePage(e, list, api.Page{Limit: limit, NextCursor: next})
}

// handleExport streams what the filter chooses, the oldest first. The entry that says so is written before the first
// byte, so that nobody takes the log away unseen.
func (l *Log) handleExport(e *core.RequestEvent) error {
	q := e.Request.URL.Query()
	f, err := parseFilter(q, "format")
	if err != nil {
		return err
	}
	format := cmp.Or(q.Get("format"), NDJSON)
	media := map[string]string{NDJSON: "application/x-ndjson", CSV: "text/csv; charset=utf-8"}[format]
	if media == "" {
		return &api.Problem{Code: ErrFilter, Errors: []api.FieldError{api.Invalid("format", ErrFilter, "ndjson or csv")}}
	}
	entry := From(e)
	entry.Action, entry.Details = "audit.exported", map[string]any{"filter": f.text(), "format": format}
	if err := l.Append(e.App, entry); err != nil {
		return err
	}
	e.Response.Header().Set("Content-Type", media)
	e.Response.Header().Set("Content-Disposition", `attachment; filename="audit.`+format+`"`)
	control := http.NewResponseController(e.Response)
	e.Response.WriteHeader(http.StatusOK)
	err = Export(e.Request.Context(), e.App.ConcurrentDB(), f, format, e.Response, func() {
		_ = control.SetWriteDeadline(time.Now().Add(exportPatience)) // the server's own deadline is for whole answers
		_ = control.Flush()
	})
	if err != nil { // the answer has begun: only a broken connection tells the client that it is not whole
		l.logger.ErrorContext(e.Request.Context(), "an export of the audit ended early", "error", err)
		panic(http.ErrAbortHandler)
	}
	return nil
}

func (l *Log) handleVerify(e *core.RequestEvent) error {
	if err := api.Bind(e, &struct{}{}); err != nil {
		return err
	}
	if !l.verifying.TryLock() {
		return &api.Problem{Code: ErrBusy, RetryAfter: 10 * time.Second}
	}
	defer l.verifying.Unlock()
	report, err := l.Verify(e.Request.Context(), e.App, nil)
	if err != nil {
		return err
	}
	outcome := Success
	if !report.OK {
		outcome = Failure
	}
	entry := From(e)
	entry.Action, entry.Outcome, entry.Details = "audit.verified", outcome, map[string]any{"entries": report.Entries}
	if err := l.Append(e.App, entry); err != nil {
		return err
	}
	return api.Write(e, http.StatusOK, report)
}

// csvHead names the columns of a CSV export.
func csvHead() []string {
	return []string{
		"id", "at", "action", "outcome", "actor_kind", "actor_collection", "actor_id", "act_as_collection", "act_as_id",
		"subject_kind", "subject_collection", "subject_id", "session", "request", "address", "details",
	}
}

func (v View) csv() []string {
	var subject, actAs Who
	if v.Subject != nil {
		subject = *v.Subject
	}
	if v.ActAs != nil {
		actAs = *v.ActAs
	}
	row := []string{
		v.ID, v.At.Format(time.RFC3339Nano), v.Action, v.Outcome, v.Actor.Kind, v.Actor.Collection, v.Actor.ID, actAs.Collection, actAs.ID,
		subject.Kind, subject.Collection, subject.ID, v.Session, v.Request, v.Address, string(v.Details),
	}
	for i, cell := range row { // what begins like this, a spreadsheet would execute
		if cell != "" && (cell[0] == '=' || cell[0] == '+' || cell[0] == '-' || cell[0] == '@' || cell[0] == '\t' || cell[0] == '\r') {
			row[i] = "'" + cell
		}
	}
	return row
}

// Export writes what the filter chooses to w, the oldest first, up to the entry that is the newest now. Memory is
// bounded. pause is called after every chunk and may be nil.
func Export(ctx context.Context, db dbx.Builder, f Filter, format string, w io.Writer, pause func()) error {
	until, err := ledger.Newest(db)
	if err != nil {
		return err
	}
	q, err := f.query(db)
	if err != nil {
		return err
	}
	q.where = append(q.where, "c.id <= {:until}")
	q.params["until"] = until.ID
	buffer := bufio.NewWriter(w)
	write := func(v View) error { return json.NewEncoder(buffer).Encode(v) }
	var table *csv.Writer
	if format == CSV {
		table = csv.NewWriter(buffer)
		write = func(v View) error { return table.Write(v.csv()) }
		if err := table.Write(csvHead()); err != nil {
			return fmt.Errorf("write export: %w", err)
		}
	}
	var after *position
	for {
		chunk, err := q.page(ctx, db, after, exportChunk, true)
		if err != nil {
			return err
		}
		for _, v := range chunk {
			if err := write(v); err != nil {
				return fmt.Errorf("write export: %w", err)
			}
		}
		if table != nil {
			table.Flush()
			if err := table.Error(); err != nil {
				return fmt.Errorf("write export: %w", err)
			}
		}
		if err := buffer.Flush(); err != nil {
			return fmt.Errorf("write export: %w", err)
		}
		if pause != nil {
			pause()
		}
		if len(chunk) < exportChunk {
			return nil
		}
		after = &chunk[len(chunk)-1].key
	}
}
