package secrets

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/internal/readonly"
	"github.com/satchelbase/satchel/extensions/internal/secret"
)

// check compares key and data. It opens nothing for writing, so that it also works beside a server and without one.
func check(cfg Config) func(ctx context.Context, h *extensions.Host) extensions.Result {
	return func(ctx context.Context, h *extensions.Host) extensions.Result {
		s := newSource(cfg, h)
		sealed, err := storedRoot(ctx, h)
		if err != nil {
			return extensions.Result{Level: extensions.Skip, Message: "the database cannot be read: " + err.Error()}
		}
		message, err := s.examine(sealed, h.Production)
		if f, ok := errors.AsType[*cli.Failure](err); ok {
			return extensions.Result{Level: extensions.Fail, Message: f.What + ": " + strings.ReplaceAll(f.Why, "\n", "; "), Next: f.Next}
		}
		if err != nil {
			return extensions.Result{Level: extensions.Fail, Message: err.Error()}
		}
		if sealed == "" {
			return extensions.Result{Level: extensions.Info, Message: message}
		}
		return extensions.Result{Message: message}
	}
}

// examine says whether the next start will have its key.
func (s source) examine(sealed string, production bool) (string, error) {
	master, from, err := s.find()
	switch {
	case errors.Is(err, errNoKey) && (sealed != "" || production):
		return "", s.missing(sealed != "")
	case errors.Is(err, errNoKey):
		return "no master key yet; the first start makes " + s.keyFile, nil
	case err != nil:
		return "", err
	case sealed == "":
		return "master key from " + from + "; nothing is sealed yet", nil
	}
	if _, err := secret.OpenRoot(master, sealed); err != nil {
		return "", s.mismatch(from, err)
	}
	return "master key from " + from + ", it opens the data", nil
}

// storedRoot is the sealed root key of the open application or else of the file, empty if there is none yet.
func storedRoot(ctx context.Context, h *extensions.Host) (sealed string, err error) {
	if h.App.IsBootstrapped() {
		return readRoot(ctx, h.App.ConcurrentDB())
	}
	path := filepath.Join(h.App.DataDir(), "data.db")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	db, err := readonly.Open(path)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	var known int
	if err := db.QueryRowContext(ctx, "SELECT count(*) FROM sqlite_master WHERE name = 'secrets_keys'").Scan(&known); err != nil || known == 0 {
		return "", err
	}
	err = db.QueryRowContext(ctx, selectRoot).Scan(&sealed)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return sealed, err
}
