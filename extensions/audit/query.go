package audit

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pocketbase/dbx"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/audit/ledger"
)

// Filter chooses entries. Empty members choose all. Actor and Subject are "<collection>/<id>" or "<id>".
type Filter struct {
	Action, Outcome, Actor, Subject, Session, Request string

	From, To time.Time // From is inclusive, To is not
}

// View is an entry as it is shown. Those who were forgotten have no id any more.
type View struct {
	ID      string          `json:"id"`
	At      time.Time       `json:"at"`
	Action  string          `json:"action"`
	Outcome string          `json:"outcome"`
	Actor   Who             `json:"actor"`
	ActAs   *Who            `json:"actAs,omitempty"`
	Subject *Who            `json:"subject,omitempty"`
	Session string          `json:"session,omitempty"`
	Request string          `json:"request,omitempty"`
	Address string          `json:"address,omitempty"`
	Details json.RawMessage `json:"details"`

	key position
}

// Who is a party as it is shown. Party stays the same when an account is forgotten.
type Who struct {
	Party      string `json:"party"`
	Kind       string `json:"kind"`
	Collection string `json:"collection,omitempty"`
	ID         string `json:"id,omitempty"`
	Forgotten  bool   `json:"forgotten,omitempty"`
}

// position is the place of an entry in a list: by time and, within a millisecond, by number.
type position struct{ at, id int64 }

// filterNames are the members of a query that choose entries.
func filterNames() []string {
	return []string{"action", "outcome", "actor", "subject", "session", "request", "from", "to"}
}

// parseFilter reads the members of a query and tells all mistakes at once. other are the names that may be there too.
func parseFilter(q url.Values, other ...string) (Filter, error) {
	f := Filter{
		Action: q.Get("action"), Outcome: q.Get("outcome"), Actor: q.Get("actor"), Subject: q.Get("subject"),
		Session: q.Get("session"), Request: q.Get("request"),
	}
	var mistakes []api.FieldError
	for name, values := range q {
		switch {
		case !slices.Contains(filterNames(), name) && !slices.Contains(other, name):
			mistakes = append(mistakes, api.Invalid(name, api.ErrFieldUnknown, ""))
		case len(values) > 1 || len(values[0]) > ledger.MaxText:
			mistakes = append(mistakes, api.Invalid(name, ErrFilter, "one value, of at most 256 bytes"))
		}
	}
	for name, at := range map[string]*time.Time{"from": &f.From, "to": &f.To} {
		if text := q.Get(name); text != "" {
			t, err := time.Parse(time.RFC3339, text)
			if err != nil {
				mistakes = append(mistakes, api.Invalid(name, ErrFilter, "a time such as 2026-01-31T12:00:00Z"))
			}
			*at = t
		}
	}
	if f.Action != "" && !ledger.ActionPattern.MatchString(strings.TrimSuffix(f.Action, ".")) && !ledger.ActionPattern.MatchString(f.Action+"x.x") && !ledger.ActionPattern.MatchString(f.Action+".x") {
		mistakes = append(mistakes, api.Invalid("action", ErrFilter, `an action such as sessions.revoked, or its beginning, such as "sessions."`))
	}
	if f.Outcome != "" && !ledger.OutcomePattern.MatchString(f.Outcome) {
		mistakes = append(mistakes, api.Invalid("outcome", ErrFilter, "a word such as success, failure or denied"))
	}
	if len(mistakes) > 0 {
		slices.SortFunc(mistakes, func(a, b api.FieldError) int { return strings.Compare(a.Field, b.Field) })
		return f, &api.Problem{Code: ErrFilter, Errors: mistakes[:min(len(mistakes), 20)]}
	}
	return f, nil
}

// text names the filter, for cursors and for the entry of an export.
func (f Filter) text() string {
	q := url.Values{}
	for name, value := range map[string]string{
		"action": f.Action, "outcome": f.Outcome, "actor": f.Actor, "subject": f.Subject, "session": f.Session, "request": f.Request,
	} {
		if value != "" {
			q.Set(name, value)
		}
	}
	for name, at := range map[string]time.Time{"from": f.From, "to": f.To} {
		if !at.IsZero() {
			q.Set(name, at.UTC().Format(time.RFC3339Nano))
		}
	}
	return q.Encode()
}

// query is a Filter as SQL: the index to walk, and the conditions.
type query struct {
	index  string
	where  []string
	params dbx.Params
	none   bool // nothing can match
}

// areaIs is the condition that the index of areas serves.
const areaIs = ledger.AreaOfAction + " = {:area}"

