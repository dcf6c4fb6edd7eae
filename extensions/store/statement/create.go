package statement

import (
	"slices"
	"strings"
)

// dummyMark is in the name of the table that PocketBase makes up to test a create rule, before six random letters.
const (
	dummyMark    = "__pb_create__"
	randomSuffix = 6
)

// Canonical gives the query of a create rule the same text every time. PocketBase pretends that the new record is a
// table with a random name, and lists its columns in the order of a Go map:
//
//	WITH `notes__pb_create__M5Zsyv` as (SELECT ? AS `title`,? AS `owner`) SELECT (1) FROM `notes__pb_create__M5Zsyv` …
//
// The name loses its random end and the columns are sorted. order says for each placeholder at the beginning which one
// it was before; the placeholders behind them stay. Any other text is returned as it is, with a nil order.
func Canonical(text string) (canonical string, order []int) {
	rest, ok := strings.CutPrefix(text, "WITH `")
	if !ok {
		return text, nil
	}
	name, rest, ok := strings.Cut(rest, "` as (SELECT ")
	at := strings.LastIndex(name, dummyMark)
	if !ok || at < 0 || len(name) != at+len(dummyMark)+randomSuffix {
		return text, nil
	}
	columns, rest, ok := strings.Cut(rest, ") ")
	if !ok {
		return text, nil
	}
	list := strings.Split(columns, ",")
	for _, c := range list {
		if !strings.HasPrefix(c, "? AS `") || strings.Count(c, "?") != 1 {
			return text, nil
		}
	}
	order = make([]int, len(list))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return strings.Compare(list[a], list[b]) })

	short := name[:at+len(dummyMark)]
	var out strings.Builder
	out.Grow(len(text))
	out.WriteString("WITH `" + short + "` as (SELECT ")
	for i, from := range order {
		if i > 0 {
			out.WriteByte(',')
		}
		out.WriteString(list[from])
	}
	out.WriteString(") ")
	out.WriteString(strings.ReplaceAll(rest, name[at:], dummyMark))
	return out.String(), order
}
