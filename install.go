package main

import (
	"io/fs"
	"log/slog"
	"os"

	"github.com/pocketbase/pocketbase"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/logs"
	"github.com/satchelbase/satchel/extensions/operations"
	"github.com/satchelbase/satchel/extensions/program"
	"github.com/satchelbase/satchel/extensions/sessions"
	"github.com/satchelbase/satchel/extensions/store"
	"github.com/satchelbase/satchel/hooks"
)

// site is the static site that the program brings.
func site() fs.FS {
	files, err := fs.Sub(public, "pb_public")
	if err != nil { // not with a constant that is a valid path
		panic(err)
	}
	return files
}

// install binds the features and the app's own hooks to an application that is not open yet.
func install(cfg config, pb *pocketbase.PocketBase, app core.App, db *store.Store, ops *operations.Operations) (*extensions.Host, []extensions.Extension, *sessions.Sessions, error) {
	h := &extensions.Host{
		App: app, Version: version, Production: cfg.general.production(), Logger: slog.New(logs.Handler(os.Stderr, cfg.logs)),
	}
	list, sess := features(cfg, pb, db, ops)
	if err := extensions.Install(h, list); err != nil {
		return nil, nil, nil, err
	}
	hooks.Bind(app, hooks.Deps{})
	return h, list, sess, nil
}

// sandbox returns a function that opens the program on a copy of the data.
func sandbox(cfg config, pb *pocketbase.PocketBase) func(dataDir string) (core.App, error) {
	return func(dataDir string) (core.App, error) {
		db, err := store.Open(cfg.store, store.Options{})
		if err != nil {
			return nil, err
		}
		ops := operations.New()
		app, err := program.Sandbox(pb, dataDir, db.Connect, ops.Script)
		if err != nil {
			return nil, err
		}
		copied := cfg
		copied.secrets, copied.audit = cfg.secrets.Sandbox(pb.DataDir()), cfg.audit.Sandbox()
		_, _, _, err = install(copied, pb, app, db, ops)
		return app, err
	}
}
