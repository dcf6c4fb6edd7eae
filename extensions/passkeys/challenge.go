package passkeys

import (
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/go-webauthn/webauthn/webauthn"
	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
)

const (
	challengeLifetime = 5 * time.Minute

	// maxSignIns is how many sign-ins may be under way. Past it the oldest ends, so that a flood of requests, which the
	// quotas slow down, takes no more than this room and never keeps anybody out. Registrations are one for each user.
	maxSignIns = 10_000
)

// Purposes of challenges.
const (
	registering = "register"
	signingIn   = "sign-in"
)

// issue stores the state of a ceremony under a random id. record is nil for a sign-in, whose user is not known yet. It
// sweeps what has expired.
func issue(app core.App, purpose string, record *core.Record, session *webauthn.SessionData) (id string, err error) {
	state, err := json.Marshal(session)
	if err != nil {
		return "", fmt.Errorf("write challenge: %w", err)
	}
	id = rand.Text() // 130 bits
	values := dbx.Params{"id": id, "purpose": purpose, "collection": "", "record": "", "session": string(state), "expires_at": time.Now().Add(challengeLifetime).Unix()}
	err = app.RunInTransaction(func(tx core.App) error {
		db := tx.NonconcurrentDB()
		if _, err := db.Delete(challengesTable, dbx.NewExp("expires_at < {:now}", dbx.Params{"now": time.Now().Unix()})).Execute(); err != nil {
			return fmt.Errorf("sweep challenges: %w", err)
		}
		if record != nil {
			values["collection"], values["record"] = record.Collection().Id, record.Id
			if _, err := db.Delete(challengesTable, of(record)).Execute(); err != nil {
				return fmt.Errorf("end earlier registration: %w", err)
			}
		} else {
			_, err := db.NewQuery(`DELETE FROM passkeys_challenges WHERE id IN
				(SELECT id FROM passkeys_challenges WHERE purpose = {:purpose} ORDER BY expires_at DESC LIMIT -1 OFFSET {:kept})`,
			).Bind(dbx.Params{"purpose": purpose, "kept": maxSignIns - 1}).Execute()
			if err != nil {
				return fmt.Errorf("bound challenges: %w", err)
			}
		}
		if _, err := db.Insert(challengesTable, values).Execute(); err != nil {
			return fmt.Errorf("store challenge: %w", err)
		}
		return nil
	})
	return id, err
}

// redeem returns the state of a ceremony and ends it, whatever comes next. The error is [ErrChallenge] for an id that is
// unknown, expired, used, or another user's; using another user's does not end it.
func redeem(app core.App, purpose string, record *core.Record, id string) (webauthn.SessionData, error) {
	where := dbx.Params{"id": id, "purpose": purpose, "collection": "", "record": "", "now": time.Now().Unix()}
	if record != nil {
		where["collection"], where["record"] = record.Collection().Id, record.Id
	}
	var session webauthn.SessionData
	var state string
	err := app.NonconcurrentDB().NewQuery(`DELETE FROM passkeys_challenges WHERE id = {:id} AND purpose = {:purpose}
		AND collection = {:collection} AND record = {:record} AND expires_at >= {:now} RETURNING session`).Bind(where).Row(&state)
	if errors.Is(err, sql.ErrNoRows) {
		return session, ErrChallenge
	}
	if err != nil {
		return session, fmt.Errorf("redeem challenge: %w", err)
	}
	if err := json.Unmarshal([]byte(state), &session); err != nil {
		return session, fmt.Errorf("read challenge: %w", err)
	}
	return session, nil
}
