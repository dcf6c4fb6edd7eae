package ledger

import (
	"crypto/rand"
	"fmt"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// saltSize hides what a commitment was made of once the salt is gone.
const saltSize = 16

// party is what entries hold of a party: its number, and the commitment to who it is.
type party struct {
	ID   int64  `db:"id"`
	Seal []byte `db:"seal"`
}

// commit is HMAC-SHA256 over kind, collection and record id, under the party's own salt. It binds, and without the salt
// it tells nothing.
func commit(salt []byte, kind, collection, record string) []byte {
	return mac(salt, appendText(appendText(appendText(nil, kind), collection), record))
}

// addParty gives a number to a party that entries have not named yet.
func addParty(db dbx.Builder, p Party) (party, error) {
	salt := make([]byte, saltSize)
	_, _ = rand.Read(salt) // never fails
	out := party{Seal: commit(salt, p.Kind, cut(p.Collection), cut(p.ID))}
	result, err := db.NewQuery(`INSERT INTO audit_parties (id, kind, collection, record, salt, seal)
		VALUES ((SELECT coalesce(max(id), 0) + 1 FROM audit_parties), {:kind}, {:collection}, {:record}, {:salt}, {:seal})`).
		Bind(dbx.Params{"kind": p.Kind, "collection": cut(p.Collection), "record": cut(p.ID), "salt": salt, "seal": out.Seal}).Execute()
	if err == nil {
		out.ID, err = result.LastInsertId()
	}
	if err != nil {
		return party{}, fmt.Errorf("store party: %w", err)
	}
	return out, nil
}

// tombstone is the proof that a party was forgotten by [Log.Forget] and not by somebody who hides who did something.
func (p party) tombstone(key []byte) []byte {
	return mac(key, appendText([]byte{encodingVersion}, p.Seal))
}

// Forget takes an account out of all entries, as its actor, subject and the one in whose name somebody acted, in the
// transaction of tx. The entries stay and verify; which of them are about the same account can still be seen, but not
// about whom. An entry says that it was done. Details are not touched. An account that no entry names is no error.
//
// The collection is the name under which entries know it. Copies of the database that were made before still know.
func (l *Ledger) Forget(tx core.App, collection, id string) error {
	if err := l.Unlock(); err != nil {
		return fmt.Errorf("forget in audit: %w", err)
	}
	err := tx.RunInTransaction(func(tx core.App) error {
		var found []party
		err := tx.NonconcurrentDB().NewQuery("SELECT id, seal FROM audit_parties WHERE record = {:record} AND collection = {:collection} AND forgotten = x''").
			Bind(dbx.Params{"record": cut(id), "collection": cut(collection)}).All(&found)
		if err != nil || len(found) == 0 || id == "" {
			return err
		}
		for _, p := range found {
			_, err := tx.NonconcurrentDB().NewQuery("UPDATE audit_parties SET record = '', salt = x'', forgotten = {:proof} WHERE id = {:id}").
				Bind(dbx.Params{"proof": p.tombstone(l.keys().party), "id": p.ID}).Execute()
			if err != nil {
				return err
			}
		}
		return l.Append(tx, Entry{Action: "audit.forgotten", Details: map[string]any{"collection": collection, "parties": len(found)}})
	})
	if err != nil {
		return fmt.Errorf("forget in audit: %w", err)
	}
	return nil
}
