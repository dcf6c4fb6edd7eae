package outbox

import (
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/internal/serial"
	"github.com/satchelbase/satchel/extensions/push/message"
	"github.com/satchelbase/satchel/extensions/push/rest"
)

// The tables.
const (
	messagesTable   = "push_messages"
	deliveriesTable = "push_deliveries"
	chunksTable     = "push_chunks"
)

// Tables lists those of the package. No rule, collection or view reads them.
func Tables() []string { return []string{messagesTable, deliveriesTable, chunksTable, rest.Table} }

// Migrations create them. Times are Unix milliseconds, 0 is never. A delivery is in the order of the fan-out, so that its
// rows are appended; a chunk is the devices of one job, as JSON, and is gone when that has ended.
func Migrations() []extensions.Migration {
	first := extensions.Tables(1795505500, "create_messages", []string{
		`CREATE TABLE ` + messagesTable + ` (
			id INTEGER PRIMARY KEY, key TEXT NOT NULL, digest BLOB NOT NULL, state INTEGER NOT NULL, spec TEXT NOT NULL,
			target TEXT NOT NULL, category TEXT NOT NULL, job TEXT NOT NULL DEFAULT '', fanned INTEGER NOT NULL DEFAULT 0, totals TEXT NOT NULL DEFAULT '',
			due_at INTEGER NOT NULL, ends_at INTEGER NOT NULL, created_at INTEGER NOT NULL, done_at INTEGER NOT NULL DEFAULT 0
		) STRICT`,
		`CREATE UNIQUE INDEX ` + messagesTable + `_key ON ` + messagesTable + ` (key) WHERE key <> ''`,
		`CREATE INDEX ` + messagesTable + `_open ON ` + messagesTable + ` (state, id) WHERE state < 2`,
		`CREATE INDEX ` + messagesTable + `_done ON ` + messagesTable + ` (done_at) WHERE done_at > 0 AND spec <> ''`,
		`CREATE TABLE ` + deliveriesTable + ` (
			message INTEGER NOT NULL, device TEXT NOT NULL, state INTEGER NOT NULL, platform TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0,
			code TEXT NOT NULL DEFAULT '', provider TEXT NOT NULL DEFAULT '', at INTEGER NOT NULL, opened_at INTEGER NOT NULL DEFAULT 0,
			PRIMARY KEY (message, device)
		) STRICT, WITHOUT ROWID`,
		`CREATE TABLE ` + chunksTable + ` (
			id INTEGER PRIMARY KEY, message INTEGER NOT NULL, job TEXT NOT NULL, due_at INTEGER NOT NULL, devices TEXT NOT NULL,
			collapse TEXT NOT NULL
		) STRICT`,
		`CREATE INDEX ` + chunksTable + `_collapse ON ` + chunksTable + ` (collapse, message) WHERE collapse <> ''`,
		`CREATE INDEX ` + chunksTable + `_message ON ` + chunksTable + ` (message)`,
		rest.Statement,
	}, Tables()...)
	return []extensions.Migration{
		first,
		extensions.Columns(1795510001, "name_templates", messagesTable, `template TEXT NOT NULL DEFAULT ''`, `template_version INTEGER NOT NULL DEFAULT 0`),
	}
}

// State is where a message stands.
type State string

// The states of a message.
const (
	Scheduled State = "scheduled"
	Sending   State = "sending"
	Done      State = "done"
	Cancelled State = "cancelled"
)

const (
	scheduled = iota
	sending
	done
	cancelled
)

func states() []State { return []State{Scheduled, Sending, Done, Cancelled} }

// Numbers of the states of a delivery. All but queued are final, except that a push that was on its way when the message
// was cancelled tells what became of it, and that a receipt may come.
const (
	queued    = iota
	accepted  // the provider has it
	dead      // the token is not good any more
	rejected  // the provider will never take it
	failed    // the attempts are used up, or the platform has no credentials
	expired   // it made no sense any more
	skipped   // the receiver is there, or does not want it; the code tells which
	collapsed // a newer one replaces it
	stopped   // the message was cancelled
)

// row is a message as it is stored.
type row struct {
	ID        int64  `db:"id"`
	Key       string `db:"key"`
	Digest    []byte `db:"digest"`
	State     int    `db:"state"`
	Spec      string `db:"spec"`
	Target    string `db:"target"`
	Category  string `db:"category"`
	Template  string `db:"template"`
	Version   int    `db:"template_version"`
	Job       string `db:"job"`
	Fanned    int    `db:"fanned"`
	Totals    string `db:"totals"`
	DueAt     int64  `db:"due_at"`
	EndsAt    int64  `db:"ends_at"`
	CreatedAt int64  `db:"created_at"`
	DoneAt    int64  `db:"done_at"`
}

// message reads what was asked for.
func (r *row) message() (*message.Message, error) {
	m, err := message.Decode(r.Spec)
	if err != nil {
		return nil, fmt.Errorf("message %s: %w", serial.Format(r.ID), err)
	}
	return m, nil
}

// errNone says that there is no such message.
var errNone = errors.New("there is no such message")

func find(app core.App, id int64) (*row, error) {
	var r row
	err := app.DB().NewQuery(`SELECT * FROM ` + messagesTable + ` WHERE id = {:id}`).Bind(dbx.Params{"id": id}).One(&r)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, errNone
	}
	if err != nil {
		return nil, fmt.Errorf("find message: %w", err)
	}
	return &r, nil
}

func parse(text string) (int64, error) {
	id, err := serial.Parse(text)
	if err != nil {
		return 0, errNone
	}
	return id, nil
}

// exec runs a statement and returns how many rows it has changed.
func exec(app core.App, statement string, params dbx.Params) (int64, error) {
	result, err := app.NonconcurrentDB().NewQuery(statement).Bind(params).Execute()
	if err != nil {
		return 0, err
	}
	return result.RowsAffected()
}

func moment(ms int64) *time.Time {
	if ms == 0 {
		return nil
	}
	return new(time.UnixMilli(ms).UTC())
}
