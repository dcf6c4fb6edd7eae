package device

import (
	"crypto/hmac"
	"crypto/sha256"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"encoding/json/jsontext"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/security"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/push/sender"
	"github.com/satchelbase/satchel/extensions/push/webpush"
)

// sessionKey is where sessions leave the id of the request's.
const sessionKey = "satchelSession"

// sessionless begins what stands for the session of a token that no session is behind.
const sessionless = "device/"

// caller is whose device it is.
type caller struct {
	account Account
	auth    *core.Record
	session string
}

// caller finds out who calls, from which device.
func (r *Registry) caller(e *core.RequestEvent) (caller, error) {
	e.Response.Header().Set("Cache-Control", "no-store")
	switch {
	case e.Auth == nil:
		return caller{}, api.ErrUnauthorized
	case e.Auth.IsSuperuser(), r.deps.Acting != nil && r.deps.Acting(e):
		return caller{}, api.Fail(ErrCaller, "")
	}
	c := caller{account: AccountOf(e.Auth), auth: e.Auth}
	if c.session, _ = e.Get(sessionKey).(string); c.session != "" {
		return c, nil
	}
	if id := api.DeviceID(e.Request); id != "" {
		c.session = sessionless + id
	}
	return c, nil
}

// deviceCaller is caller for what is about one device.
func (r *Registry) deviceCaller(e *core.RequestEvent) (caller, error) {
	c, err := r.caller(e)
	if err == nil && c.session == "" {
		err = api.Fail(ErrDevice, "")
	}
	return c, err
}

// standing returns an error if the caller's credential has ended since it was verified: what is written now would stay.
func (r *Registry) standing(tx core.App, c caller) error {
	now, err := tx.FindRecordById(c.auth.Collection(), c.account.ID)
	if errors.Is(err, sql.ErrNoRows) || err == nil && now.TokenKey() != c.auth.TokenKey() {
		return api.ErrUnauthorized
	}
	if err != nil || r.deps.Ended == nil {
		return err
	}
	ended, err := r.deps.Ended(tx.ConcurrentDB(), c.session)
	if err == nil && ended {
		err = api.ErrUnauthorized
	}
	return err
}

// registration is the body of PUT /api/v1/push/devices/current.
type registration struct {
	Platform     string         `json:"platform"`
	Token        string         `json:"token,omitempty"`
	Subscription jsontext.Value `json:"subscription,omitempty"`
	Environment  string         `json:"environment,omitempty"`
	App          string         `json:"app,omitempty"`
	Locale       string         `json:"locale,omitempty"`
	TimeZone     string         `json:"timeZone,omitempty"`
	AppVersion   string         `json:"appVersion,omitempty"`
}

// Bounds of a registration, in bytes.
const (
	maxApp      = 155 // of a bundle id, as Apple says
	maxLocale   = 35  // RFC 5646 section 4.4.1
	maxZone     = 64
	maxVersion  = 64
	maxEndpoint = 2048
)

// production is the word for the environment that package sender has no word for.
const production = "production"

