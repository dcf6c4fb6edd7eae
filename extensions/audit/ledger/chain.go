package ledger

import (
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/pb"
	"github.com/satchelbase/satchel/extensions/internal/secret"
)

// Ledger writes and verifies entries. It is safe for concurrent use. Several processes may write to one database: the last
// entry is read in the transaction that adds the next.
type Ledger struct {
	vault *secret.Vault
	keys  func() keys
	ready atomic.Bool // the vault is unlocked
	head  head
}

// keys are derived from the root key, one for each use.
type keys struct{ chain, checkpoint, head, party []byte }

// New returns a ledger. It reads nothing, and writes no file before it is connected.
func New(vault *secret.Vault) *Ledger {
	return &Ledger{
		vault: vault,
		keys: sync.OnceValue(func() keys {
			return keys{
				chain: vault.Key("audit.chain"), checkpoint: vault.Key("audit.checkpoint"), head: vault.Key("audit.head"),
				party: vault.Key("audit.party"),
			}
		}),
	}
}

// Ready reports that the keys are usable, so that an entry can be written in any transaction.
func (l *Ledger) Ready() bool { return l.ready.Load() }

// Unlock makes the keys usable. Outside of a transaction it may make the root key, which is a write.
func (l *Ledger) Unlock() error {
	if l.ready.Load() {
		return nil
	}
	if err := l.vault.Unlock(); err != nil {
		return fmt.Errorf("unlock vault: %w", err)
	}
	l.ready.Store(true)
	return nil
}

// chained is an entry as it is stored: with numbers of parties, and times in Unix milliseconds.
type chained struct {
	ID, At                             int64
	Action, Outcome                    string
	Actor, Subject, ActAs              party
	Session, Request, Address, Details string
	MAC                                []byte
}

// encodingVersion is the first byte under every MAC, so that another encoding can be told apart.
const encodingVersion = 1

// sum is the MAC of an entry behind the one with the MAC prev: every column, each text with its length, so that no two
// entries have one encoding. Of parties it covers the number and the commitment.
func (c *chained) sum(key, prev, buf []byte) []byte {
	b := append(append(buf[:0], prev...), encodingVersion)
	b = binary.BigEndian.AppendUint64(b, uint64(c.ID))
	b = binary.BigEndian.AppendUint64(b, uint64(c.At))
	for _, s := range [...]string{c.Action, c.Outcome, c.Session, c.Request, c.Address, c.Details} {
		b = appendText(b, s)
	}
	for _, p := range [...]party{c.Actor, c.Subject, c.ActAs} {
		b = append(binary.BigEndian.AppendUint64(b, uint64(p.ID)), p.Seal...) // a seal has 32 bytes, or none with number 0
	}
	return mac(key, b)
}

