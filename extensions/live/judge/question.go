package judge

import (
	"context"
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"maps"
	"strings"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/rows"
)

// pairs is the table of viewers and records that a question is asked about, and its parameter.
const pairs = "live_pairs"

// Question is a rule and a filter as SQL that answers for any number of pairs of a viewer and a record. It is immutable
// and safe for concurrent use.
type Question struct {
	app        core.App
	collection *core.Collection
	text       string
	params     dbx.Params
	shared     bool
	positive   bool // what it joins can only let more pass
}

// mailOperand is the one operand about the account that PocketBase puts in as a value and that is not part of a viewer.
const mailOperand = "@request.auth." + core.FieldNameEmail

// Shareable reports whether one question can answer for all accounts of a kind: what the conditions read of the account is
// looked up by its id.
func Shareable(collection *core.Collection, auth *core.Record, rule *string, filter string) bool {
	viewer, plain := rows.ViewerOf(auth)
	if !plain {
		return false
	}
	if rule != nil && auth != nil && auth.Email() != "" {
		rule = new(strings.ReplaceAll(*rule, mailOperand, "@request.auth.id"))
	}
	return rows.Lasting(collection, viewer, rule, filter)
}

// NewQuestion builds the question of one kind of viewer. A shared one answers for all viewers of that kind, whose ids
// are in the pairs; the conditions must be [Shareable]. Whether it became shared is told by [Question.Shared]: an id inside
// of a longer value cannot be exchanged.
func NewQuestion(app core.App, collection *core.Collection, rule *string, filter string, info *core.RequestInfo, shared bool) (*Question, error) {
	q := &Question{app: app, collection: collection, shared: true, positive: positive(rule, info.Auth) && positive(&filter, info.Auth)}
	var err error
	if shared && info.Auth != nil {
		m := marks{id: rows.NewMark(), mail: rows.NewMark(), of: info.Auth}
		marked := *info
		marked.Auth = info.Auth.Clone()
		marked.Auth.SetRaw(core.FieldNameId, m.id) // a record that was just created has its id in two places
		if m.of.Email() != "" {
			marked.Auth.SetRaw(core.FieldNameEmail, m.mail)
		}
		// What is joined by the account's id needs the pairs before it.
		for _, first := range []bool{false, true} {
			if q.text, q.params, err = build(app, collection, rule, filter, &marked, first); err != nil {
				return nil, err
			}
			if m.exchange(&q.text, q.params, first) {
				return q, nil
			}
		}
	}
	if q.text, q.params, err = build(app, collection, rule, filter, info, false); err != nil {
		return nil, err
	}
	q.shared = shared && info.Auth == nil
	return q, nil
}

// Shared reports that the answer depends on the viewers in the pairs and on no other.
func (q *Question) Shared() bool { return q.shared }

// Parts of the SELECT.
const (
	pairColumn   = "[[" + pairs + ".k]]"
	amongRecords = ".id]] IN (SELECT r FROM " + pairs + ")"
	recordOfPair = pairs + ".r = [["
)

// build makes the SELECT. The pairs are its last table, which SQLite then looks up by the values that the rule compares a
// viewer's id with: a record with a thousand members and as many viewers costs a thousand steps and not a million. As the
// first table, they cost a step each.
func build(app core.App, collection *core.Collection, rule *string, filter string, info *core.RequestInfo, first bool) (string, dbx.Params, error) {
	sel := app.ConcurrentDB().Select(pairs + ".k").Distinct(true).From(collection.Name).
		AndWhere(dbx.NewExp("[[" + collection.Name + amongRecords))
	table, on := pairs, dbx.NewExp(recordOfPair+collection.Name+".id]]")
	if first {
		sel.From(pairs)
		table = collection.Name
		sel.Join("CROSS JOIN", table, on)
	}
	if err := rows.Where(sel, app, collection, info, rule, filter); err != nil {
		return "", nil, err
	}
	if !first {
		sel.Join("CROSS JOIN", table, on)
	}
	built := sel.Build()
	return built.SQL(), maps.Clone(built.Params()), nil
}

// with is the table of pairs. Ids are declared as texts, or SQLite would not look them up.
const with = "WITH " + pairs + "(k, v, r) AS MATERIALIZED (SELECT key, CAST(json_extract(value, '$[0]') AS TEXT), CAST(json_extract(value, '$[1]') AS TEXT) FROM json_each({:" + pairs + "}))"

// marks stand for what is the account's own while a question is built.
type marks struct {
	id, mail string
	of       *core.Record
}

