package logs

import (
	"context"
	"encoding/json/jsontext"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/types"

	"github.com/satchelbase/satchel/extensions"
)

const (
	// maxRows is how many rows one INSERT takes. PocketBase's batches have as many.
	maxRows = 200

	// keepBuffer is the largest buffer that is used again; 200 usual rows have 150 KB.
	keepBuffer = 1 << 20

	// insert has one text whatever the number of rows, so that it stays prepared. The parameter is an array of rows.
	insert = `INSERT INTO _logs (id, created, level, message, data)
SELECT value->>0, value->>1, value->>2, value->>3, value->>4 FROM json_each(?)`
)

var errNoDatabase = errors.New("auxiliary.db is not open")

// table collects requests and writes them to PocketBase's table of logs. It belongs to one goroutine.
type table struct {
	host         *extensions.Host
	maxSize      int64
	stored, lost *atomic.Uint64

	rows       []byte // a JSON array of rows, without its end
	count      int
	data       []byte
	reportedAt time.Time

	checkedAt time.Time
	over      bool // more has to be deleted
}

// add takes over what is to be stored of the entry.
func (t *table) add(ctx context.Context, x *entry) {
	cfg := t.host.App.Settings().Logs
	message := x.message()
	t.data = x.appendData(t.data[:0], cfg)

	b := append(t.rows, "[,"[min(t.count, 1)], '[')
	b = appendText(b, core.GenerateDefaultRandomId())
	b = append(b, ',', '"')
	b = x.at.UTC().AppendFormat(b, types.DefaultDateLayout)
	b = append(b, '"', ',')
	b = strconv.AppendInt(b, int64(x.storedLevel()), 10)
	b = append(b, ',')
	b = appendText(b, message)
	b = append(b, ',')
	b = appendText(b, t.data) // as text, because it is stored as it is
	t.rows = append(b, ']')
	if t.count++; t.count == maxRows {
		t.flush(ctx)
	}
}

// tick is called every second and before the end.
func (t *table) tick(ctx context.Context) {
	t.flush(ctx)
	if err := t.trim(ctx, time.Now()); err != nil {
		t.report(ctx, "stored logs were not deleted", err)
	}
}

// flush stores the rows. Those that cannot be stored are lost: the next ones are waiting.
func (t *table) flush(ctx context.Context) {
	if t.count == 0 {
		return
	}
	err := t.insert(ctx, append(t.rows, ']'))
	if err == nil {
		t.stored.Add(uint64(t.count))
	} else {
		t.lost.Add(uint64(t.count))
		t.report(ctx, "requests were not stored", err)
	}
	t.rows, t.count = t.rows[:0], 0
	if cap(t.rows) > keepBuffer {
		t.rows = nil
	}
}

func (t *table) insert(ctx context.Context, rows []byte) error {
	db, ok := t.host.App.AuxNonconcurrentDB().(*dbx.DB)
	if !ok {
		return errNoDatabase
	}
	if _, err := db.DB().ExecContext(ctx, insert, string(rows)); err != nil {
		return fmt.Errorf("insert into auxiliary.db: %w", err)
	}
	return nil
}

func (t *table) report(ctx context.Context, message string, err error) {
	if ctx.Err() == nil && time.Since(t.reportedAt) >= reportInterval {
		t.reportedAt = time.Now()
		t.host.Logger.Error(message, slog.Any("error", err)) //nolint:sloglint // the callers' messages are constants
	}
}

// appendText adds a JSON string. Bytes that are not UTF-8 become U+FFFD.
func appendText[T ~string | ~[]byte](b []byte, s T) []byte {
	b, _ = jsontext.AppendQuote(b, s) // its error says only that bytes were replaced
	return b
}
