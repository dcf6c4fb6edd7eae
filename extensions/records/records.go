// Package records serves lists and single reads of collections under their row rules, at
//
//	GET /api/v1/records/{collection}        a page of records, by cursor
//	GET /api/v1/records/{collection}/{id}   one record
//
// and checks the types of what is written to a collection through /api/v1.
//
// A list is walked by keyset: the opaque cursor holds the sort values and the id of the last row, so that a page costs
// the same wherever it is and a walk neither misses nor repeats a record, whatever others insert or delete meanwhile.
// (A record whose sort value changes during the walk moves, and is met where it then is.) Therefore only a sort that an
// index serves is accepted: the id, or fields that are the leading columns of an index of the collection, also after
// columns that the rule or the filter binds by equality. The index decides the collation: if the only fitting index is
// COLLATE NOCASE, the order ignores case. An index that ends in id serves ties too and is the fastest. Without a sort,
// a list is ordered by -created when an index serves that, otherwise by id. Rows of a view can be sorted by id alone;
// those without an id are no records and are left out.
//
// Query: limit, cursor, sort, filter, fields, expand (the last four in PocketBase's syntax), total=true. Unknown
// parameters are ignored. A cursor belongs to its collection, filter and sort and is good for 30 days. fields also
// narrows what is read from the database, unless hooks on these reads exist, which may want the whole record.
//
// Rows go from the database straight into the answer. Records are made of them only where somebody has a say in these:
// for expand, under a manage rule (which decides about e-mail addresses), with field types that are not PocketBase's
// own, and when anybody has bound the hooks OnRecordsListRequest, OnRecordViewRequest or OnRecordEnrich, for whichever
// collection; these then run as they do for the stock API. The stock list and view keep their answers, faster written.
//
// Writes to /api/v1/collections/{collection}/records and to /api/v1/batch with a JSON body are refused as a whole, with
// one error per field, when a field is unknown or has the wrong JSON type; the stock API would drop or convert it.
// Names that the collection's rules read as @request.body.NAME count as known.
//
// Settings: SATCHEL_RECORDS_*. Tables: records_secret (the key of the cursors). Failure modes: without that row lists
// answer 500; a cursor from another server or a restored secret is 400 records.cursor_invalid and the client starts
// again from the first page.
package records

import (
	"errors"
	"net/http"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/records/body"
	"github.com/satchelbase/satchel/extensions/rows"
)

// Config is read from SATCHEL_RECORDS_*.
type Config struct {
	LimitDefault int `env:"LIMIT_DEFAULT" default:"25" help:"records in a page when the client does not ask for a number"`
	LimitMax     int `env:"LIMIT_MAX" default:"100" help:"most records that a client may ask for in one page"`
}

// Validate reports values that cannot work.
func (c Config) Validate() error {
	switch {
	case c.LimitDefault < 1:
		return errors.New("LIMIT_DEFAULT: must be at least 1")
	case c.LimitMax < c.LimitDefault:
		return errors.New("LIMIT_MAX: must not be less than LIMIT_DEFAULT")
	}
	return nil
}

// Codes of lists and reads; those of writes are in package body.
var (
	ErrCursor = &extensions.Code{Name: "records.cursor_invalid", Status: http.StatusBadRequest, Title: "The cursor does not belong to this list"}
	ErrFilter = &extensions.Code{Name: "records.filter_invalid", Status: http.StatusBadRequest, Title: "The filter is not valid"}
	ErrSort   = &extensions.Code{Name: "records.sort_unsupported", Status: http.StatusBadRequest, Title: "The list cannot be sorted like this"}
	ErrLimit  = &extensions.Code{Name: "records.limit_invalid", Status: http.StatusBadRequest, Title: "The limit is not valid"}
	ErrTotal  = &extensions.Code{Name: "records.total_invalid", Status: http.StatusBadRequest, Title: "The parameter total is not valid"}
	ErrExpand = &extensions.Code{Name: "records.expand_invalid", Status: http.StatusBadRequest, Title: "The relation cannot be expanded"}
	ErrFields = &extensions.Code{Name: "records.fields_invalid", Status: http.StatusBadRequest, Title: "The list of fields is not valid"}
)

// New returns the extension. Without versions, which may be nil, every conditional request is asked anew.
func New(cfg Config, versions Versions) extensions.Extension {
	r := &reader{cfg: cfg, versions: versions, secret: &secret{}, throttle: &throttle{}, ownHooks: rows.StockHooks}
	return extensions.Extension{
		Name:     "records",
		Settings: cfg,
		Codes: []*extensions.Code{
			ErrCursor, ErrFilter, ErrSort, ErrLimit, ErrTotal, ErrExpand, ErrFields, body.ErrUnknown, body.ErrType,
		},
		Tables:     []string{secretTable},
		Migrations: []extensions.Migration{{Unix: 1767225601, What: "secret", Up: createSecret, Down: dropSecret}},
		Bind: func(h *extensions.Host) error {
			rows.BindStock(h.App)
			return nil
		},
		Middlewares: []*hook.Handler[*core.RequestEvent]{body.Check()},
		Routes: func(g *router.RouterGroup[*core.RequestEvent]) {
			g.GET("/{collection}", r.list)
			g.GET("/{collection}/{id}", r.view)
		},
	}
}

// reader answers the two routes. It is safe for concurrent use.
type reader struct {
	cfg      Config
	versions Versions
	secret   *secret
	throttle *throttle
	ownHooks int // handlers on the hooks of reads that do not want records

	plans    rows.Plans
	listings rows.Cache[listingKey, *listing]
	views    rows.Cache[viewKey, *rows.Query]
}
