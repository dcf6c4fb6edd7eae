package main

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/program"
	"github.com/satchelbase/satchel/extensions/settings"
	"github.com/satchelbase/satchel/extensions/store"
)

var update = flag.Bool("update", false, "write the generated documentation")

// build returns the program as run does, with an empty environment and a data folder of its own.
func build(t *testing.T) (*pocketbase.PocketBase, *settings.Settings, []extensions.Extension) {
	t.Helper()
	cfg := read(settings.Load(nil))
	db, err := store.Open(cfg.store, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	pb := program.New(program.Info{DataDir: t.TempDir(), DBConnect: db.Connect}, nil)
	list, _ := features(cfg, pb, db, newShared(cfg))
	return pb, cfg.settings, list
}

// otherGroups are the extensions whose routes stand below another word than their name.
func otherGroups() map[string]string {
	return map[string]string{
		"sessions": "auth", "oauth": "auth", "impersonation": "auth", "totp": "auth", "passkeys": "auth", "identities": "auth",
		"anonymous": "auth", "admins": "admin", "apikeys": "admin", "audit": "admin",
	}
}

// An extension's name is the same word in nine places.
func TestOneWordNinePlaces(t *testing.T) {
	pb, s, list := build(t)
	h := &extensions.Host{App: pb, Logger: slog.New(slog.DiscardHandler)}
	before := tables(t, nil)
	if err := extensions.Install(h, list); err != nil {
		t.Fatal(err)
	}
	created := tables(t, before)
	pages, err := os.ReadFile("docs/reference.md")
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, len(list))
	for i, x := range list {
		names[i] = x.Name
		t.Run(x.Name, func(t *testing.T) {
			source, err := filepath.Glob(filepath.Join("extensions", x.Name, "*.go"))
			if err != nil || len(source) == 0 {
				t.Errorf("directory: no extensions/%s", x.Name)
			}
			if x.Settings != nil && !strings.HasSuffix(reflect.TypeOf(x.Settings).PkgPath(), "/extensions/"+x.Name) {
				t.Errorf("settings: %T belongs to another package", x.Settings)
			}
			if want := otherGroups()[x.Name]; x.Group != want {
				t.Errorf("route group: %q is declared, %q expected", x.Group, want)
			}
			for _, table := range x.Tables {
				if !strings.HasPrefix(table, x.Name+"_") || !slices.Contains(created, table) {
					t.Errorf("table: %s has another prefix or is not created", table)
				}
			}
			for _, m := range x.Migrations {
				if !regexp.MustCompile(`^\d{10}_` + x.Name + `_[a-z0-9_]+\.go$`).MatchString(x.MigrationFile(m)) {
					t.Errorf("migration: %s", x.MigrationFile(m))
				}
			}
			var line bytes.Buffer
			host := &extensions.Host{Logger: slog.New(slog.NewTextHandler(&line, nil))}
			host.For(x).Logger.Info("x")
			if !strings.Contains(line.String(), "extension="+x.Name+"\n") {
				t.Errorf("log: %s", line.String())
			}
			for _, m := range x.Metrics {
				if !regexp.MustCompile(`^satchel_`+x.Name+`_([a-z_]+_)?(total|count|bytes|seconds|keys|ratio)$`).MatchString(m.Name) || m.Help == "" {
					t.Errorf("metric: %s", m.Name)
				}
			}
			for _, c := range x.Codes {
				if !regexp.MustCompile(`^`+x.Name+`\.[a-z][a-z_]+$`).MatchString(c.Name) || c.Status < 400 || c.Title == "" {
					t.Errorf("code: %+v", c)
				}
			}
			if !bytes.Contains(pages, []byte("\n## "+x.Name+"\n")) {
				t.Errorf("docs: no heading in docs/reference.md; run go test . -update")
			}
		})
	}
	for _, k := range s.Keys() {
		// The settings of the store are called db, because that is what operators look for.
		if k.Section != "" && k.Section != "db" && !slices.Contains(names, k.Section) {
			t.Errorf("settings: the section %s is no extension's", k.Section)
		}
	}
	for _, table := range created {
		owned := slices.ContainsFunc(list, func(x extensions.Extension) bool { return slices.Contains(x.Tables, table) })
		if !owned {
			t.Errorf("table %s is created by a migration and named by no extension", table)
		}
	}
}

// tables runs all registered system migrations on fresh files and lists the tables that are not in known and belong to
// no collection.
func tables(t *testing.T, known []string) []string {
	t.Helper()
	app := core.NewBaseApp(core.BaseAppConfig{DataDir: t.TempDir()})
	if err := app.Bootstrap(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = app.ClearBootstrap() }()
	var out, found []string
	if err := app.DB().NewQuery("SELECT name FROM sqlite_master WHERE type='table' AND name NOT LIKE 'sqlite_%'").Column(&found); err != nil {
		t.Fatal(err)
	}
	for _, name := range found {
		if _, err := app.FindCollectionByNameOrId(name); err != nil && !slices.Contains(known, name) {
			out = append(out, name)
		}
	}
	return out
}