// exchange puts what is the viewer's of the pair where the marks are. It reports false if a mark is part of something
// longer, if it is in a join and the pairs do not come before, or if the id of this one account is there nevertheless.
func (m marks) exchange(text *string, params dbx.Params, first bool) bool {
	mail := "(SELECT NULLIF({{" + m.of.Collection().Name + "}}.[[" + core.FieldNameEmail + "]], '') FROM {{" + m.of.Collection().Name +
		"}} WHERE {{" + m.of.Collection().Name + "}}.[[id]] = " + pairs + ".v)"
	joins, _, _ := strings.Cut(*text, " WHERE ")
	for name, value := range params {
		given, ok := value.(string)
		switch {
		case !ok:
		case given == m.id, given == m.mail:
			if !first && strings.Contains(joins, "{:"+name+"}") {
				return false
			}
			own := pairs + ".v"
			if given == m.mail {
				own = mail
			}
			*text = strings.ReplaceAll(*text, "{:"+name+"}", own)
			delete(params, name)
		case strings.Contains(given, m.id), strings.Contains(given, m.mail), given == m.of.Id:
			return false
		}
	}
	return !strings.Contains(*text, m.id) && !strings.Contains(*text, m.mail)
}

// Pair is a viewer's id, empty for a guest, and a record's.
type Pair [2]string

// Ask returns, for each pair in its order, whether the viewer sees the record.
func (q *Question) Ask(ctx context.Context, about []Pair) ([]bool, error) {
	return q.ask(ctx, with+" "+q.text, q.params, about)
}

// AskGone asks about records that are not there any more, as if they still were what they are here. What else the
// conditions read is read as it is now.
func (q *Question) AskGone(ctx context.Context, gone []*core.Record, about []Pair) ([]bool, error) {
	table, err := q.pretend(q.collection, gone)
	if err != nil {
		return nil, err
	}
	params := dbx.Params{"live_gone": table.rows}
	maps.Copy(params, q.params)
	pretence := ", {{" + q.collection.Name + "}} AS (SELECT " + table.columns + " FROM json_each({:live_gone})) "
	return q.ask(ctx, with+pretence+q.text, params, about)
}

// pretence is a table that is not in the database.
type pretence struct {
	columns string // of the elements of an array
	rows    string // the array
}

// pretend makes a table of records.
func (q *Question) pretend(collection *core.Collection, records []*core.Record) (pretence, error) {
	table := make([]map[string]any, len(records))
	for i, r := range records {
		values, err := r.DBExport(q.app)
		if err != nil {
			return pretence{}, fmt.Errorf("export record: %w", err)
		}
		for name, value := range values {
			if values[name], err = plain(value); err != nil {
				return pretence{}, fmt.Errorf("export record: %w", err)
			}
		}
		table[i] = values
	}
	raw, err := json.Marshal(table)
	if err != nil {
		return pretence{}, fmt.Errorf("export records: %w", err)
	}
	columns := make([]string, 0, len(collection.Fields))
	for _, f := range collection.Fields {
		name := f.GetName()
		columns = append(columns, `json_extract(value, '$."`+name+`"') AS [[`+name+`]]`)
	}
	return pretence{strings.Join(columns, ", "), string(raw)}, nil
}

// plain is a value as the database would hold it.
func plain(value any) (any, error) {
	if v, ok := value.(driver.Valuer); ok {
		var err error
		if value, err = v.Value(); err != nil {
			return nil, err
		}
	}
	if b, ok := value.([]byte); ok {
		return string(b), nil
	}
	return value, nil
}

// chunk bounds what one statement is asked about.
const chunk = 10_000

func (q *Question) ask(ctx context.Context, text string, params dbx.Params, about []Pair) ([]bool, error) {
	out := make([]bool, len(about))
	for start := 0; start < len(about); start += chunk {
		part := about[start:min(start+chunk, len(about))]
		raw, err := json.Marshal(part)
		if err != nil {
			return nil, fmt.Errorf("encode pairs: %w", err)
		}
		bound := dbx.Params{pairs: string(raw)}
		maps.Copy(bound, params)
		var seen []int
		if err := q.app.ConcurrentDB().NewQuery(text).Bind(bound).WithContext(ctx).Column(&seen); err != nil {
			return nil, fmt.Errorf("evaluate rule of %s: %w", q.collection.Name, err)
		}
		for _, k := range seen {
			out[start+k] = true
		}
	}
	return out, nil
}
