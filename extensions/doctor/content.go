package doctor

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
)

// unreadable is the line of a question that the database could not answer; why it could not is in the lines about the
// database itself.
func (d data) unreadable(name string, err error) []Line {
	if !d.main.exists() {
		return []Line{line(name, extensions.Skip, "no database yet", "")}
	}
	return []Line{line(name, extensions.Skip, "the database cannot be read: "+err.Error(), "")}
}

// migrationLines compare what this program knows with what the database remembers.
func (d data) migrationLines(ctx context.Context) []Line {
	const name = "migrations"
	applied, err := d.main.strings(ctx, "SELECT file FROM "+core.DefaultMigrationsTable)
	if err != nil {
		return d.unreadable(name, err)
	}
	var known, pending, unknown []string
	for _, list := range []core.MigrationsList{core.SystemMigrations, core.AppMigrations} {
		for _, m := range list.Items() {
			known = append(known, m.File)
		}
	}
	for _, file := range known {
		if !slices.Contains(applied, file) {
			pending = append(pending, file)
		}
	}
	for _, file := range applied {
		if !slices.Contains(known, file) {
			unknown = append(unknown, file)
		}
	}
	var lines []Line
	if len(pending) > 0 {
		lines = append(lines, line(name, extensions.Info,
			fmt.Sprintf("%d will be applied by the next start, the first is %s", len(pending), pending[0]), "make a backup first"))
	}
	if len(unknown) > 0 {
		lines = append(lines, line(name, extensions.Warn,
			fmt.Sprintf("%d in the database are unknown to this program, the first is %s: was it written by a newer version?", len(unknown), unknown[0]),
			"use the newer version or, if the files were removed on purpose, run satchel migrate history-sync"))
	}
	if len(lines) == 0 {
		lines = append(lines, line(name, extensions.OK, fmt.Sprintf("%d applied, 0 pending", len(applied)), ""))
	}
	return lines
}

// collection is what the rules need to know.
type collection struct {
	name, kind                         string
	list, view, create, update, remove sql.NullString
}

// ruleLines name the collections that everybody may read or write: an empty rule lets everybody pass, a missing one
// nobody but superusers.
func (d data) ruleLines(ctx context.Context) []Line {
	const name = "rules"
	var collections []collection
	err := d.main.query(ctx, func(rows *sql.Rows) error {
		var c collection
		err := rows.Scan(&c.name, &c.kind, &c.list, &c.view, &c.create, &c.update, &c.remove)
		collections = append(collections, c)
		return err
	}, "SELECT name, type, listRule, viewRule, createRule, updateRule, deleteRule FROM _collections ORDER BY name")
	if err != nil {
		return d.unreadable(name, err)
	}
	var lines []Line
	for _, c := range collections {
		for _, finding := range []struct{ what, rules string }{
			{"world-readable", open(rule{"listRule", c.list}, rule{"viewRule", c.view})},
			{"world-writable", c.openWrites()},
		} {
			if finding.rules != "" {
				lines = append(lines, line(name, extensions.Warn,
					fmt.Sprintf("collection %q is %s (%s empty string)", c.name, finding.what, finding.rules),
					"set the rule in the dashboard, or leave it if that is meant"))
			}
		}
	}
	if len(lines) == 0 {
		lines = append(lines, line(name, extensions.OK, fmt.Sprintf("%d collections, none is open to the world", len(collections)), ""))
	}
	return lines
}

// openWrites leaves out the sign-up of auth collections, which everybody must be able to do, and views, which cannot be
// written.
func (c collection) openWrites() string {
	switch c.kind {
	case core.CollectionTypeView:
		return ""
	case core.CollectionTypeAuth:
		return open(rule{"updateRule", c.update}, rule{"deleteRule", c.remove})
	}
	return open(rule{"createRule", c.create}, rule{"updateRule", c.update}, rule{"deleteRule", c.remove})
}

// rule is one rule of a collection.
type rule struct {
	name  string
	value sql.NullString
}

// open names the rules that let everybody pass.
func open(rules ...rule) string {
	var names []string
	for _, r := range rules {
		if r.value.Valid && strings.TrimSpace(r.value.String) == "" {
			names = append(names, r.name)
		}
	}
	return strings.Join(names, ", ")
}

// superuserLines ask for the first admin. The one that PocketBase's installer uses does not count.
func (d data) superuserLines(ctx context.Context) []Line {
	const name = "superuser"
	found, err := d.main.strings(ctx, "SELECT count(*) FROM "+core.CollectionNameSuperusers+" WHERE email <> ?", core.DefaultInstallerEmail)
	if err != nil {
		return d.unreadable(name, err)
	}
	if len(found) != 1 || found[0] == "0" {
		return []Line{line(name, extensions.Warn, "no admin exists yet", "satchel superuser upsert EMAIL PASSWORD")}
	}
	return []Line{line(name, extensions.OK, found[0]+" exist", "")}
}
