package secrets

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/secret"
)

const (
	table = "secrets_keys"

	selectRoot = "SELECT sealed FROM secrets_keys WHERE id = 'root'"

	// unlockTimeout bounds the first use. It is long enough for a busy disk, and ends the wait for the writer's turn of
	// a command that uses the vault first inside its own transaction.
	unlockTimeout = 15 * time.Second
)

func create(app core.App) error {
	_, err := app.DB().NewQuery("CREATE TABLE secrets_keys (id TEXT PRIMARY KEY, sealed TEXT NOT NULL, created TEXT NOT NULL) STRICT").Execute()
	return err
}

func drop(app core.App) error {
	_, err := app.DB().NewQuery("DROP TABLE secrets_keys").Execute()
	return err
}

// openRoot returns the root key of the open application and makes one where there is none.
func openRoot(h *extensions.Host, s source) ([]byte, error) {
	if !h.App.IsBootstrapped() {
		return nil, errors.New("unlock vault: the application is not open yet")
	}
	ctx, cancel := context.WithTimeout(context.Background(), unlockTimeout)
	defer cancel()
	sealed, err := readRoot(ctx, h.App.ConcurrentDB())
	if err != nil {
		return nil, err
	}
	master, from, err := s.find()
	switch {
	case errors.Is(err, errNoKey) && sealed == "" && s.cfg.sandbox:
		return secret.NewKey(), nil
	case errors.Is(err, errNoKey) && (sealed != "" || h.Production):
		return nil, s.missing(sealed != "")
	case errors.Is(err, errNoKey):
		if master, err = s.make(); err != nil {
			return nil, err
		}
		from = s.keyFile
		h.Logger.Info("made a master key; keep a copy apart from the backups", slog.String("file", s.keyFile))
	case err != nil:
		return nil, err
	}
	if sealed == "" {
		if sealed, err = makeRoot(ctx, h.App.NonconcurrentDB(), master); err != nil {
			return nil, err
		}
	}
	root, err := secret.OpenRoot(master, sealed)
	if err != nil {
		return nil, s.mismatch(from, err)
	}
	return root, nil
}

// readRoot is the sealed root key, empty if there is none yet.
func readRoot(ctx context.Context, db dbx.Builder) (string, error) {
	var sealed string
	err := db.NewQuery(selectRoot).WithContext(ctx).Row(&sealed)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return "", fmt.Errorf("read root key: %w", err)
	}
	return sealed, nil
}

// makeRoot seals a new root key. If another process was first, its root key counts.
func makeRoot(ctx context.Context, db dbx.Builder, master []byte) (string, error) {
	sealed, err := secret.SealRoot(master, secret.NewKey())
	if err != nil {
		return "", err
	}
	_, err = db.NewQuery("INSERT INTO secrets_keys (id, sealed, created) VALUES ('root', {:sealed}, {:created}) ON CONFLICT (id) DO NOTHING").
		Bind(dbx.Params{"sealed": sealed, "created": time.Now().UTC().Format(time.RFC3339)}).WithContext(ctx).Execute()
	if err != nil {
		return "", fmt.Errorf("store root key: %w", err)
	}
	return readRoot(ctx, db)
}
