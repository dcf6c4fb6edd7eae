package idempotency

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
)

const (
	purgeEvery = time.Hour

	// A chunk is deleted in one statement, which holds the writer: a thousand rows, or a few with long answers, whose pages
	// SQLite visits one by one.
	purgeRows  = 1000
	purgeBytes = 4 << 20

	// purgePause lets writers in who came while a chunk was deleted.
	purgePause = 5 * time.Millisecond
)

func (k *keeper) start(ctx context.Context, app core.App) {
	ctx, k.stop = context.WithCancel(ctx)
	k.done = make(chan struct{})
	go func() {
		defer close(k.done)
		k.tend(ctx, app)
	}()
}

func (k *keeper) end(ctx context.Context) error {
	if k.stop == nil {
		return nil
	}
	k.stop()
	select {
	case <-k.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the purge: %w", ctx.Err())
	}
}

// tend counts what is there, and deletes what has expired, until ctx ends.
func (k *keeper) tend(ctx context.Context, app core.App) {
	var n int64
	if err := app.ConcurrentDB().NewQuery("SELECT count(*) FROM idempotency_keys").WithContext(ctx).Row(&n); err == nil {
		k.live.Add(n)
	}
	ticker := time.NewTicker(purgeEvery)
	defer ticker.Stop()
	for {
		if err := k.purge(ctx, app); err != nil && ctx.Err() == nil {
			k.logger.Warn("expired idempotency keys could not be deleted", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// expired is a row that may go.
type expired struct {
	ID      []byte `db:"id"`
	Size    int    `db:"size"`
	Status  int    `db:"status"`
	Called  bool   `db:"called"`
	Route   string `db:"route"`
	Request string `db:"request"`
}

// purge deletes what has expired. An operation that was never finished is told of: its calls may have had effects that
// nothing here knows about.
func (k *keeper) purge(ctx context.Context, app core.App) error {
	now := k.now().UnixMilli()
	for {
		var rows []expired
		err := app.ConcurrentDB().NewQuery(`SELECT id, coalesce(length(body), 0) AS size, status, called, route, request
			FROM idempotency_keys WHERE expires_at <= {:now} ORDER BY expires_at LIMIT {:limit}`).
			Bind(dbx.Params{"now": now, "limit": purgeRows}).WithContext(ctx).All(&rows)
		if err != nil {
			return fmt.Errorf("find expired idempotency keys: %w", err)
		}
		if len(rows) == 0 {
			return nil
		}
		ids, size := make([]string, 0, len(rows)), 0
		for _, r := range rows {
			if len(ids) > 0 && size+r.Size > purgeBytes {
				break
			}
			size += r.Size
			ids = append(ids, hex.EncodeToString(r.ID))
			if r.Status == 0 && r.Called {
				k.logger.Warn("an operation was never finished; see at the other service what became of it", "route", r.Route, "requestId", r.Request)
			}
		}
		list, err := json.Marshal(ids)
		if err != nil {
			return fmt.Errorf("marshal ids: %w", err)
		}
		result, err := app.NonconcurrentDB().NewQuery(`DELETE FROM idempotency_keys
			WHERE id IN (SELECT unhex(value) FROM json_each({:ids})) AND expires_at <= {:now}`).
			Bind(dbx.Params{"ids": string(list), "now": now}).WithContext(ctx).Execute()
		if err != nil {
			return fmt.Errorf("delete expired idempotency keys: %w", err)
		}
		if n, err := result.RowsAffected(); err == nil {
			k.live.Add(-n)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(purgePause):
		}
	}
}

// checkUnfinished tells of operations that wait for an attempt that may never come.
func checkUnfinished(ctx context.Context, h *extensions.Host) extensions.Result {
	var n int
	err := h.App.ConcurrentDB().NewQuery("SELECT count(*) FROM idempotency_keys WHERE status = 0 AND lease_until <= {:now}").
		Bind(dbx.Params{"now": time.Now().UnixMilli()}).WithContext(ctx).Row(&n)
	switch {
	case err != nil:
		return extensions.Result{Level: extensions.Warn, Message: err.Error(), Next: "see the log"}
	case n > 0:
		return extensions.Result{
			Level: extensions.Info, Message: fmt.Sprintf("%d operations with calls to other services are begun and not finished", n),
			Next: "they go on when the app repeats the request; the log names those that expire",
		}
	}
	return extensions.Result{Message: "none"}
}
