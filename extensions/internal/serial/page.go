package serial

import "github.com/pocketbase/dbx"

// Newest reads a page of the rows that the query finds, the newest first: at most limit of them, behind the id that cursor
// is unless it is empty. next is the cursor of the following page, empty at the end. The error of a cursor that is no id is
// [ErrForm].
func Newest[R any](q *dbx.SelectQuery, cursor string, limit int, number func(*R) int64) (rows []R, next string, err error) {
	if cursor != "" {
		before, err := Parse(cursor)
		if err != nil {
			return nil, "", err
		}
		q.AndWhere(dbx.NewExp("id < {:before}", dbx.Params{"before": before}))
	}
	if err := q.OrderBy("id DESC").Limit(int64(limit) + 1).All(&rows); err != nil {
		return nil, "", err
	}
	if len(rows) > limit {
		rows = rows[:limit]
		next = Format(number(&rows[limit-1]))
	}
	return rows, next, nil
}