// query chooses the index. There are no statistics to choose by, so the members come in the order in which they usually
// leave fewest entries.
func (f Filter) query(db dbx.Builder) (query, error) {
	q := query{params: dbx.Params{}}
	use := func(index, condition string, params dbx.Params) {
		if q.index == "" {
			q.index = index
		}
		q.where = append(q.where, condition)
		maps.Copy(q.params, params)
	}
	if f.Request != "" {
		use("audit_chain_request", "c.request = {:request} AND c.request <> ''", dbx.Params{"request": f.Request})
	}
	if f.Session != "" {
		use("audit_chain_session", "c.session = {:session} AND c.session <> ''", dbx.Params{"session": f.Session})
	}
	for _, p := range []struct{ who, index, column, more string }{
		{f.Subject, "audit_chain_subject", "c.subject", " AND c.subject > 0"}, {f.Actor, "audit_chain_actor", "c.actor", ""},
	} {
		if p.who == "" {
			continue
		}
		ids, err := partiesOf(db, p.who)
		if err != nil {
			return q, err
		}
		q.none = q.none || len(ids) == 0
		use(p.index, p.column+" IN ("+strings.Join(append(ids, "-1")[:max(1, len(ids))], ",")+")"+p.more, nil)
	}
	if f.Outcome != "" && f.Outcome != Success {
		use("audit_chain_outcome", "c.outcome = {:outcome} AND c.outcome <> 'success'", dbx.Params{"outcome": f.Outcome})
	}
	if area, rest, dotted := strings.Cut(f.Action, "."); dotted {
		if rest != "" && strings.HasSuffix(rest, ".") {
			use("audit_chain_area", areaIs+" AND c.action >= {:action} AND c.action < {:beyond}",
				dbx.Params{"area": area, "action": f.Action, "beyond": strings.TrimSuffix(f.Action, ".") + "/"})
		} else if rest != "" {
			use("audit_chain_action", "c.action = {:action}", dbx.Params{"action": f.Action})
		} else {
			use("audit_chain_area", areaIs, dbx.Params{"area": area})
		}
	} else if f.Action != "" {
		use("audit_chain_area", areaIs, dbx.Params{"area": area})
	}
	if f.Outcome == Success {
		q.where = append(q.where, "c.outcome = 'success'")
	}
	if q.index == "" {
		q.index = "audit_chain_at"
	}
	if !f.From.IsZero() {
		use("", "c.at >= {:from}", dbx.Params{"from": f.From.UnixMilli()})
	}
	if !f.To.IsZero() {
		use("", "c.at < {:to}", dbx.Params{"to": f.To.UnixMilli()})
	}
	return q, nil
}

// maxParties is how many parties one id may stand for: an id can be one of several collections.
const maxParties = 50

// partiesOf finds the numbers of those whom entries know by the id.
func partiesOf(db dbx.Builder, who string) ([]string, error) {
	text, params := "SELECT id FROM audit_parties WHERE record = {:record} AND forgotten = x''", dbx.Params{"record": who}
	if collection, id, ok := strings.Cut(who, "/"); ok {
		text += " AND collection = {:collection}"
		params = dbx.Params{"record": id, "collection": collection}
	}
	var ids []string
	if err := db.NewQuery(text + " LIMIT " + strconv.Itoa(maxParties)).Bind(params).Column(&ids); err != nil {
		return nil, fmt.Errorf("find party: %w", err)
	}
	return ids, nil
}

// sql is the statement that finds the entries of a page, without the names of parties.
func (q query) sql(after *position, limit int, oldestFirst bool) (string, dbx.Params) {
	compare, order := "<", "DESC"
	if oldestFirst {
		compare, order = ">", "ASC"
	}
	where, params := slices.Clone(q.where), dbx.Params{"limit": limit}
	maps.Copy(params, q.params)
	if after != nil { // the first condition bounds the walk, which SQLite does not take from the second
		where = append(where, "c.at "+compare+"= {:afterAt}", "(c.at, c.id) "+compare+" ({:afterAt}, {:afterID})")
		params["afterAt"], params["afterID"] = after.at, after.id
	}
	text := "SELECT c.id, c.at, c.action, c.outcome, c.session, c.request, c.address, c.details, c.actor, c.subject, c.act_as FROM audit_chain c INDEXED BY " + q.index
	if len(where) > 0 {
		text += " WHERE " + strings.Join(where, " AND ")
	}
	return text + " ORDER BY c.at " + order + ", c.id " + order + " LIMIT {:limit}", params
}

