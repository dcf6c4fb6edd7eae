package push

import (
	"database/sql"
	"errors"
	"fmt"

	"github.com/pocketbase/dbx"
)

// lastSQL finds the last change of a record as it is inside a transaction: the change log lets nobody see what is not
// committed yet. What the heads do not contain stands in the log behind the number up to which it was folded.
const lastSQL = `SELECT seq, op FROM (
		SELECT seq, op FROM changes_log WHERE seq > (SELECT folded FROM changes_state) AND c = {:c} AND rec = {:rec}
		UNION ALL SELECT seq, CASE del WHEN 1 THEN 3 ELSE 2 END FROM changes_heads WHERE c = {:c} AND rec = {:rec}
	) ORDER BY seq DESC LIMIT 1`

// last returns the number of the last change of the record and whether it was its deletion; 0 if there was none.
func (w *writing) last() (seq int64, deleted bool, err error) {
	var op int
	err = w.tx.DB().NewQuery(lastSQL).Bind(dbx.Params{"c": w.number, "rec": w.change.ID}).Row(&seq, &op)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return 0, false, fmt.Errorf("read version: %w", err)
	}
	const deletion = 3
	return seq, op == deletion, nil
}

func (w *writing) version() (int64, error) {
	seq, _, err := w.last()
	return seq, err
}

func (w *writing) tombstone() (bool, error) {
	_, deleted, err := w.last()
	return deleted, err
}