// accept checks a registration and returns what is to be stored, and the token. The row has neither id nor account.
func (r *Registry) accept(in registration) (row, string, error) {
	var mistakes []api.FieldError
	bad := func(field, detail string) {
		mistakes = append(mistakes, api.Invalid(field, api.ErrFieldInvalid, detail))
	}
	out := row{Platform: in.Platform, App: in.App, TimeZone: in.TimeZone, AppVersion: in.AppVersion, Locale: strings.ReplaceAll(in.Locale, "_", "-")}
	token, identity := in.Token, in.Token
	switch p := sender.Platform(in.Platform); p {
	case sender.WebPush, sender.UnifiedPush:
		if in.Token != "" {
			bad("token", "this platform has a subscription")
		}
		var problem string
		if token, identity, problem = subscription(in.Subscription); problem != "" {
			bad("subscription", problem)
		}
	case sender.APNs, sender.FCM, sender.Expo:
		if len(in.Subscription) > 0 {
			bad("subscription", "this platform has a token")
		}
		if p == sender.APNs {
			token = strings.ToLower(token)
			identity = token
		}
		if !isToken(p, token) {
			bad("token", "is no token of the platform")
		}
	default:
		bad("platform", "must be apns, fcm, webpush, unifiedpush or expo")
	}
	switch {
	case in.Environment == "", in.Environment == production:
	case in.Environment == string(sender.Sandbox) && in.Platform == string(sender.APNs):
		out.Environment = in.Environment
	default:
		bad("environment", "must be production or, for apns, sandbox")
	}
	if !matches(in.App, maxApp, appForm) {
		bad("app", "must be a bundle id or the name of a package")
	}
	if !matches(out.Locale, maxLocale, localeForm) {
		bad("locale", "must be a language tag, such as pt-BR")
	}
	if in.TimeZone != "" && r.zone(in.TimeZone) == nil {
		bad("timeZone", "must be a name of the time zone database, such as Europe/Berlin")
	}
	if len(in.AppVersion) > maxVersion || !utf8.ValidString(in.AppVersion) || strings.IndexFunc(in.AppVersion, func(c rune) bool { return !unicode.IsPrint(c) }) >= 0 {
		bad("appVersion", fmt.Sprintf("must be printable and have at most %d bytes", maxVersion))
	}
	if len(mistakes) > 0 {
		return row{}, "", api.InvalidBody(mistakes...)
	}
	out.Hash = r.hash(out.Platform, identity)
	return out, token, nil
}

// Forms of what is registered. Tokens are those that the senders of the platforms would send to.
var (
	appForm    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)
	localeForm = regexp.MustCompile(`^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*$`)
	apnsForm   = regexp.MustCompile(`^([0-9a-f]{2}){8,100}$`)
	fcmForm    = regexp.MustCompile(`^[A-Za-z0-9_:.%-]{16,}$`)
	expoForm   = regexp.MustCompile(`^Expo(nent)?PushToken\[[!-\\^-~]{1,200}\]$`)
)

// maxToken is the longest that any sender takes, in bytes.
const maxToken = 4096

// matches reports whether a text is empty, or short enough and of a form.
func matches(text string, limit int, form *regexp.Regexp) bool {
	return text == "" || len(text) <= limit && form.MatchString(text)
}

func isToken(p sender.Platform, text string) bool {
	form := map[sender.Platform]*regexp.Regexp{sender.APNs: apnsForm, sender.FCM: fcmForm, sender.Expo: expoForm}[p]
	return len(text) <= maxToken && form.MatchString(text)
}

// subscription reads the PushSubscription of a browser and returns what to keep of it, and what it is known by: the keys
// may change, the endpoint does not.
func subscription(raw jsontext.Value) (token, identity, problem string) {
	if len(raw) == 0 {
		return "", "", "is required for this platform"
	}
	sub, err := webpush.Parse(string(raw))
	if err != nil {
		return "", "", err.Error()
	}
	u, err := url.Parse(sub.Endpoint)
	if err != nil || len(sub.Endpoint) > maxEndpoint || outbound.CheckURL(u) != nil {
		return "", "", fmt.Sprintf("the endpoint must be an https address of at most %d bytes", maxEndpoint)
	}
	kept, err := json.Marshal(sub)
	if err != nil {
		return "", "", err.Error()
	}
	return string(kept), sub.Endpoint, ""
}

// hash finds a token again and says nothing about it to whoever has no key.
func (r *Registry) hash(platform, identity string) string {
	mac := hmac.New(sha256.New, r.hashKey())
	mac.Write([]byte(platform + "|" + identity))
	return hex.EncodeToString(mac.Sum(nil))
}

