// Package credentials keeps what push providers know this server by, sealed in a table, and makes the senders of it. What
// is saved has been checked; what changes, here or by a command beside the server, is used within some seconds.
package credentials

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/internal/secret"
	"github.com/satchelbase/satchel/extensions/push/apns"
	"github.com/satchelbase/satchel/extensions/push/expo"
	"github.com/satchelbase/satchel/extensions/push/fcm"
	"github.com/satchelbase/satchel/extensions/push/sender"
	"github.com/satchelbase/satchel/extensions/push/webpush"
)

// Table holds one row for each platform.
const Table = "push_credentials"

// Statements create the table. data is sealed; facts is JSON of what may be shown; version is another one after each save.
func Statements() []string {
	return []string{`CREATE TABLE ` + Table + ` (
		platform TEXT PRIMARY KEY NOT NULL, data TEXT NOT NULL, facts TEXT NOT NULL, version TEXT NOT NULL, saved INTEGER NOT NULL
	) WITHOUT ROWID, STRICT`}
}

// ErrNotConnected says that nobody has given credentials for a platform.
var ErrNotConnected = errors.New("the platform has no credentials")

// look is how often the table is asked for changes, at most.
const look = 5 * time.Second

// Set are the credentials of one platform: the field that fits is set.
type Set struct {
	APNs    *apns.Credentials    `json:"apns,omitempty"`
	FCM     *fcm.Credentials     `json:"fcm,omitempty"`
	WebPush *webpush.Credentials `json:"webpush,omitempty"`
	Expo    *expo.Credentials    `json:"expo,omitempty"`
}

// Platform is the one that the set is for. UnifiedPush uses those of Web Push.
func (s Set) Platform() sender.Platform {
	switch {
	case s.APNs != nil:
		return sender.APNs
	case s.FCM != nil:
		return sender.FCM
	case s.WebPush != nil:
		return sender.WebPush
	case s.Expo != nil:
		return sender.Expo
	}
	return ""
}

// Facts are what may be shown of credentials: nothing that lets anybody send.
type Facts struct {
	KeyID     string `json:"keyId,omitempty"`
	TeamID    string `json:"teamId,omitempty"`
	Topic     string `json:"topic,omitempty"`
	Account   string `json:"account,omitempty"`
	PublicKey string `json:"publicKey,omitempty"` // browsers subscribe with it
	Subject   string `json:"subject,omitempty"`
	Protected bool   `json:"protected,omitempty"` // Expo has an access token
}

// Entry is one platform's row, without the secrets.
type Entry struct {
	Platform sender.Platform `json:"platform"`
	Saved    time.Time       `json:"savedAt"`
	Facts    Facts           `json:"facts"`
}

// Options say how providers are reached.
type Options struct {
	Outbound outbound.Options
	Size     int // calls at once, for each platform

	// These replace the providers' addresses, for stubs.
	APNs, APNsSandbox, FCM, Expo string
}

// Keeper keeps credentials and lends senders. It is safe for concurrent use once Open was called.
type Keeper struct {
	vault    *secret.Vault
	options  Options
	breakers *outbound.Breakers
	app      core.App

	mu      sync.Mutex
	looked  time.Time
	senders map[sender.Platform]made
}

type made struct {
	sender  sender.Sender
	version string
}

// New returns a keeper that knows no database yet.
func New(vault *secret.Vault, o Options) *Keeper {
	return &Keeper{vault: vault, options: o, breakers: outbound.NewBreakers(0), senders: map[sender.Platform]made{}}
}

// Open tells the keeper its database and how to reach providers. It runs once, before any use.
func (k *Keeper) Open(app core.App, o outbound.Options) { k.app, k.options.Outbound = app, o }

// Make makes a sender of a set, or says what is wrong with it.
func (k *Keeper) Make(s Set) (sender.Sender, Facts, error) {
	o := k.options
	switch s.Platform() {
	case sender.APNs:
		made, err := apns.New(*s.APNs, apns.Options{Outbound: o.Outbound, Size: o.Size, Breakers: k.breakers, Production: o.APNs, Sandbox: o.APNsSandbox})
		return made, Facts{KeyID: s.APNs.KeyID, TeamID: s.APNs.TeamID, Topic: s.APNs.Topic}, err
	case sender.FCM:
		made, err := fcm.New(*s.FCM, fcm.Options{Outbound: o.Outbound, Size: o.Size, Breakers: k.breakers, Endpoint: o.FCM})
		return made, Facts{Account: s.FCM.Describe()}, err
	case sender.WebPush:
		made, err := webpush.New(*s.WebPush, webpush.Options{Outbound: o.Outbound, Size: o.Size, Breakers: k.breakers})
		if err != nil {
			return nil, Facts{}, err
		}
		return made, Facts{PublicKey: made.PublicKey(), Subject: s.WebPush.Subject}, nil
	case sender.Expo:
		made, err := expo.New(*s.Expo, expo.Options{Outbound: o.Outbound, Size: o.Size, Breakers: k.breakers, Endpoint: o.Expo})
		return made, Facts{Protected: s.Expo.AccessToken != ""}, err
	}
	return nil, Facts{}, errors.New("the set has no credentials")
}

