package identities

import (
	"crypto/rand"
	"crypto/subtle"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/identities/apple"
)

const (
	linksTable        = "identities_links"
	revocationsTable  = "identities_revocations"
	tokensTable       = "identities_tokens"
	passwordlessTable = "identities_passwordless"
)

const (
	// repeatWindow is how long the same device may send a token again, for when the answer was lost.
	repeatWindow = time.Minute

	// purgeAtOnce is how many used tokens that have expired an exchange removes; it adds one.
	purgeAtOnce = 20
)

func migrations() []extensions.Migration {
	return []extensions.Migration{{
		Unix: 1795320000, What: "create",
		Up: func(app core.App) error {
			_, err := app.DB().NewQuery(`
				CREATE TABLE identities_links (
					id            TEXT PRIMARY KEY NOT NULL,
					provider      TEXT NOT NULL,
					issuer        TEXT NOT NULL,
					subject       TEXT NOT NULL,
					collection    TEXT NOT NULL,
					record        TEXT NOT NULL,
					email         TEXT NOT NULL,
					emailVerified INTEGER NOT NULL,
					createdAt     INTEGER NOT NULL,
					lastUsedAt    INTEGER NOT NULL,
					client        TEXT NOT NULL DEFAULT '',
					sealed        TEXT NOT NULL DEFAULT '',
					UNIQUE (issuer, subject, collection)
				);
				CREATE INDEX identities_links_record ON identities_links (collection, record);
				CREATE TABLE identities_tokens (
					hash      BLOB PRIMARY KEY NOT NULL,
					device    TEXT NOT NULL,
					usedAt    INTEGER NOT NULL,
					expiresAt INTEGER NOT NULL
				) WITHOUT ROWID;
				CREATE INDEX identities_tokens_expiry ON identities_tokens (expiresAt);
				CREATE TABLE identities_revocations (
					id       TEXT PRIMARY KEY NOT NULL,
					client   TEXT NOT NULL,
					sealed   TEXT NOT NULL,
					attempts INTEGER NOT NULL,
					nextAt   INTEGER NOT NULL
				) WITHOUT ROWID;
				CREATE INDEX identities_revocations_next ON identities_revocations (nextAt);
				CREATE TABLE identities_passwordless (
					collection TEXT NOT NULL,
					record     TEXT NOT NULL,
					PRIMARY KEY (collection, record)
				) WITHOUT ROWID;
			`).Execute()
			return err
		},
		Down: func(app core.App) error {
			_, err := app.DB().NewQuery("DROP TABLE identities_links; DROP TABLE identities_tokens; DROP TABLE identities_revocations; DROP TABLE identities_passwordless").Execute()
			return err
		},
	}}
}

// link ties an issuer's subject to a record. Times are Unix milliseconds.
type link struct {
	ID         string `db:"id"`
	Provider   string `db:"provider"`
	Issuer     string `db:"issuer"`
	Subject    string `db:"subject"`
	Collection string `db:"collection"`
	Record     string `db:"record"`
	Email      string `db:"email"`
	Verified   bool   `db:"emailVerified"`
	CreatedAt  int64  `db:"createdAt"`
	LastUsedAt int64  `db:"lastUsedAt"`
}

// shownColumns are all but those that only a revocation needs.
func shownColumns() []string {
	return []string{"id", "provider", "issuer", "subject", "collection", "record", "email", "emailVerified", "createdAt", "lastUsedAt"}
}

// findLink returns nil when nobody has this identity.
func findLink(app core.App, c *claims, collection string) (*link, error) {
	return oneLink(app, dbx.HashExp{"issuer": c.issuer, "subject": c.subject, "collection": collection})
}

func oneLink(app core.App, where dbx.HashExp) (*link, error) {
	found := new(link)
	err := app.DB().Select(shownColumns()...).From(linksTable).Where(where).One(found)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil //nolint:nilnil // no link is an answer
	}
	if err != nil {
		return nil, fmt.Errorf("find link: %w", err)
	}
	return found, nil
}

// linksOf lists the identities of a record, the oldest first.
func linksOf(app core.App, record *core.Record) ([]link, error) {
	var list []link
	err := app.DB().Select(shownColumns()...).From(linksTable).Where(ofRecord(record)).OrderBy("createdAt", "id").All(&list)
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	return list, nil
}

func ofRecord(record *core.Record) dbx.HashExp {
	return dbx.HashExp{"collection": record.Collection().Id, "record": record.Id}
}

