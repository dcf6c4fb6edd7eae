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
}

// NewQuestion builds the question of one kind of viewer. A shared one answers for all viewers of that kind, whose ids
// are in the pairs; the conditions must be lasting ([rows.Lasting]). Whether it became shared is told by
// [Question.Shared]: an id inside of a longer value cannot be exchanged.
func NewQuestion(app core.App, collection *core.Collection, rule *string, filter string, info *core.RequestInfo, shared bool) (*Question, error) {
	if shared && info.Auth != nil {
		mark := rows.NewMark()
		marked := *info
		marked.Auth = info.Auth.Clone()
		marked.Auth.SetRaw(core.FieldNameId, mark) // a record that was just created has its id in two places
		text, params, err := build(app, collection, rule, filter, &marked)
		if err != nil {
			return nil, err
		}
		if exchange(&text, params, mark, info.Auth.Id) {
			return &Question{app, collection, text, params, true}, nil
		}
	}
	text, params, err := build(app, collection, rule, filter, info)
	if err != nil {
		return nil, err
	}
	return &Question{app, collection, text, params, shared && info.Auth == nil}, nil
}

// Shared reports that the answer depends on the viewers in the pairs and on no other.
func (q *Question) Shared() bool { return q.shared }

// build makes the SELECT. The pairs are its last table, which SQLite then looks up by the values that the rule compares a
// viewer's id with: a record with a thousand members and as many viewers costs a thousand steps and not a million.
func build(app core.App, collection *core.Collection, rule *string, filter string, info *core.RequestInfo) (string, dbx.Params, error) {
	sel := app.ConcurrentDB().Select(pairs + ".k").Distinct(true).From(collection.Name).
		AndWhere(dbx.NewExp("[[" + collection.Name + ".id]] IN (SELECT r FROM " + pairs + ")"))
	if err := rows.Where(sel, app, collection, info, rule, filter); err != nil {
		return "", nil, err
	}
	sel.Join("CROSS JOIN", pairs, dbx.NewExp(pairs+".r = [["+collection.Name+".id]]"))
	built := sel.Build()
	return built.SQL(), maps.Clone(built.Params()), nil
}

// with is the table of pairs. Ids are declared as texts, or SQLite would not look them up.
const with = "WITH " + pairs + "(k, v, r) AS MATERIALIZED (SELECT key, CAST(json_extract(value, '$[0]') AS TEXT), CAST(json_extract(value, '$[1]') AS TEXT) FROM json_each({:" + pairs + "}))"

// exchange puts the viewer of the pair where the mark is. It reports false if the mark is part of something longer, if it
// is in a join, which comes before the pairs, or if the id of this one viewer is there nevertheless.
func exchange(text *string, params dbx.Params, mark, id string) bool {
	joins, _, _ := strings.Cut(*text, " WHERE ")
	for name, value := range params {
		given, ok := value.(string)
		switch {
		case !ok:
		case given == mark:
			if strings.Contains(joins, "{:"+name+"}") {
				return false
			}
			*text = strings.ReplaceAll(*text, "{:"+name+"}", pairs+".v")
			delete(params, name)
		case strings.Contains(given, mark), given == id:
			return false
		}
	}
	return !strings.Contains(*text, mark)
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
	table := make([]map[string]any, len(gone))
	for i, r := range gone {
		values, err := r.DBExport(q.app)
		if err != nil {
			return nil, fmt.Errorf("export deleted record: %w", err)
		}
		for name, value := range values {
			if values[name], err = plain(value); err != nil {
				return nil, fmt.Errorf("export deleted record: %w", err)
			}
		}
		table[i] = values
	}
	raw, err := json.Marshal(table)
	if err != nil {
		return nil, fmt.Errorf("export deleted records: %w", err)
	}
	columns := make([]string, 0, len(q.collection.Fields))
	for _, f := range q.collection.Fields {
		name := f.GetName()
		columns = append(columns, `json_extract(value, '$."`+name+`"') AS [[`+name+`]]`)
	}
	params := dbx.Params{"live_gone": string(raw)}
	maps.Copy(params, q.params)
	pretence := ", {{" + q.collection.Name + "}} AS (SELECT " + strings.Join(columns, ", ") + " FROM json_each({:live_gone})) "
	return q.ask(ctx, with+pretence+q.text, params, about)
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
