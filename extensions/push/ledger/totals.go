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

// Numbers of the states of a message. From Done on it has ended.
const (
	Scheduled = iota
	Sending
	Done
	Cancelled
)

// Archived is what the column fanned says when the totals are the last ones, because deliveries are being forgotten.
const Archived = 2

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

// fewRows is how many deliveries are counted in a transaction that writes, which takes about a millisecond.
const fewRows = 1000

// Few reports whether a message has so few deliveries that they may be counted while others wait.
func Few(app core.App, id int64) (few bool, err error) {
	err = app.DB().NewQuery(`SELECT count(*) <= {:few} FROM (SELECT 1 FROM ` + Deliveries + ` WHERE message = {:id} LIMIT {:few} + 1)`).
		Bind(dbx.Params{"id": id, "few": fewRows}).Row(&few)
	if err != nil {
		return false, fmt.Errorf("look how many deliveries there are: %w", err)
	}
	return few, nil
}

// Count counts the deliveries of a message in a state. Those of a cancelled one that have no end yet are not sent any more
// and count as cancelled. It reads all of them, which takes about a second for a million.
func Count(app core.App, id int64, state int) (Totals, error) {
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
	if state == Cancelled {
		t.Cancelled, t.Queued = t.Cancelled+t.Queued, 0
	}
	return t, nil
}
