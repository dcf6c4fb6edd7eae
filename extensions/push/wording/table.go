package wording

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/push/template"
)

// table holds a row for each version of a template. The newest one is in force, unless it is a removal, which has no texts.
const table = "push_templates"

// Tables lists those of the package. No rule, collection or view reads them.
func Tables() []string { return []string{table} }

// Migrations create it.
func Migrations() []extensions.Migration {
	return []extensions.Migration{extensions.Tables(1795510000, "create_templates", []string{`CREATE TABLE ` + table + ` (
		name TEXT NOT NULL, version INTEGER NOT NULL, texts TEXT NOT NULL, saved_at INTEGER NOT NULL, author TEXT NOT NULL, PRIMARY KEY (name, version)
	) STRICT`}, table)}
}

// row is one version. saved_at is in Unix milliseconds.
type row struct {
	Name    string `db:"name"`
	Version int    `db:"version"`
	Texts   string `db:"texts"`
	SavedAt int64  `db:"saved_at"`
	Author  string `db:"author"`
}

func (r *row) inForce() bool { return r.Texts != "" }

// version is that of the texts in force; 0 if none of these are.
func (r *row) version() int {
	if r.inForce() {
		return r.Version
	}
	return 0
}

func (r *row) read() (texts template.Texts, err error) {
	if err := json.Unmarshal([]byte(r.Texts), &texts); err != nil {
		return nil, fmt.Errorf("read template %s: %w", r.Name, err)
	}
	return texts, nil
}

// newest is the last version of a template, an empty row if there is none.
func newest(app core.App, name string) (row, error) {
	list, err := history(app, name, 1)
	if err != nil || len(list) == 0 {
		return row{}, err
	}
	return list[0], nil
}

// history is the last versions of a template.
func history(app core.App, name string, most int) (list []row, err error) {
	err = app.DB().NewQuery(`SELECT * FROM ` + table + ` WHERE name = {:name} ORDER BY version DESC LIMIT {:most}`).
		Bind(dbx.Params{"name": name, "most": most}).All(&list)
	if err != nil {
		return nil, fmt.Errorf("read template: %w", err)
	}
	return list, nil
}

// inForce lists the saved templates by name.
func inForce(app core.App) (list []row, err error) {
	err = app.DB().NewQuery(`SELECT * FROM ` + table + ` AS t WHERE texts <> '' AND version = (SELECT max(version) FROM ` + table + ` WHERE name = t.name) ORDER BY name`).
		All(&list)
	if err != nil {
		return nil, fmt.Errorf("list templates: %w", err)
	}
	return list, nil
}

// add writes a version and forgets those beyond what is kept.
func add(tx core.App, r row, now time.Time) error {
	if r.Version == 1 {
		if err := makeRoom(tx, now); err != nil {
			return err
		}
	}
	_, err := tx.NonconcurrentDB().NewQuery(`INSERT INTO ` + table + ` (name, version, texts, saved_at, author) VALUES ({:name}, {:version}, {:texts}, {:at}, {:author})`).
		Bind(dbx.Params{"name": r.Name, "version": r.Version, "texts": r.Texts, "at": r.SavedAt, "author": r.Author}).Execute()
	if err != nil {
		return fmt.Errorf("save template: %w", err)
	}
	_, err = tx.NonconcurrentDB().Delete(table, dbx.NewExp("name = {:name} AND version <= {:old}", dbx.Params{"name": r.Name, "old": r.Version - maxVersions})).Execute()
	if err != nil {
		return fmt.Errorf("forget old versions of template: %w", err)
	}
	return nil
}

// makeRoom forgets what was removed long ago, and refuses one more name beyond the limit.
func makeRoom(tx core.App, now time.Time) error {
	_, err := tx.NonconcurrentDB().NewQuery(`DELETE FROM ` + table + ` WHERE name IN (SELECT name FROM ` + table + ` AS t
		WHERE texts = '' AND saved_at < {:before} AND version = (SELECT max(version) FROM ` + table + ` WHERE name = t.name))`).
		Bind(dbx.Params{"before": now.Add(-keepRemoved).UnixMilli()}).Execute()
	if err != nil {
		return fmt.Errorf("forget removed templates: %w", err)
	}
	var names int
	if err := tx.NonconcurrentDB().NewQuery(`SELECT count(DISTINCT name) FROM ` + table).Row(&names); err != nil {
		return fmt.Errorf("count templates: %w", err)
	}
	if names >= maxNames {
		return ErrFull
	}
	return nil
}