func TestNamesAreUnique(t *testing.T) {
	_, _, list := build(t)
	seen := map[string]bool{}
	add := func(kind, name string) {
		if seen[kind+name] {
			t.Errorf("%s %s is used twice", kind, name)
		}
		seen[kind+name] = true
	}
	for _, x := range list {
		for _, c := range x.Codes {
			add("code", c.Name)
		}
		for _, m := range x.Migrations {
			add("migration", x.MigrationFile(m))
		}
		for _, m := range x.Metrics {
			add("metric", m.Name)
		}
		for _, c := range x.Checks {
			add("check", c.Name)
		}
	}
}

func TestGeneratedFiles(t *testing.T) {
	_, s, list := build(t)
	if err := s.Err(); err != nil {
		t.Fatal(err)
	}
	var env bytes.Buffer
	if err := s.Reference(&env, "env"); err != nil {
		t.Fatal(err)
	}
	var pages bytes.Buffer
	writeReference(&pages, s, list)
	for name, want := range map[string][]byte{".env.example": env.Bytes(), "docs/reference.md": pages.Bytes()} {
		if *update {
			if err := os.WriteFile(name, want, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		have, err := os.ReadFile(name)
		if err != nil || !bytes.Equal(have, want) {
			t.Errorf("%s is not up to date (%v); run go test . -update", name, err)
		}
	}
}

// writeReference is the page of everything that the extensions declare.
func writeReference(w io.Writer, s *settings.Settings, list []extensions.Extension) {
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format, args...) }
	p("# Reference\n\nGenerated from the code. Settings are environment variables; a secret may also be in a file named by\n`<KEY>_FILE`. `satchel config print` shows the values in force.\n")
	section := func(name string) {
		var rows []settings.Key
		for _, k := range s.Keys() {
			if k.Section == name {
				rows = append(rows, k)
			}
		}
		if len(rows) == 0 {
			return
		}
		p("\n| setting | type | default | meaning |\n|---|---|---|---|\n")
		for _, k := range rows {
			p("| `%s` | %s | %s | %s |\n", k.Name, k.Type, code(k.Default), k.Help)
		}
	}
	p("\n## general\n")
	section("")
	for _, x := range list {
		p("\n## %s\n", x.Name)
		if x.Routes != nil {
			p("\n| route |\n|---|\n")
			for _, r := range routes(x) {
				p("| `%s` |\n", r)
			}
		}
		section(x.Name)
		if x.Name == "store" {
			section("db")
		}
		if len(x.Codes) > 0 {
			p("\n| error code | status | meaning |\n|---|---|---|\n")
		}
		for _, c := range x.Codes {
			p("| `%s` | %d | %s |\n", c.Name, c.Status, c.Title)
		}
		if len(x.Metrics) > 0 {
			p("\n| metric | meaning |\n|---|---|\n")
		}
		for _, m := range x.Metrics {
			p("| `%s` | %s |\n", m.Name, m.Help)
		}
		if x.Commands != nil {
			for _, c := range x.Commands(&extensions.Host{App: core.NewBaseApp(core.BaseAppConfig{}), Logger: slog.New(slog.DiscardHandler)}) {
				p("\n`satchel %s`: %s.\n", c.Use, strings.TrimSuffix(c.Short, "."))
			}
		}
	}
}

// routes lists what the extension serves below /api/v1, as "POST /api/v1/operations/notes.clearDone".
func routes(x extensions.Extension) []string {
	g := (&router.RouterGroup[*core.RequestEvent]{}).Group("/api/v1/" + x.RouteGroup())
	x.Routes(g)
	var out []string
	var walk func(group reflect.Value, prefix string)
	walk = func(group reflect.Value, prefix string) {
		prefix += group.FieldByName("Prefix").String()
		children := group.FieldByName("children")
		for i := range children.Len() {
			child := children.Index(i).Elem().Elem()
			if method := child.FieldByName("Method"); method.IsValid() {
				out = append(out, method.String()+" "+prefix+child.FieldByName("Path").String())
			} else {
				walk(child, prefix)
			}
		}
	}
	walk(reflect.ValueOf(g).Elem(), "")
	slices.Sort(out)
	return out
}

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}

// main.go is the table of contents and stays one.
func TestMainIsShort(t *testing.T) {
	source, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(source, []byte("\n")); n > 150 {
		t.Errorf("main.go has %d lines", n)
	}
}

// Links between the pages lead somewhere.
func TestLinks(t *testing.T) {
	pages, err := filepath.Glob("docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, page := range append(pages, "README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Error(err)
			continue
		}
		text = regexp.MustCompile("(?s)```.*?```").ReplaceAll(text, nil)
		for _, link := range regexp.MustCompile(`\]\(([^)#]+)[^)]*\)`).FindAllSubmatch(text, -1) {
			target := string(link[1])
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(page), target)); err != nil {
				t.Errorf("%s links to %s, which does not exist", page, target)
			}
		}
	}
}
