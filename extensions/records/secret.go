package records

import (
	"crypto/rand"
	"errors"
	"fmt"
	"sync"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

const (
	secretTable = "records_secret"

	// secretSize is the length of an HMAC-SHA-256 key, in bytes.
	secretSize = 32
)

// createSecret makes the key once for the life of the database, so that cursors outlive a restart.
func createSecret(app core.App) error {
	_, err := app.NonconcurrentDB().NewQuery(
		"CREATE TABLE {{" + secretTable + "}} (id INTEGER PRIMARY KEY CHECK (id = 1), secret BLOB NOT NULL)",
	).Execute()
	if err != nil {
		return fmt.Errorf("create table: %w", err)
	}
	key := make([]byte, secretSize)
	_, _ = rand.Read(key)
	_, err = app.NonconcurrentDB().Insert(secretTable, dbx.Params{"id": 1, "secret": key}).Execute()
	if err != nil {
		return fmt.Errorf("store secret: %w", err)
	}
	return nil
}

func dropSecret(app core.App) error {
	_, err := app.NonconcurrentDB().DropTable(secretTable).Execute()
	return err
}

// secret is the stored key, read once.
type secret struct {
	mu     sync.Mutex
	sealer *sealer
}

func (s *secret) load(app core.App) (*sealer, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sealer != nil {
		return s.sealer, nil
	}
	var key []byte
	err := app.ConcurrentDB().Select("secret").From(secretTable).Where(dbx.HashExp{"id": 1}).Row(&key)
	if err != nil {
		return nil, fmt.Errorf("read cursor secret: %w", err)
	}
	if len(key) != secretSize {
		return nil, errors.New("read cursor secret: it has the wrong length")
	}
	if s.sealer, err = newSealer(key); err != nil {
		return nil, fmt.Errorf("derive cursor keys: %w", err)
	}
	return s.sealer, nil
}
