package account

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/account/archive"
	"github.com/satchelbase/satchel/extensions/account/sealed"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/jobs"
	"github.com/satchelbase/satchel/extensions/operations"
)

const (
	// exportKind is the kind of the runs that export accounts.
	exportKind = "account.export"

	// keyPurpose is what the key of the files is derived for.
	keyPurpose = "account exports"

	// unfinished ends the name of a file that is being written.
	unfinished = ".part"

	// sweepEvery is how often exports that have expired are looked for.
	sweepEvery = time.Hour
)

// Export is a file with the data of an account, or the wish for one.
type Export struct {
	ID        string    `json:"id"`
	State     string    `json:"state" enum:"running,ready,failed"`
	Run       string    `json:"run"`
	CreatedAt time.Time `json:"createdAt"`
	ExpiresAt time.Time `json:"expiresAt"`
	Size      int64     `json:"size"` // bytes, 0 until it is ready
	URL       string    `json:"url"`
}

// exportRow is an export as it is stored.
type exportRow struct {
	ID         string `db:"id"`
	Collection string `db:"collection"`
	Record     string `db:"record"`
	Run        string `db:"run"`
	CreatedAt  int64  `db:"created_at"`
	ReadyAt    int64  `db:"ready_at"`
	Size       int64  `db:"size"`
	ExpiresAt  int64  `db:"expires_at"`
}

func (a *Accounts) exportOf(app core.App, r exportRow) (Export, error) {
	out := Export{
		ID: r.ID, State: "ready", Run: r.Run, CreatedAt: *moment(r.CreatedAt), ExpiresAt: *moment(r.ExpiresAt), Size: r.Size,
		URL: api.Prefix + "/account/exports/" + r.ID,
	}
	if r.ReadyAt > 0 {
		return out, nil
	}
	out.State = "failed"
	status, err := a.deps.Jobs.Get(app, r.Run)
	switch {
	case errors.Is(err, jobs.ErrNotFound):
	case err != nil:
		return out, err
	case !status.Ended():
		out.State = "running"
	}
	return out, nil
}

