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
	"github.com/satchelbase/satchel/extensions/push/ending"
	"github.com/satchelbase/satchel/extensions/push/ledger"
	"github.com/satchelbase/satchel/extensions/push/message"
	"github.com/satchelbase/satchel/extensions/push/personal"
)

// The tables.
const (
	messagesTable   = ledger.Messages
	deliveriesTable = ledger.Deliveries
	chunksTable     = ledger.Chunks
)

// Tables lists all tables of messages. No rule, collection or view reads them.
func Tables() []string { return append(ledger.Tables(), personal.Tables()...) }

// Migrations create them.
func Migrations() []extensions.Migration {
	return append(append(ledger.Migrations(), personal.Migrations()...), ending.Migration())
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
	scheduled = ledger.Scheduled
	sending   = ledger.Sending
	done      = ledger.Done
	cancelled = ledger.Cancelled
)

func states() []State { return []State{Scheduled, Sending, Done, Cancelled} }

// Numbers of the states of a delivery.
const (
	queued    = ledger.Queued
	accepted  = ledger.Accepted
	dead      = ledger.Dead
	rejected  = ledger.Rejected
	failed    = ledger.Failed
	expired   = ledger.Expired
	skipped   = ledger.Skipped
	collapsed = ledger.Collapsed
	stopped   = ledger.Stopped
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
