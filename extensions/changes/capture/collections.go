package capture

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
)

// Collection is a collection that is, or was, captured. A collection that is deleted and made again under the same id
// is another one here, and so is one whose triggers were lost for a while.
type Collection struct {
	C      int64  `db:"c"` // internal number, the column c of the tables
	ID     string `db:"collection"`
	Name   string `db:"name"`
	Schema string `db:"fields"` // names the state of its type and fields; rules are not part of it
	Base   int64  `db:"base"`   // capture began with this number: a position before it knows nothing of the collection
	Gone   int64  `db:"gone"`   // the number with which capture ended, 0 while it goes on

	Changed int64 `db:"changed"` // the number of the last change of the definition
	Filled  bool  `db:"filled"`  // records from before Base have heads
}

// List reads all captured collections, those that are gone included.
func List(db dbx.Builder) ([]Collection, error) {
	var list []Collection
	err := db.NewQuery("SELECT c, collection, name, fields, base, gone, changed, filled FROM changes_collections ORDER BY c").All(&list)
	if err != nil {
		return nil, fmt.Errorf("read captured collections: %w", err)
	}
	return list, nil
}

// Excluded reports whether the operator does not want the collection to be captured.
type Excluded func(c *core.Collection) bool

// fingerprint names the fields of a collection: what the column-less triggers cannot see change.
func fingerprint(c *core.Collection) string {
	sum := sha256.Sum256([]byte(c.Type + "\n" + c.Fields.String()))
	return hex.EncodeToString(sum[:8])
}

// Capturable reports whether the collection has a table of records that are not PocketBase's own.
func Capturable(c *core.Collection) bool { return !c.IsView() && !strings.HasPrefix(c.Name, "_") }

// Sync brings the triggers and the list of collections in order. What was lost meanwhile cannot be told, so a
// collection whose triggers are not as they should be begins anew.
func Sync(app core.App, excluded Excluded) error {
	return app.RunInTransaction(func(tx core.App) error {
		all, err := tx.FindAllCollections()
		if err != nil {
			return fmt.Errorf("list collections: %w", err)
		}
		known, err := List(tx.DB())
		if err != nil {
			return err
		}
		stored, err := StoredTriggers(tx.DB())
		if err != nil {
			return err
		}
		rest := map[string]Collection{}
		for _, k := range known {
			if k.Gone == 0 {
				rest[k.ID] = k
			}
		}
		for _, c := range all {
			if !Capturable(c) || excluded(c) {
				continue
			}
			k, ok := rest[c.Id]
			delete(rest, c.Id)
			if err := ensure(tx.DB(), c, k, ok, stored); err != nil {
				return fmt.Errorf("capture %s: %w", c.Name, err)
			}
		}
		for _, k := range rest {
			if err := retire(tx.DB(), k); err != nil {
				return fmt.Errorf("end capture of %s: %w", k.Name, err)
			}
		}
		if known, err = List(tx.DB()); err != nil {
			return err
		}
		var live []int64
		for _, k := range known {
			if k.Gone == 0 {
				live = append(live, k.C)
			}
		}
		return dropTriggers(tx.DB(), stored, live)
	})
}

