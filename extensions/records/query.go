package records

import (
	"fmt"
	"net/url"
	"strconv"
	"strings"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/search"

	"github.com/satchelbase/satchel/extensions/api"
	"github.com/satchelbase/satchel/extensions/rows"
)

// query is what a client asks of a list or of a record.
type query struct {
	limit   int
	cursor  string
	filter  string
	sort    []search.SortField
	sorting string // as it was given
	fields  rows.Fields
	expand  []string
	total   bool
}

// parseQuery reads the parameters of a list.
func (r *reader) parseQuery(e *core.RequestEvent, collection *core.Collection) (query, error) {
	q, values, err := parseShape(e, collection)
	if err != nil {
		return q, err
	}
	if err := refuseRuleFields(e, values); err != nil {
		return q, err
	}
	q.cursor = values.Get("cursor")
	if q.limit, err = r.parseLimit(values); err != nil {
		return q, err
	}
	if q.total, err = parseTotal(values); err != nil {
		return q, err
	}
	if q.filter, err = parseFilter(values); err != nil {
		return q, err
	}
	q.sorting = values.Get("sort")
	q.sort, err = parseSort(values)
	return q, err
}

// parseShape reads the parameters that lists and single reads share: those that shape a record.
func parseShape(e *core.RequestEvent, collection *core.Collection) (query, url.Values, error) {
	values, err := url.ParseQuery(e.Request.URL.RawQuery)
	if err != nil {
		return query{}, nil, api.Fail(api.ErrBadRequest, "the query string is not well-formed").Because(err)
	}
	q := query{}
	if q.expand, err = rows.ParseExpand(e.App, collection, values.Get("expand")); err != nil {
		return q, nil, api.Fail(ErrExpand, err.Error())
	}
	if q.fields, err = rows.ParseFields(values.Get("fields")); err != nil {
		return q, nil, api.Fail(ErrFields, err.Error())
	}
	return q, values, nil
}

// refuseRuleFields keeps the fields that only rules may use from everybody but superusers, as the stock API does.
func refuseRuleFields(e *core.RequestEvent, values url.Values) error {
	if e.HasSuperuserAuth() {
		return nil
	}
	for _, param := range []string{"filter", "sort"} {
		for _, field := range []string{"@collection.", "@request."} {
			if strings.Contains(values.Get(param), field) {
				return api.Fail(api.ErrForbidden, "only superusers can use "+field+" in "+param)
			}
		}
	}
	return nil
}

func (r *reader) parseLimit(values url.Values) (int, error) {
	if !values.Has("limit") {
		return r.cfg.LimitDefault, nil
	}
	limit, err := strconv.Atoi(values.Get("limit"))
	if err != nil || limit < 1 || limit > r.cfg.LimitMax {
		return 0, api.Fail(ErrLimit, fmt.Sprintf("limit must be a whole number from 1 to %d", r.cfg.LimitMax))
	}
	return limit, nil
}

func parseTotal(values url.Values) (bool, error) {
	switch values.Get("total") {
	case "", "false":
		return false, nil
	case "true":
		return true, nil
	}
	return false, api.Fail(ErrTotal, "total must be true or false")
}

func parseFilter(values url.Values) (string, error) {
	filter := values.Get("filter")
	if len(filter) > search.MaxFilterLength {
		return "", api.Fail(ErrFilter, fmt.Sprintf("the filter is longer than %d characters", search.MaxFilterLength))
	}
	return filter, nil
}

func parseSort(values url.Values) ([]search.SortField, error) {
	raw := values.Get("sort")
	if raw == "" {
		return nil, nil
	}
	fields := search.ParseSortFromString(raw)
	if len(fields) > search.DefaultSortExprLimit {
		return nil, api.Fail(ErrSort, fmt.Sprintf("sort names more than %d fields", search.DefaultSortExprLimit))
	}
	for _, f := range fields {
		if len(f.Name) > search.MaxSortFieldLength {
			return nil, api.Fail(ErrSort, fmt.Sprintf("sort names a field longer than %d characters", search.MaxSortFieldLength))
		}
	}
	return fields, nil
}