func insertLink(app core.App, c *claims, record *core.Record) (*link, error) {
	now := time.Now().UnixMilli()
	l := &link{
		ID: strings.ToLower(rand.Text()), Provider: c.provider.name, Issuer: c.issuer, Subject: c.subject, Collection: record.Collection().Id,
		Record: record.Id, Email: c.named, Verified: c.verified, CreatedAt: now, LastUsedAt: now,
	}
	_, err := app.DB().Insert(linksTable, dbx.Params{
		"id": l.ID, "provider": l.Provider, "issuer": l.Issuer, "subject": l.Subject, "collection": l.Collection, "record": l.Record,
		"email": l.Email, "emailVerified": l.Verified, "createdAt": l.CreatedAt, "lastUsedAt": l.LastUsedAt,
	}).Execute()
	if err != nil {
		return nil, fmt.Errorf("insert link: %w", err)
	}
	return l, nil
}

// touchLink notes the use, and the address that the provider has now.
func touchLink(app core.App, l *link, c *claims) error {
	l.LastUsedAt, l.Email, l.Verified = time.Now().UnixMilli(), c.named, c.verified
	_, err := app.DB().Update(linksTable, dbx.Params{"lastUsedAt": l.LastUsedAt, "email": l.Email, "emailVerified": l.Verified}, dbx.HashExp{"id": l.ID}).Execute()
	if err != nil {
		return fmt.Errorf("update link: %w", err)
	}
	return nil
}

// deleteLinks returns how many there were. What has to be revoked at the provider is noted in the same transaction, which
// the caller has open.
func deleteLinks(app core.App, where dbx.HashExp) (int64, error) {
	var revoked []struct {
		ID     string `db:"id"`
		Client string `db:"client"`
		Sealed string `db:"sealed"`
	}
	err := app.DB().Select("id", "client", "sealed").From(linksTable).Where(where).AndWhere(dbx.NewExp("sealed != ''")).All(&revoked)
	if err != nil {
		return 0, fmt.Errorf("list tokens to revoke: %w", err)
	}
	for _, r := range revoked {
		if err := apple.Note(app, revocationsTable, r.ID, r.Client, r.Sealed); err != nil {
			return 0, err
		}
	}
	result, err := app.DB().Delete(linksTable, where).Execute()
	if err != nil {
		return 0, fmt.Errorf("delete links: %w", err)
	}
	return result.RowsAffected()
}

// claimToken uses the token up. repeated reports that the same device sends it again within the window; another use is
// ErrTokenReused.
func claimToken(app core.App, c *claims, device string) (repeated bool, err error) {
	now := time.Now()
	_, err = app.DB().NewQuery("DELETE FROM identities_tokens WHERE hash IN (SELECT hash FROM identities_tokens WHERE expiresAt < {:now} LIMIT {:limit})").
		Bind(dbx.Params{"now": now.UnixMilli(), "limit": purgeAtOnce}).Execute()
	if err != nil {
		return false, fmt.Errorf("purge used tokens: %w", err)
	}
	var used struct {
		Device string `db:"device"`
		UsedAt int64  `db:"usedAt"`
	}
	err = app.DB().Select("device", "usedAt").From(tokensTable).Where(dbx.HashExp{"hash": c.hash}).One(&used)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		_, err = app.DB().Insert(tokensTable, dbx.Params{"hash": c.hash, "device": device, "usedAt": now.UnixMilli(), "expiresAt": c.expires.UnixMilli()}).Execute()
		if err != nil {
			return false, fmt.Errorf("note token: %w", err)
		}
		return false, nil
	case err != nil:
		return false, fmt.Errorf("find token: %w", err)
	}
	same := device != "" && subtle.ConstantTimeCompare([]byte(device), []byte(used.Device)) == 1
	if !same || now.Sub(time.UnixMilli(used.UsedAt)) > repeatWindow {
		return false, api.Fail(ErrTokenReused, "get a new token from the provider")
	}
	return true, nil
}

// setPasswordless notes that nobody knows the password of a record, or that somebody does.
func setPasswordless(app core.App, record *core.Record, on bool) error {
	query := app.DB().Delete(passwordlessTable, ofRecord(record))
	if on {
		query = app.DB().NewQuery("INSERT OR IGNORE INTO identities_passwordless (collection, record) VALUES ({:collection}, {:record})").
			Bind(dbx.Params{"collection": record.Collection().Id, "record": record.Id})
	}
	if _, err := query.Execute(); err != nil {
		return fmt.Errorf("note who knows the password: %w", err)
	}
	return nil
}

func isPasswordless(app core.App, record *core.Record) (bool, error) {
	var n int
	err := app.DB().Select("count(*)").From(passwordlessTable).Where(ofRecord(record)).Row(&n)
	if err != nil {
		return false, fmt.Errorf("find who knows the password: %w", err)
	}
	return n > 0, nil
}

// conflict recognises that another exchange of the same new person, or of the same token, was faster.
func conflict(err error) bool {
	return err != nil && (strings.Contains(err.Error(), "UNIQUE constraint failed: identities_links.") || strings.Contains(err.Error(), "UNIQUE constraint failed: identities_tokens."))
}