func (a *Accounts) exportsOf(app core.App, account *core.Record) ([]Export, error) {
	var rows []exportRow
	err := app.ConcurrentDB().Select("*").From(exportsTable).Where(keyOf(account).where()).
		AndWhere(dbx.NewExp("expires_at > {:now}", dbx.Params{"now": a.now().UnixMilli()})).OrderBy("created_at DESC", "id").Limit(50).All(&rows)
	if err != nil {
		return nil, fmt.Errorf("find exports: %w", err)
	}
	out := make([]Export, len(rows))
	for i, r := range rows {
		if out[i], err = a.exportOf(app, r); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// doExport asks for an export. While one is being made, asking again answers that one.
func (a *Accounts) doExport(c *operations.Call, _ struct{}) (Export, error) {
	c.Subject(c.Auth)
	if err := a.recent(c.Event, c.Auth); err != nil {
		return Export{}, err
	}
	known, err := a.exportsOf(c.App, c.Auth)
	if err != nil {
		return Export{}, err
	}
	today := 0
	for _, x := range known {
		if x.State == "running" {
			return x, nil
		}
		if x.CreatedAt.After(a.now().Add(-24 * time.Hour)) {
			today++
		}
	}
	if today >= a.cfg.ExportsPerDay {
		p := api.Fail(ErrExportLimit, fmt.Sprintf("at most %d in 24 hours", a.cfg.ExportsPerDay))
		p.RetryAfter = known[0].CreatedAt.Add(24 * time.Hour).Sub(a.now())
		return Export{}, p
	}
	return a.requestExport(c.App, c.Auth)
}

func (a *Accounts) requestExport(tx core.App, account *core.Record) (Export, error) {
	k, now := keyOf(account), a.now()
	r := exportRow{
		ID: strings.ToLower(rand.Text()), Collection: k.collection, Record: k.record,
		CreatedAt: now.UnixMilli(), ExpiresAt: now.Add(a.cfg.ExportLife).UnixMilli(),
	}
	var err error
	o := jobs.Options{Owner: jobs.OwnerOf(account), Key: k.collection + "/" + k.record}
	if r.Run, err = a.deps.Jobs.Enqueue(tx, exportKind, r.ID, o); err != nil {
		return Export{}, err
	}
	_, err = tx.NonconcurrentDB().Insert(exportsTable, dbx.Params{
		"id": r.ID, "collection": r.Collection, "record": r.Record, "run": r.Run, "created_at": r.CreatedAt, "expires_at": r.ExpiresAt,
	}).Execute()
	if err != nil {
		return Export{}, fmt.Errorf("note export: %w", err)
	}
	return a.exportOf(tx, r)
}

// write makes the archive of an account.
func (a *Accounts) write(ctx context.Context, w io.Writer, account *core.Record, progress func(done int64)) error {
	p, err := a.plan(a.app, account.Collection())
	if err != nil {
		return err
	}
	from := archive.Source{App: a.app, Account: account, Plan: p, Now: a.now()}
	for _, s := range a.deps.Sections {
		if s.Export != nil {
			from.Sections = append(from.Sections, archive.Section{Name: s.Name, Export: s.Export})
		}
	}
	return archive.Write(ctx, w, from, progress)
}

func (a *Accounts) folder() string { return filepath.Join(a.app.DataDir(), "account_exports") }

func (a *Accounts) file(id string) string { return filepath.Join(a.folder(), filepath.Base(id)) }

// workExport writes the file of an export. An attempt that ended in the middle is begun anew.
func (a *Accounts) workExport(ctx context.Context, run *jobs.Job, id string) error {
	var r exportRow
	if err := a.app.ConcurrentDB().Select("*").From(exportsTable).Where(dbx.HashExp{"id": id}).One(&r); err != nil {
		return jobs.Permanent(fmt.Errorf("find export: %w", err)) // deleted with its account
	}
	account, err := a.app.FindRecordById(r.Collection, r.Record)
	if err != nil {
		return jobs.Permanent(fmt.Errorf("find account of export: %w", err))
	}
	size, err := a.writeFile(ctx, r.ID, func(w io.Writer) error {
		return a.write(ctx, w, account, func(done int64) { run.Progress(done, 0) })
	})
	if errors.Is(err, ErrTooLarge) {
		return jobs.Permanent(err)
	}
	if err != nil {
		return err
	}
	return a.app.RunInTransaction(func(tx core.App) error {
		_, err := tx.NonconcurrentDB().Update(exportsTable, dbx.Params{"ready_at": a.now().UnixMilli(), "size": size}, dbx.HashExp{"id": r.ID}).Execute()
		if err != nil {
			return fmt.Errorf("note that the export is ready: %w", err)
		}
		return run.Checkpoint(tx, "written")
	})
}

// writeFile seals what fill writes into a file that appears under its name when it is complete.
func (a *Accounts) writeFile(ctx context.Context, id string, fill func(w io.Writer) error) (size int64, err error) {
	if err := os.MkdirAll(a.folder(), 0o700); err != nil {
		return 0, fmt.Errorf("make folder of exports: %w", err)
	}
	part := a.file(id) + unfinished
	file, err := os.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return 0, fmt.Errorf("make file of export: %w", err)
	}
	defer func() {
		_ = file.Close()
		if err != nil {
			_ = os.Remove(part)
		}
	}()
	w, err := sealed.NewWriter(file, a.deps.Key(keyPurpose), id)
	if err != nil {
		return 0, err
	}
	if err := fill(&bounded{w: w, left: int64(a.cfg.ExportSize), ctx: ctx}); err != nil {
		return 0, err
	}
	if err := errors.Join(w.Close(), file.Sync(), file.Close()); err != nil {
		return 0, fmt.Errorf("write export: %w", err)
	}
	if err := os.Rename(part, a.file(id)); err != nil {
		return 0, fmt.Errorf("name file of export: %w", err)
	}
	return w.Size(), nil
}

// bounded ends with the context and when too much is written.
type bounded struct {
	w    io.Writer
	left int64
	ctx  context.Context //nolint:containedctx // a writer has no other way to end
}

func (b *bounded) Write(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	if b.left -= int64(len(p)); b.left < 0 {
		return 0, ErrTooLarge
	}
	return b.w.Write(p)
}

// handleDownload sends an export to its owner, whole or a range of it. To anybody else it does not exist.
func (a *Accounts) handleDownload(e *core.RequestEvent) error {
	e.Response.Header().Set("Cache-Control", "no-store")
	if e.Auth == nil {
		return api.ErrUnauthorized
	}
	if err := a.recent(e, e.Auth); err != nil {
		return err
	}
	var rows []exportRow
	err := e.App.ConcurrentDB().Select("*").From(exportsTable).Where(keyOf(e.Auth).where()).
		AndWhere(dbx.HashExp{"id": e.Request.PathValue("id")}).
		AndWhere(dbx.NewExp("ready_at > 0 AND expires_at > {:now}", dbx.Params{"now": a.now().UnixMilli()})).All(&rows)
	if err != nil {
		return fmt.Errorf("find export: %w", err)
	}
	if len(rows) == 0 {
		return api.ErrNotFound
	}
	r := rows[0]
	file, err := os.Open(a.file(r.ID))
	if errors.Is(err, fs.ErrNotExist) {
		return api.ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("open export: %w", err)
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("look at export: %w", err)
	}
	plain, err := sealed.NewReader(file, info.Size(), a.deps.Key(keyPurpose), r.ID)
	if err != nil {
		return fmt.Errorf("open export: %w", err)
	}
	if err := a.deps.Audit(e.App, e, "account.export_downloaded", "success", e.Auth, map[string]any{"export": r.ID}); err != nil {
		return err
	}
	h := e.Response.Header()
	h.Set("Content-Type", "application/zip")
	h.Set("Content-Disposition", `attachment; filename="account-`+moment(r.CreatedAt).Format("2006-01-02")+`.zip"`)
	h.Set("ETag", `"`+r.ID+`"`)
	http.ServeContent(e.Response, e.Request, "", time.UnixMilli(r.ReadyAt), plain)
	return nil
}

// removeExports deletes exports, their files first.
func (a *Accounts) removeExports(ctx context.Context, where dbx.Expression) error {
	for {
		var rows []exportRow
		if err := a.app.ConcurrentDB().Select("*").From(exportsTable).Where(where).Limit(100).All(&rows); err != nil {
			return fmt.Errorf("find exports: %w", err)
		}
		if len(rows) == 0 {
			return nil
		}
		for _, r := range rows {
			if err := ctx.Err(); err != nil {
				return err
			}
			for _, name := range []string{a.file(r.ID), a.file(r.ID) + unfinished} {
				if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return fmt.Errorf("delete export: %w", err)
				}
			}
			if _, err := a.app.NonconcurrentDB().Delete(exportsTable, dbx.HashExp{"id": r.ID}).Execute(); err != nil {
				return fmt.Errorf("forget export: %w", err)
			}
		}
	}
}