// View is a device as its owner sees it, without the token.
type View struct {
	ID           string    `json:"id"`
	Platform     string    `json:"platform"`
	Environment  string    `json:"environment"`
	App          string    `json:"app"`
	Locale       string    `json:"locale"`
	TimeZone     string    `json:"timeZone"`
	AppVersion   string    `json:"appVersion"`
	State        string    `json:"state"` // live; stale: not seen for long; dead: the provider says so
	Current      bool      `json:"current"`
	Topics       []string  `json:"topics"`
	RegisteredAt time.Time `json:"registeredAt"`
	LastSeenAt   time.Time `json:"lastSeenAt"`
}

func (r *Registry) view(d row, session string, topics []string) View {
	v := View{
		ID: d.ID, Platform: d.Platform, Environment: d.Environment, App: d.App, Locale: d.Locale, TimeZone: d.TimeZone, AppVersion: d.AppVersion,
		State: "live", Current: session != "" && d.Session == session, Topics: topics, RegisteredAt: at(d.RegisteredAt), LastSeenAt: at(d.SeenAt),
	}
	if v.Environment == "" {
		v.Environment = production
	}
	switch {
	case d.DeadAt > 0:
		v.State = "dead"
	case d.SeenAt <= time.Now().Add(-Stale).UnixMilli():
		v.State = "stale"
	}
	if v.Topics == nil {
		v.Topics = []string{}
	}
	return v
}

func (r *Registry) handleRegister(e *core.RequestEvent) error {
	c, err := r.deviceCaller(e)
	if err != nil {
		return err
	}
	var in registration
	if err := api.Bind(e, &in); err != nil {
		return err
	}
	d, token, err := r.accept(in)
	if err != nil {
		return err
	}
	if err := r.deps.Vault.Unlock(); err != nil {
		return fmt.Errorf("unlock vault: %w", err)
	}
	var moved bool
	var joined []string
	err = e.App.RunInTransaction(func(tx core.App) error {
		if err := r.standing(tx, c); err != nil {
			return err
		}
		if moved, err = r.register(tx, c, &d, token); err != nil {
			return err
		}
		joined, err = joinedBy(tx, d.ID)
		return err
	})
	if err != nil {
		return err
	}
	r.registered.Add(1)
	if moved {
		r.moved.Add(1)
	}
	return api.Write(e, http.StatusOK, r.view(d, c.session, joined))
}

// register writes the device of a session. The row that the session has, or else the one that the account has for the
// token, keeps its id and its topics; whatever else has the session or the token goes. It reports whether the token was
// another account's.
func (r *Registry) register(tx core.App, c caller, d *row, token string) (moved bool, err error) {
	now := time.Now().UnixMilli()
	d.Collection, d.Record, d.Session = c.account.Collection, c.account.ID, c.session
	d.RegisteredAt, d.SeenAt = now, now
	var known []row
	params := c.account.params()
	params["session"], params["platform"], params["hash"] = d.Session, d.Platform, d.Hash
	err = tx.ConcurrentDB().NewQuery(`SELECT * FROM ` + table + ` WHERE ` + owned + ` AND session = {:session}
		UNION SELECT * FROM ` + table + ` WHERE platform = {:platform} AND hash = {:hash}`).Bind(params).All(&known)
	if err != nil {
		return false, fmt.Errorf("find device: %w", err)
	}
	for _, k := range known {
		mine, same := k.account() == c.account, k.Platform == d.Platform && k.Hash == d.Hash
		moved = moved || !mine
		if mine && same {
			d.RegisteredAt = k.RegisteredAt
		}
		if mine && (d.ID == "" || k.Session == d.Session) {
			d.ID = k.ID
		}
	}
	for _, k := range known {
		if k.ID != d.ID {
			if err := forget(tx, `id = {:id}`, dbx.Params{"id": k.ID}); err != nil {
				return false, err
			}
		}
	}
	if d.ID == "" {
		d.ID = security.RandomStringWithAlphabet(core.DefaultIdLength, core.DefaultIdAlphabet)
	}
	if d.Token, err = r.deps.Vault.Seal(aad(d.ID), []byte(token)); err != nil {
		return false, fmt.Errorf("seal token: %w", err)
	}
	_, err = tx.NonconcurrentDB().NewQuery(`INSERT OR REPLACE INTO ` + table + ` (id, collection, record, session, platform, environment, hash, token,
			app, locale, time_zone, app_version, registered_at, seen_at) VALUES ({:id}, {:collection}, {:record}, {:session}, {:platform},
			{:environment}, {:hash}, {:token}, {:app}, {:locale}, {:zone}, {:version}, {:registered}, {:seen})`).
		Bind(dbx.Params{
			"id": d.ID, "collection": d.Collection, "record": d.Record, "session": d.Session, "platform": d.Platform, "environment": d.Environment,
			"hash": d.Hash, "token": d.Token, "app": d.App, "locale": d.Locale, "zone": d.TimeZone, "version": d.AppVersion,
			"registered": d.RegisteredAt, "seen": d.SeenAt,
		}).Execute()
	if err != nil {
		return false, fmt.Errorf("store device: %w", err)
	}
	return moved, r.bound(tx, c.account)
}