// Mend begins the capture of the collections with these ids anew, and brings everything else in order.
func Mend(app core.App, excluded Excluded, ids []string) error {
	err := app.RunInTransaction(func(tx core.App) error {
		for _, id := range ids {
			k, ok, err := Live(tx.DB(), id)
			if err != nil || !ok {
				return err
			}
			c, err := tx.FindCollectionByNameOrId(id)
			if err != nil {
				return fmt.Errorf("find collection: %w", err)
			}
			if err := renewCapture(tx.DB(), c, k); err != nil {
				return fmt.Errorf("capture %s anew: %w", c.Name, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return Sync(app, excluded)
}

// ensure begins or repairs the capture of one collection, or notes that its definition has changed.
func ensure(db dbx.Builder, c *core.Collection, k Collection, known bool, stored map[string]string) error {
	if !known {
		return begin(db, c)
	}
	if WrongTriggers(stored, k.C, c.Name) == "" {
		if k.Name == c.Name && k.Schema == fingerprint(c) {
			return nil
		}
		return redefine(db, c, k)
	}
	return renewCapture(db, c, k)
}

// renewCapture begins the capture of a collection anew. The old one ends without a Gone: the collection is still there.
func renewCapture(db dbx.Builder, c *core.Collection, k Collection) error {
	if err := Exec(db, "UPDATE changes_collections SET gone = "+HorizonSQL+" + 1, gone_at = unixepoch() WHERE c = {:c}", dbx.Params{"c": k.C}); err != nil {
		return err
	}
	for name := range triggers(k.C, c.Name) {
		if err := Exec(db, "DROP TRIGGER IF EXISTS "+Quote(name), nil); err != nil {
			return err
		}
	}
	return begin(db, c)
}

// begin starts to capture a collection. Records that are there already get their heads later, by the reader's side.
func begin(db dbx.Builder, c *core.Collection) error {
	result, err := db.NewQuery("INSERT INTO changes_collections (collection, name, fields) VALUES ({:id}, {:name}, {:fields})").
		Bind(dbx.Params{"id": c.Id, "name": c.Name, "fields": fingerprint(c)}).Execute()
	if err != nil {
		return fmt.Errorf("add collection: %w", err)
	}
	n, err := result.LastInsertId()
	if err != nil {
		return err
	}
	seq, err := Append(db, n, "", Reset)
	if err != nil {
		return err
	}
	if err := createTriggers(db, n, c.Name); err != nil {
		return err
	}
	return Exec(db, "UPDATE changes_collections SET base = {:seq}, changed = {:seq}, filled = NOT EXISTS (SELECT 1 FROM "+Quote(c.Name)+") WHERE c = {:c}",
		dbx.Params{"seq": seq, "c": n})
}

// redefine notes that the definition has changed.
func redefine(db dbx.Builder, c *core.Collection, k Collection) error {
	seq, err := Append(db, k.C, "", Schema)
	if err != nil {
		return err
	}
	return Exec(db, "UPDATE changes_collections SET name = {:name}, fields = {:fields}, changed = {:seq} WHERE c = {:c}",
		dbx.Params{"name": c.Name, "fields": fingerprint(c), "seq": seq, "c": k.C})
}

// retire ends the capture of a collection that is deleted or excluded.
func retire(db dbx.Builder, k Collection) error {
	seq, err := Append(db, k.C, "", Gone)
	if err != nil {
		return err
	}
	return Exec(db, "UPDATE changes_collections SET gone = {:seq}, gone_at = unixepoch() WHERE c = {:c}", dbx.Params{"seq": seq, "c": k.C})
}

// insideSave is just outside PocketBase's handlers that change the tables (priority 99), so that the transaction opened
// here is theirs too.
const insideSave = 98

// Bind keeps the triggers in step with the collections, in the transaction of the change.
func Bind(app core.App, excluded Excluded) {
	after := func(do func(tx core.App, c *core.Collection) error) *hook.Handler[*core.CollectionEvent] {
		return &hook.Handler[*core.CollectionEvent]{Id: "satchelChanges", Priority: insideSave, Func: func(e *core.CollectionEvent) error {
			if !Capturable(e.Collection) {
				return e.Next()
			}
			outer := e.App
			defer func() { e.App = outer }()
			return outer.RunInTransaction(func(tx core.App) error {
				e.App = tx
				if err := e.Next(); err != nil {
					return err
				}
				if !Installed(tx) {
					return nil
				}
				if err := do(tx, e.Collection); err != nil {
					return fmt.Errorf("capture changes of %s: %w", e.Collection.Name, err)
				}
				return nil
			})
		}}
	}
	app.OnCollectionCreateExecute().Bind(after(excluded.saved))
	app.OnCollectionUpdateExecute().Bind(after(excluded.saved))
	app.OnCollectionDeleteExecute().Bind(after(deleted))
}

func (excluded Excluded) saved(tx core.App, c *core.Collection) error {
	k, ok, err := Live(tx.DB(), c.Id)
	if err != nil {
		return err
	}
	if !ok && excluded(c) {
		return nil
	}
	stored, err := StoredTriggers(tx.DB())
	if err != nil {
		return err
	}
	if ok && WrongTriggers(stored, k.C, c.Name) == "" {
		return redefine(tx.DB(), c, k) // also when only a rule has changed
	}
	return ensure(tx.DB(), c, k, ok, stored)
}

func deleted(tx core.App, c *core.Collection) error {
	k, ok, err := Live(tx.DB(), c.Id)
	if err != nil || !ok {
		return err
	}
	return retire(tx.DB(), k)
}

// Live finds the captured collection with the id.
func Live(db dbx.Builder, id string) (Collection, bool, error) {
	list, err := List(db)
	if err != nil {
		return Collection{}, false, err
	}
	for _, k := range list {
		if k.ID == id && k.Gone == 0 {
			return k, true, nil
		}
	}
	return Collection{}, false, nil
}