func appendText[T string | []byte](b []byte, s T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func mac(key, text []byte) []byte {
	h := hmac.New(sha256.New, key)
	_, _ = h.Write(text)
	return h.Sum(nil)
}

// Append writes the entry. When tx is the application of a transaction, the entry is part of it; outside, it is a
// transaction of its own. Text that a client had a hand in is cut to a bounded length and never refused, so that nobody
// can keep an act out of the record; an error means a wrong action, outcome or kind, a missing master key, or a failed
// database.
func (l *Ledger) Append(tx core.App, e Entry) error {
	if e.Outcome == "" {
		e.Outcome = Success
	}
	if e.Actor.Kind == "" {
		e.Actor.Kind = System
	}
	err := e.check()
	var details string
	if err == nil {
		details, err = detailsJSON(e.Details)
	}
	if err == nil {
		err = l.Unlock()
	}
	if err != nil {
		return fmt.Errorf("append audit entry %s: %w", e.Action, err)
	}
	row := chained{
		At: time.Now().UnixMilli(), Action: e.Action, Outcome: e.Outcome,
		Session: cut(e.Session), Request: cut(e.Request), Address: api.Network(e.Address), Details: details,
	}
	err = tx.RunInTransaction(func(tx core.App) error {
		if err := l.insert(tx, &row, e.Actor, e.Subject, e.ActAs); err != nil {
			return err
		}
		pb.TransactionOf(tx).OnComplete(l.committed)
		return nil
	})
	if err != nil {
		return fmt.Errorf("append audit entry %s: %w", e.Action, err)
	}
	return nil
}

// insert puts the row behind the last one.
func (l *Ledger) insert(tx core.App, row *chained, actor, subject, actAs Party) error {
	db := tx.NonconcurrentDB()
	// Who names nobody, or somebody twice, is looked up once.
	who := make([]Party, 0, 3)
	for _, p := range [...]Party{actor, subject, actAs} {
		if p.Kind != "" && !slices.Contains(who, p) {
			who = append(who, p)
		}
	}
	last, known, err := before(db, who)
	if err != nil {
		return err
	}
	if last.ID == 0 {
		if last, err = l.begin(tx); err != nil {
			return err
		}
		if last.ID != 0 { // old entries were sealed, and may have named them
			if _, known, err = before(db, who); err != nil {
				return err
			}
		}
	}
	for i, p := range who {
		if known[i].ID == 0 {
			if known[i], err = addParty(db, p); err != nil {
				return err
			}
		}
	}
	number := func(p Party) party {
		if i := slices.Index(who, p); i >= 0 {
			return known[i]
		}
		return party{}
	}
	row.Actor, row.Subject, row.ActAs = number(actor), number(subject), number(actAs)
	row.ID = last.ID + 1
	row.MAC = row.sum(l.keys().chain, last.MAC, make([]byte, 0, 512))
	_, err = db.NewQuery(insertEntry).Bind(dbx.Params{
		"id": row.ID, "at": row.At, "action": row.Action, "outcome": row.Outcome, "actor": row.Actor.ID, "subject": row.Subject.ID,
		"act_as": row.ActAs.ID, "session": row.Session, "request": row.Request, "address": row.Address, "details": row.Details, "mac": row.MAC,
	}).Execute()
	if err != nil {
		return fmt.Errorf("store entry: %w", err)
	}
	return nil
}

const insertEntry = `INSERT INTO audit_chain (id, at, action, outcome, actor, subject, act_as, session, request, address, details, mac)
	VALUES ({:id}, {:at}, {:action}, {:outcome}, {:actor}, {:subject}, {:act_as}, {:session}, {:request}, {:address}, {:details}, {:mac})`

// selectLast reads in one statement, with as many of the others behind it as there are parties, what every entry needs:
// the one before it, and the parties that are known already.
const (
	selectLast   = "SELECT 0, id, mac FROM (SELECT id, mac FROM audit_chain ORDER BY id DESC LIMIT 1)"
	selectFirst  = " UNION ALL SELECT 1, id, seal FROM audit_parties WHERE record = {:r1} AND collection = {:c1} AND kind = {:k1} AND forgotten = x''"
	selectSecond = " UNION ALL SELECT 2, id, seal FROM audit_parties WHERE record = {:r2} AND collection = {:c2} AND kind = {:k2} AND forgotten = x''"
	selectThird  = " UNION ALL SELECT 3, id, seal FROM audit_parties WHERE record = {:r3} AND collection = {:c3} AND kind = {:k3} AND forgotten = x''"
)

// before returns the newest entry, zero if there is none, and the parties, zero where they are unknown.
func before(db dbx.Builder, who []Party) (Link, [3]party, error) {
	params := dbx.Params{}
	for i, p := range who {
		n := strconv.Itoa(i + 1)
		params["r"+n], params["c"+n], params["k"+n] = cut(p.ID), cut(p.Collection), p.Kind
	}
	var last Link
	var known [3]party
	rows, err := db.NewQuery([...]string{selectLast, selectLast + selectFirst, selectLast + selectFirst + selectSecond, selectLast + selectFirst + selectSecond + selectThird}[len(who)]).Bind(params).Rows()
	if err != nil {
		return last, known, fmt.Errorf("read last entry: %w", err)
	}
	for rows.Next() {
		var slot int
		var at Link
		if err = rows.Scan(&slot, &at.ID, &at.MAC); err != nil {
			break
		}
		if slot == 0 {
			last = at
		} else {
			known[slot-1] = party{at.ID, at.MAC}
		}
	}
	if err = errors.Join(err, rows.Err(), rows.Close()); err != nil {
		err = fmt.Errorf("read last entry: %w", err)
	}
	return last, known, err
}

// Link is a place in the chain.
type Link struct {
	ID  int64
	MAC []byte
}

// Newest is the last entry, zero if there is none.
func Newest(db dbx.Builder) (Link, error) {
	var last Link
	err := db.NewQuery("SELECT id, mac FROM audit_chain ORDER BY id DESC LIMIT 1").Row(&last.ID, &last.MAC)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return Link{}, fmt.Errorf("read last entry: %w", err)
	}
	return last, nil
}