// page reads up to limit entries behind a place, the newest first or the oldest first.
func (q query) page(ctx context.Context, db dbx.Builder, after *position, limit int, oldestFirst bool) ([]View, error) {
	if q.none {
		return nil, nil
	}
	text, params := q.sql(after, limit, oldestFirst)
	order := map[bool]string{true: "ASC", false: "DESC"}[oldestFirst]
	rows, err := db.NewQuery(`SELECT e.id, e.at, e.action, e.outcome, e.session, e.request, e.address, e.details,
		e.actor, coalesce(a.kind, ''), coalesce(a.collection, ''), coalesce(a.record, ''), coalesce(length(a.forgotten), 0),
		e.subject, coalesce(s.kind, ''), coalesce(s.collection, ''), coalesce(s.record, ''), coalesce(length(s.forgotten), 0),
		e.act_as, coalesce(n.kind, ''), coalesce(n.collection, ''), coalesce(n.record, ''), coalesce(length(n.forgotten), 0)
		FROM (` + text + `) e LEFT JOIN audit_parties a ON a.id = e.actor LEFT JOIN audit_parties s ON s.id = e.subject LEFT JOIN audit_parties n ON n.id = e.act_as
		ORDER BY e.at ` + order + ", e.id " + order).Bind(params).WithContext(ctx).Rows()
	if err != nil {
		return nil, fmt.Errorf("list audit entries: %w", err)
	}
	var out []View
	for rows.Next() {
		var v View
		var details string
		var who [3]Who
		var party, gone [3]int64
		err = rows.Scan(&v.key.id, &v.key.at, &v.Action, &v.Outcome, &v.Session, &v.Request, &v.Address, &details,
			&party[0], &who[0].Kind, &who[0].Collection, &who[0].ID, &gone[0],
			&party[1], &who[1].Kind, &who[1].Collection, &who[1].ID, &gone[1],
			&party[2], &who[2].Kind, &who[2].Collection, &who[2].ID, &gone[2])
		if err != nil {
			break
		}
		for i := range who {
			who[i].Party, who[i].Forgotten = strconv.FormatInt(party[i], 10), gone[i] > 0
		}
		v.ID, v.At, v.Actor = strconv.FormatInt(v.key.id, 10), time.UnixMilli(v.key.at).UTC(), who[0]
		if party[1] > 0 {
			v.Subject = &who[1]
		}
		if party[2] > 0 {
			v.ActAs = &who[2]
		}
		if v.Details = json.RawMessage(details); !json.Valid(v.Details) {
			v.Details = json.RawMessage(`{"damaged":true}`)
		}
		out = append(out, v)
	}
	if err = errors.Join(err, rows.Err(), rows.Close()); err != nil {
		return nil, fmt.Errorf("list audit entries: %w", err)
	}
	return out, nil
}

// List returns up to limit entries, the newest first, and the cursor of the next page, empty at the end. Entries that are
// written meanwhile neither move nor repeat those of later pages. cursor is empty for the first page; [ErrCursor] says
// that it belongs to another list.
func (l *Log) List(ctx context.Context, db dbx.Builder, f Filter, cursor string, limit int) ([]View, string, error) {
	if err := l.Unlock(); err != nil {
		return nil, "", fmt.Errorf("list audit entries: %w", err)
	}
	var after *position
	if cursor != "" {
		at, ok := l.openCursor(f, cursor)
		if !ok {
			return nil, "", api.Fail(ErrCursor, "")
		}
		after = &at
	}
	q, err := f.query(db)
	if err != nil {
		return nil, "", err
	}
	list, err := q.page(ctx, db, after, limit+1, false)
	if err != nil || len(list) <= limit {
		return list, "", err
	}
	list = list[:limit]
	return list, l.cursor(f, list[limit-1].key), nil
}

// cursorTag is the length of a cursor's tag, in bytes: nothing is lost with a forged one but a page.
const cursorTag = 16

func (l *Log) cursorSum(f Filter, place []byte) []byte {
	h := hmac.New(sha256.New, l.cursorKey())
	_, _ = h.Write(place) // of fixed length
	_, _ = h.Write([]byte(f.text()))
	return h.Sum(nil)[:cursorTag]
}

func (l *Log) cursor(f Filter, p position) string {
	place := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(p.at)), uint64(p.id))
	return base64.RawURLEncoding.EncodeToString(append(place, l.cursorSum(f, place)...))
}

func (l *Log) openCursor(f Filter, text string) (position, bool) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(raw) != 16+cursorTag || !hmac.Equal(raw[16:], l.cursorSum(f, raw[:16])) {
		return position{}, false
	}
	return position{int64(binary.BigEndian.Uint64(raw)), int64(binary.BigEndian.Uint64(raw[8:]))}, true
}
