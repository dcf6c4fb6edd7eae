package login

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
)

// Endings tells which sessions end, for whoever holds on to some for longer than a request.
type Endings struct {
	DB    func() dbx.Builder
	Table func(name string) uint64 // names the state of a table
}

// Version changes when sessions have ended.
func (e Endings) Version() uint64 { return e.Table(Ended) }

// Ended returns those of the sessions, by their ids, that have ended. It is one query.
func (e Endings) Ended(ids []string) ([]string, error) {
	raw, err := json.Marshal(ids)
	if err != nil {
		return nil, fmt.Errorf("encode ids: %w", err)
	}
	var ended []string
	err = e.DB().NewQuery("SELECT id FROM " + Ended + " WHERE id IN (SELECT value FROM json_each({:ids}))").Bind(dbx.Params{"ids": string(raw)}).Column(&ended)
	if err != nil {
		return nil, fmt.Errorf("find ended sessions: %w", err)
	}
	return ended, nil
}

// HasEnded reports whether a session has ended. One that is not known has not.
func HasEnded(db dbx.Builder, id string) (bool, error) {
	var ended bool
	if err := db.NewQuery("SELECT EXISTS (SELECT 1 FROM " + Ended + " WHERE id = {:id})").Bind(dbx.Params{"id": id}).Row(&ended); err != nil {
		return false, fmt.Errorf("find ended session: %w", err)
	}
	return ended, nil
}

// Over returns those of the sessions, by their ids, that do not count any more: they have ended or expired, or are so old that
// nothing is known of them. It is one query.
func Over(db dbx.Builder, ids []string, now time.Time) ([]string, error) {
	raw, err := json.Marshal(ids)
	if err != nil {
		return nil, fmt.Errorf("encode ids: %w", err)
	}
	var over []string
	err = db.NewQuery(`SELECT j.value FROM json_each({:ids}) AS j LEFT JOIN ` + Table + ` AS l ON l.id = j.value
		WHERE l.id IS NULL OR l.idle_until <= {:now} OR l.expires_at <= {:now} OR EXISTS (SELECT 1 FROM ` + Ended + ` AS e WHERE e.id = j.value)`).
		Bind(dbx.Params{"ids": string(raw), "now": now.UnixMilli()}).Column(&over)
	if err != nil {
		return nil, fmt.Errorf("find sessions that are over: %w", err)
	}
	return over, nil
}
