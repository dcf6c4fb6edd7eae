package guard

import (
	"crypto/sha256"
	"fmt"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

const (
	codesTable   = "guard_otps"
	noticesTable = "guard_notices"

	// maxTries is how often a one-time password may be guessed at.
	maxTries = 5

	// noticeInterval is the least time between two mails to the owner of an address.
	noticeInterval = time.Hour

	// digestSize in bytes keeps rows small whatever a client sends; 128 bits do not collide by chance.
	digestSize = 16
)

func createTables(app core.App) error {
	for _, sql := range []string{
		"CREATE TABLE {{" + codesTable + "}} ([[otp]] BLOB PRIMARY KEY, [[tries]] INTEGER NOT NULL, [[seen]] INTEGER NOT NULL) WITHOUT ROWID",
		"CREATE TABLE {{" + noticesTable + "}} ([[address]] BLOB PRIMARY KEY, [[sent]] INTEGER NOT NULL, [[seen]] INTEGER NOT NULL) WITHOUT ROWID",
	} {
		if _, err := app.NonconcurrentDB().NewQuery(sql).Execute(); err != nil {
			return fmt.Errorf("create table: %w", err)
		}
	}
	return nil
}

func dropTables(app core.App) error {
	for _, table := range []string{codesTable, noticesTable} {
		if _, err := app.NonconcurrentDB().DropTable(table).Execute(); err != nil {
			return fmt.Errorf("drop table: %w", err)
		}
	}
	return nil
}

// digest stands for parts of any length, none of which holds a zero byte that matters.
func digest(parts ...string) []byte {
	h := sha256.New()
	for _, p := range parts {
		_, _ = h.Write([]byte(p))
		_, _ = h.Write([]byte{0})
	}
	return h.Sum(nil)[:digestSize]
}

// countTry adds n tries to the code and returns their number. It commits before it returns, for codes that exist and
// codes that do not. The only writer of the database puts parallel tries in order.
func countTry(app core.App, otp string, n int) (int, error) {
	var tries int
	err := app.NonconcurrentDB().NewQuery("INSERT INTO {{" + codesTable + "}} ([[otp]], [[tries]], [[seen]]) VALUES ({:otp}, {:n}, {:now}) " +
		"ON CONFLICT ([[otp]]) DO UPDATE SET [[tries]] = [[tries]] + {:n} RETURNING [[tries]]").
		Bind(dbx.Params{"otp": digest(otp), "n": n, "now": time.Now().Unix()}).Row(&tries)
	if err != nil {
		return 0, fmt.Errorf("count try: %w", err)
	}
	return tries, nil
}

// noteAddress remembers that somebody asked for the address, and reports whether its owner may be told: once an hour. It
// writes every time, so that the second request takes as long as the first.
func noteAddress(app core.App, c *core.Collection, address string) (due bool, err error) {
	now := time.Now().Unix()
	var sent, token int64
	// The stored time is now exactly when this statement has set it; two requests in one second are told apart by seen.
	err = app.NonconcurrentDB().NewQuery("INSERT INTO {{"+noticesTable+"}} ([[address]], [[sent]], [[seen]]) VALUES ({:address}, {:now}, 1) "+
		"ON CONFLICT ([[address]]) DO UPDATE SET [[seen]] = CASE WHEN [[sent]] <= {:before} THEN 1 ELSE [[seen]] + 1 END, "+
		"[[sent]] = CASE WHEN [[sent]] <= {:before} THEN {:now} ELSE [[sent]] END RETURNING [[sent]], [[seen]]").
		Bind(dbx.Params{
			"address": digest(c.Id, normal(address)), "now": now, "before": now - int64(noticeInterval/time.Second),
		}).Row(&sent, &token)
	if err != nil {
		return false, fmt.Errorf("note address: %w", err)
	}
	return token == 1, nil
}

// purge drops what no longer counts: rows of codes that have expired, and of addresses whose owner may be told again.
func (g *guard) purge() {
	app := g.host.App
	longest := noticeInterval
	collections, err := app.FindAllCollections(core.CollectionTypeAuth)
	if err != nil {
		g.host.Logger.Error("old counters were not dropped", "error", err)
		return
	}
	for _, c := range collections {
		longest = max(longest, c.OTP.DurationTime())
	}
	now := time.Now()
	for table, column := range map[string]string{codesTable: "seen", noticesTable: "sent"} {
		age := noticeInterval
		if table == codesTable {
			age = longest
		}
		_, err := app.NonconcurrentDB().Delete(table, dbx.NewExp("[["+column+"]] < {:before}", dbx.Params{"before": now.Add(-age).Unix()})).Execute()
		if err != nil {
			g.host.Logger.Error("old counters were not dropped", "table", table, "error", err)
		}
	}
}
