package trigger

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/search"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/changes"
)

// Table remembers where each trigger began: one that is new to the database must not see what came before it, though the
// position that it shares with the others may be behind.
const Table = "push_triggers"

// Migration creates the table.
func Migration(unix int64) extensions.Migration {
	return extensions.Tables(unix, "create_triggers", []string{
		`CREATE TABLE ` + Table + ` (name TEXT PRIMARY KEY NOT NULL, epoch TEXT NOT NULL, seq INTEGER NOT NULL) WITHOUT ROWID, STRICT`,
	}, Table)
}

// begin lets new triggers begin at the present, and forgets those that the program no longer has.
func (t *Triggers) begin(ctx context.Context) error {
	names := slices.Sorted(maps.Keys(t.byName))
	var now changes.Position
	if len(names) > 0 {
		if _, err := t.deps.Log.Reader(reader).Position(ctx); err != nil {
			return err
		}
		var err error
		if now, err = t.deps.Log.Horizon(ctx); err != nil {
			return err
		}
	}
	known, err := starts(t.app)
	if err != nil {
		return err
	}
	if t.begun = known; slices.Equal(slices.Sorted(maps.Keys(known)), names) {
		return nil
	}
	return t.app.RunInTransaction(func(tx core.App) error {
		kept := make([]any, len(names))
		for i, name := range names {
			kept[i] = name
			_, err := tx.NonconcurrentDB().NewQuery(`INSERT INTO ` + Table + ` VALUES ({:name}, {:epoch}, {:seq}) ON CONFLICT DO NOTHING`).
				Bind(dbx.Params{"name": name, "epoch": now.Epoch, "seq": now.Seq}).Execute()
			if err != nil {
				return fmt.Errorf("remember the beginning of trigger %s: %w", name, err)
			}
		}
		if _, err := tx.NonconcurrentDB().Delete(Table, dbx.NotIn("name", kept...)).Execute(); err != nil {
			return fmt.Errorf("forget triggers: %w", err)
		}
		t.begun, err = starts(tx)
		return err
	})
}

func starts(app core.App) (map[string]changes.Position, error) {
	var rows []struct {
		Name  string `db:"name"`
		Epoch string `db:"epoch"`
		Seq   int64  `db:"seq"`
	}
	if err := app.DB().Select("name", "epoch", "seq").From(Table).All(&rows); err != nil {
		return nil, fmt.Errorf("read the beginning of triggers: %w", err)
	}
	out := make(map[string]changes.Position, len(rows))
	for _, r := range rows {
		out[r.Name] = changes.Position{Epoch: r.Epoch, Seq: r.Seq}
	}
	return out, nil
}

// Check finds triggers that can never do anything, or will always fail.
func (t *Triggers) Check(ctx context.Context, h *extensions.Host) extensions.Result {
	if len(t.byName) == 0 {
		return extensions.Result{Level: extensions.Skip, Message: "none is declared"}
	}
	waiting := 0
	for _, name := range slices.Sorted(maps.Keys(t.byName)) {
		one := t.byName[name]
		c, err := h.App.FindCachedCollectionByNameOrId(one.Collection)
		if err != nil {
			waiting++
			continue
		}
		if _, err := t.deps.Log.Collection(ctx, c.Id); errors.Is(err, changes.ErrNotCaptured) {
			return extensions.Result{
				Level: extensions.Fail, Message: fmt.Sprintf("the changes of %s, which trigger %s is for, are not recorded", c.Name, name),
				Next: "see SATCHEL_CHANGES_EXCLUDE",
			}
		}
		if one.If == "" {
			continue
		}
		resolver := core.NewRecordFieldResolver(h.App, c, &core.RequestInfo{Context: core.RequestInfoContextDefault}, true)
		if _, err := search.FilterData(one.If).BuildExpr(resolver); err != nil {
			return extensions.Result{
				Level: extensions.Fail, Message: fmt.Sprintf("the condition of trigger %s does not fit %s: %v", name, c.Name, err),
				Next: "mend it, and then its dead jobs by satchel jobs retry",
			}
		}
	}
	text := fmt.Sprintf("%d triggers", len(t.byName))
	if waiting > 0 {
		text += fmt.Sprintf(", %d of them for collections that do not exist", waiting)
	}
	return extensions.Result{Level: extensions.OK, Message: text}
}
