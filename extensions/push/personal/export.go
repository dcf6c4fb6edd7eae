package personal

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/serial"
	"github.com/satchelbase/satchel/extensions/push/device"
	"github.com/satchelbase/satchel/extensions/push/ledger"
	"github.com/satchelbase/satchel/extensions/push/message"
	"github.com/satchelbase/satchel/extensions/push/template"
)

// exportPage is how many notifications are held in memory at once.
const exportPage = 200

// sent is a notification as a person reads of it.
type sent struct {
	Message  string            `json:"message"`
	SentAt   time.Time         `json:"sentAt"`
	Platform string            `json:"platform"`
	Category string            `json:"category"`
	Title    string            `json:"title"`
	Body     string            `json:"body"`
	Data     map[string]string `json:"data"`
	OpenedAt *time.Time        `json:"openedAt"`
}

// Export writes the notifications that were sent to devices of an account, as far as they are kept, as a JSON array: with
// the text that the device has got, and only those that showed one or carried data.
func Export(ctx context.Context, app core.App, account *core.Record, w io.Writer) error {
	p := params(device.AccountOf(account))
	p["state"], p["limit"], p["message"], p["device"] = ledger.Accepted, exportPage, int64(0), ""
	if _, err := io.WriteString(w, "["); err != nil {
		return err
	}
	comma := ""
	for {
		var rows []struct {
			Message  int64  `db:"message"`
			Device   string `db:"device"`
			At       int64  `db:"at"`
			OpenedAt int64  `db:"opened_at"`
			Platform string `db:"platform"`
			Spec     string `db:"spec"`
			Locale   string `db:"locale"`
		}
		err := app.ConcurrentDB().NewQuery(`SELECT d.message, d.device, d.at, d.opened_at, d.platform, m.spec, coalesce(p.locale, '') AS locale
			FROM ` + deliveries + ` AS d JOIN ` + messages + ` AS m ON m.id = d.message LEFT JOIN push_devices AS p ON p.id = d.device
			WHERE d.record = {:record} AND d.collection = {:collection} AND d.record <> '' AND d.state = {:state} AND m.spec <> ''
			AND (d.message, d.device) > ({:message}, {:device}) ORDER BY d.message, d.device LIMIT {:limit}`).Bind(p).WithContext(ctx).All(&rows)
		if err != nil {
			return fmt.Errorf("list notifications of account: %w", err)
		}
		for _, r := range rows {
			m, err := message.Decode(r.Spec)
			if err != nil {
				return err
			}
			one := sent{Message: serial.Format(r.Message), SentAt: time.UnixMilli(r.At).UTC(), Platform: r.Platform, Category: m.Category, Data: m.Data}
			text, err := read(m, r.Locale)
			if err != nil {
				return err
			}
			one.Title, one.Body = text.Title, text.Body
			if r.OpenedAt > 0 {
				one.OpenedAt = new(time.UnixMilli(r.OpenedAt).UTC())
			}
			raw, err := json.Marshal(one)
			if err != nil {
				return fmt.Errorf("encode notification: %w", err)
			}
			if _, err := io.WriteString(w, comma+string(raw)); err != nil {
				return err
			}
			comma = ",\n"
		}
		if len(rows) < exportPage {
			_, err = io.WriteString(w, "]\n")
			return err
		}
		p["message"], p["device"] = rows[len(rows)-1].Message, rows[len(rows)-1].Device
	}
}

// read is the text of a message in a language.
func read(m *message.Message, locale string) (template.Text, error) {
	texts, err := m.ByLanguage()
	if err != nil || texts == nil {
		return template.Text{}, err
	}
	set, err := template.Compile(texts)
	if err != nil {
		return template.Text{}, fmt.Errorf("read texts: %w", err)
	}
	return set.Render(locale, m.Values)
}