// sweep deletes what has expired, and files that no row knows, such as those of accounts that were deleted past this
// feature.
func (a *Accounts) sweep(ctx context.Context) error {
	err := a.removeExports(ctx, dbx.NewExp("expires_at <= {:now}", dbx.Params{"now": a.now().UnixMilli()}))
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(a.folder())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read folder of exports: %w", err)
	}
	for _, entry := range entries {
		id, _ := strings.CutSuffix(entry.Name(), unfinished)
		var n int
		if err := a.app.ConcurrentDB().Select("count(*)").From(exportsTable).Where(dbx.HashExp{"id": id}).Row(&n); err != nil {
			return fmt.Errorf("find export: %w", err)
		}
		if n == 0 {
			if err := os.Remove(filepath.Join(a.folder(), entry.Name())); err != nil {
				return fmt.Errorf("delete export without an owner: %w", err)
			}
		}
	}
	return nil
}

// tend looks for what other processes have scheduled and for exports that have expired, until ctx ends.
func (a *Accounts) tend(ctx context.Context) {
	ticker := time.NewTicker(gateEvery)
	defer ticker.Stop()
	var swept time.Time
	var seen uint64
	for {
		version := uint64(0)
		if a.deps.Version != nil {
			version = a.deps.Version(deletionsTable)
		}
		if version == 0 || version != seen {
			if err := a.reload(); err != nil {
				a.warn(ctx, err)
				version = 0
			}
			seen = version
		}
		if now := time.Now(); now.Sub(swept) >= sweepEvery {
			swept = now
			a.warn(ctx, a.sweep(ctx))
			a.tell(ctx)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// tell puts what the checks find into the log, where operators look who do not run checks.
func (a *Accounts) tell(ctx context.Context) {
	h := &extensions.Host{App: a.app, Logger: a.logger}
	for _, c := range a.checks() {
		if r := c.Run(ctx, h); r.Level >= extensions.Warn && ctx.Err() == nil {
			a.logger.Warn("accounts need a look", "check", c.Name, "found", r.Message, "next", r.Next)
		}
	}
}

func (a *Accounts) warn(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil {
		a.logger.Warn("accounts could not be looked after", "error", err)
	}
}