// Save checks a set's form and writes it in place of the platform's old one. tx is the keeper's database, or a transaction
// of it; the vault must be unlocked.
func (k *Keeper) Save(tx core.App, s Set) (Entry, error) {
	made, facts, err := k.Make(s)
	if err != nil {
		return Entry{}, err
	}
	made.Close()
	plain, err := json.Marshal(s)
	if err != nil {
		return Entry{}, fmt.Errorf("encode credentials: %w", err)
	}
	sealed, err := k.vault.Seal(aad(s.Platform()), plain)
	if err != nil {
		return Entry{}, fmt.Errorf("seal credentials: %w", err)
	}
	shown, err := json.Marshal(facts)
	if err != nil {
		return Entry{}, fmt.Errorf("encode credentials: %w", err)
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	_, err = tx.NonconcurrentDB().NewQuery(`INSERT OR REPLACE INTO ` + Table + ` (platform, data, facts, version, saved) VALUES ({:p}, {:d}, {:f}, {:v}, {:s})`).
		Bind(dbx.Params{"p": string(s.Platform()), "d": sealed, "f": string(shown), "v": rand.Text(), "s": now.UnixMilli()}).Execute()
	if err != nil {
		return Entry{}, fmt.Errorf("save credentials: %w", err)
	}
	k.forget()
	return Entry{s.Platform(), now, facts}, nil
}

// Remove deletes a platform's credentials and reports whether there were any.
func (k *Keeper) Remove(tx core.App, p sender.Platform) (bool, error) {
	result, err := tx.NonconcurrentDB().Delete(Table, dbx.HashExp{"platform": string(p)}).Execute()
	if err != nil {
		return false, fmt.Errorf("remove credentials: %w", err)
	}
	n, err := result.RowsAffected()
	k.forget()
	return n > 0, err
}

// List returns what is connected, by name.
func List(app core.App) ([]Entry, error) {
	var rows []row
	if err := app.ConcurrentDB().Select("platform", "facts", "version", "saved").From(Table).OrderBy("platform").All(&rows); err != nil {
		return nil, fmt.Errorf("list credentials: %w", err)
	}
	list := make([]Entry, len(rows))
	for i, r := range rows {
		list[i] = Entry{Platform: sender.Platform(r.Platform), Saved: time.UnixMilli(r.Saved).UTC()}
		if err := json.Unmarshal([]byte(r.Facts), &list[i].Facts); err != nil {
			return nil, fmt.Errorf("read credentials of %s: %w", r.Platform, err)
		}
	}
	return list, nil
}

type row struct {
	Platform string `db:"platform"`
	Data     string `db:"data"`
	Facts    string `db:"facts"`
	Version  string `db:"version"`
	Saved    int64  `db:"saved"`
}

// forget makes the next use look at the table.
func (k *Keeper) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.looked = time.Time{}
}

// Sender returns the sender of a platform, or ErrNotConnected. It must not be called inside a transaction. Nobody closes
// what it returns: the keeper does when the credentials have changed.
func (k *Keeper) Sender(ctx context.Context, p sender.Platform) (sender.Sender, error) {
	if p == sender.UnifiedPush {
		p = sender.WebPush
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if time.Since(k.looked) >= look {
		if err := k.refresh(ctx); err != nil {
			return nil, err
		}
		k.looked = time.Now()
	}
	if m, ok := k.senders[p]; ok {
		return m.sender, nil
	}
	return nil, ErrNotConnected
}

// Close lets go of all connections.
func (k *Keeper) Close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range k.senders {
		m.sender.Close()
	}
	clear(k.senders)
	k.looked = time.Time{}
}

// refresh makes the senders what the table says. The caller holds the lock.
func (k *Keeper) refresh(ctx context.Context) error {
	var rows []row
	err := k.app.ConcurrentDB().Select("platform", "data", "version").From(Table).WithContext(ctx).All(&rows)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return fmt.Errorf("read credentials: %w", err)
	}
	now := map[sender.Platform]made{}
	for _, r := range rows {
		p := sender.Platform(r.Platform)
		if old, ok := k.senders[p]; ok && old.version == r.Version {
			now[p] = old
			continue
		}
		s, err := k.open(r)
		if err != nil {
			return fmt.Errorf("read credentials of %s: %w", p, err)
		}
		now[p] = made{s, r.Version}
	}
	for p, old := range k.senders {
		if now[p].version != old.version {
			old.sender.Close() // what is on its way ends as it would
		}
	}
	k.senders = now
	return nil
}

func (k *Keeper) open(r row) (sender.Sender, error) {
	plain, err := k.vault.Open(aad(sender.Platform(r.Platform)), r.Data)
	if err != nil {
		return nil, err
	}
	var s Set
	if err := json.Unmarshal(plain, &s); err != nil {
		return nil, err
	}
	made, _, err := k.Make(s)
	return made, err
}

// Current returns a platform's own credentials, for keeping a part of them when they are changed.
func (k *Keeper) Current(p sender.Platform) (Set, error) {
	var r row
	err := k.app.ConcurrentDB().Select("platform", "data").From(Table).Where(dbx.HashExp{"platform": string(p)}).One(&r)
	if errors.Is(err, sql.ErrNoRows) {
		return Set{}, ErrNotConnected
	}
	if err != nil {
		return Set{}, fmt.Errorf("read credentials: %w", err)
	}
	plain, err := k.vault.Open(aad(p), r.Data)
	if err != nil {
		return Set{}, fmt.Errorf("open credentials: %w", err)
	}
	var s Set
	if err := json.Unmarshal(plain, &s); err != nil {
		return Set{}, fmt.Errorf("decode credentials: %w", err)
	}
	return s, nil
}

// aad ties a sealed value to its row.
func aad(p sender.Platform) string { return Table + "|data|" + string(p) }
