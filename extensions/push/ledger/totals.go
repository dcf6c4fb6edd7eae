package ledger

import (
	"fmt"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

// Numbers of the states of a delivery. All but Queued are final, except that a push that was on its way when the message
// was cancelled tells what became of it, and that a receipt may come.
const (
	Queued    = iota
	Accepted  // the provider has it
	Dead      // the token is not good any more
	Rejected  // the provider will never take it
	Failed    // the attempts are used up, or the platform has no credentials
	Expired   // it made no sense any more
	Skipped   // the receiver is there, or does not want it; the code tells which
	Collapsed // a newer one replaces it
	Stopped   // the message was cancelled
)

// Totals are how many deliveries of a message stand where. Devices is all of them, and the sum of the others but Opened.
type Totals struct {
	Devices   int `json:"devices"`
	Queued    int `json:"queued"`
	Accepted  int `json:"accepted"`
	Dead      int `json:"dead"`
	Rejected  int `json:"rejected"`
	Failed    int `json:"failed"`
	Expired   int `json:"expired"`
	Skipped   int `json:"skipped"`
	Collapsed int `json:"collapsed"`
	Cancelled int `json:"cancelled"`
	Opened    int `json:"opened"`

	// Codes are the reasons of those that were not accepted, such as live, quiet_hours or what a provider says.
	Codes map[string]int `json:"codes"`
}

// maxCodes bounds the reasons that are shown; the others are summed up.
const maxCodes = 20

// Count counts the deliveries of a message.
func Count(app core.App, id int64) (Totals, error) {
	var rows []struct {
		State  int    `db:"state"`
		Code   string `db:"code"`
		N      int    `db:"n"`
		Opened int    `db:"opened"`
	}
	err := app.DB().NewQuery(`SELECT state, code, count(*) AS n, sum(opened_at > 0) AS opened FROM ` + Deliveries + `
		WHERE message = {:id} GROUP BY state, code ORDER BY n DESC`).Bind(dbx.Params{"id": id}).All(&rows)
	if err != nil {
		return Totals{}, fmt.Errorf("count deliveries: %w", err)
	}
	t := Totals{Codes: map[string]int{}}
	in := map[int]*int{
		Queued: &t.Queued, Accepted: &t.Accepted, Dead: &t.Dead, Rejected: &t.Rejected, Failed: &t.Failed, Expired: &t.Expired,
		Skipped: &t.Skipped, Collapsed: &t.Collapsed, Stopped: &t.Cancelled,
	}
	for _, r := range rows {
		t.Devices += r.N
		t.Opened += r.Opened
		*in[r.State] += r.N
		if r.Code == "" || r.State == Accepted {
			continue
		}
		if _, known := t.Codes[r.Code]; !known && len(t.Codes) >= maxCodes {
			r.Code = "others"
		}
		t.Codes[r.Code] += r.N
	}
	return t, nil
}