// bound keeps the number of an account's devices within the limit.
func (r *Registry) bound(tx core.App, a Account) error {
	params := a.params()
	params["most"] = r.options.Devices
	var over []string
	err := tx.ConcurrentDB().NewQuery(`SELECT id FROM ` + table + ` WHERE ` + owned + ` ORDER BY seen_at DESC, rowid DESC LIMIT -1 OFFSET {:most}`).
		Bind(params).Column(&over)
	if err != nil {
		return fmt.Errorf("count devices: %w", err)
	}
	for _, id := range over {
		if err := forget(tx, `id = {:id}`, dbx.Params{"id": id}); err != nil {
			return err
		}
	}
	return nil
}

// handleUnregister forgets the caller's device. There being none is as good.
func (r *Registry) handleUnregister(e *core.RequestEvent) error {
	c, err := r.deviceCaller(e)
	if err != nil {
		return err
	}
	if err := api.Bind(e, &struct{}{}); err != nil {
		return err
	}
	params := c.account.params()
	params["session"] = c.session
	err = e.App.RunInTransaction(func(tx core.App) error { return forget(tx, owned+` AND session = {:session}`, params) })
	if err != nil {
		return err
	}
	return e.NoContent(http.StatusNoContent)
}

func (r *Registry) handleList(e *core.RequestEvent) error {
	c, err := r.caller(e)
	if err != nil {
		return err
	}
	rows, joined, err := devicesOf(e.App, c.account)
	if err != nil {
		return err
	}
	out := make([]View, len(rows))
	for i, d := range rows {
		out[i] = r.view(d, c.session, joined[d.ID])
	}
	return api.WritePage(e, out, api.Page{Limit: r.options.Devices})
}

// devicesOf returns the devices of an account and the topics of each, by id.
func devicesOf(app core.App, a Account) ([]row, map[string][]string, error) {
	var rows []row
	err := app.ConcurrentDB().NewQuery(`SELECT * FROM ` + table + ` WHERE ` + owned + ` ORDER BY seen_at DESC, id`).Bind(a.params()).All(&rows)
	if err != nil {
		return nil, nil, fmt.Errorf("list devices: %w", err)
	}
	joined := map[string][]string{}
	for _, d := range rows {
		if joined[d.ID], err = joinedBy(app, d.ID); err != nil {
			return nil, nil, err
		}
	}
	return rows, joined, nil
}

// handleKey answers the key that browsers subscribe with. It is public.
func (r *Registry) handleKey(e *core.RequestEvent) error {
	connected, err := r.deps.Connected(e.App)
	if err != nil {
		return err
	}
	if key := connected[sender.WebPush]; key != "" {
		return api.Write(e, http.StatusOK, map[string]string{"publicKey": key})
	}
	return ErrNoKey
}
