package teams

import (
	"context"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
)

const (
	// sweepEvery is how often ended invitations and what is known of mails are removed.
	sweepEvery = 6 * time.Hour

	// sweepChunk is how many invitations go in one transaction, so that other writers hardly wait.
	sweepChunk = 100
)

// start sweeps until the server stops.
func (t *Teams) start(ctx context.Context, h *extensions.Host) error {
	ctx, t.sweeping = context.WithCancel(ctx)
	t.swept.Go(func() {
		ticker := time.NewTicker(sweepEvery)
		defer ticker.Stop()
		for {
			if err := t.sweep(ctx, h.App); err != nil && ctx.Err() == nil {
				h.Logger.Warn("teams could not be swept", "error", err)
			}
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
		}
	})
	return nil
}

func (t *Teams) stop(context.Context) error {
	if t.sweeping != nil {
		t.sweeping()
		t.swept.Wait()
	}
	return nil
}

// sweep removes invitations that ended some time ago, for they hold addresses of people who may have no account, and
// counts the teams that raw SQL has left without an owner.
func (t *Teams) sweep(ctx context.Context, app core.App) error {
	before := t.now().Add(-closed).UTC().Format("2006-01-02 15:04:05.000Z")
	for more := true; more; {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := app.RunInTransaction(func(tx core.App) error {
			var list []*core.Record
			err := tx.RecordQuery(invitationsCollection).AndWhere(dbx.NewExp("expiresAt < {:before}", dbx.Params{"before": before})).
				OrderBy("expiresAt").Limit(sweepChunk).All(&list)
			if err != nil {
				return fmt.Errorf("find old invitations: %w", err)
			}
			more = len(list) == sweepChunk
			for _, inv := range list {
				if err := tx.Delete(inv); err != nil {
					return fmt.Errorf("delete invitation: %w", err)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	_, err := app.NonconcurrentDB().Delete(mailsTable, dbx.NewExp("at < {:before}", dbx.Params{"before": t.now().Add(-day).UnixMilli()})).Execute()
	if err != nil {
		return fmt.Errorf("delete marks of mails: %w", err)
	}
	var ownerless int64
	err = app.ConcurrentDB().NewQuery(`SELECT count(*) FROM teams t
		WHERE NOT EXISTS (SELECT 1 FROM team_members m WHERE m.team = t.id AND m.role = 'owner')`).WithContext(ctx).Row(&ownerless)
	if err != nil {
		return fmt.Errorf("count teams without an owner: %w", err)
	}
	t.ownerless.Store(ownerless)
	return nil
}
