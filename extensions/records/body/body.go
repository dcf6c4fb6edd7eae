// Package body refuses JSON bodies with unknown members or wrong types before PocketBase's generated API reads them, which
// would take "abc" for the number 0. All mistakes are told at once, in an api.validation_failed problem.
package body

import (
	"encoding/json/jsontext"
	jsonv2 "encoding/json/v2"
	"net/http"
	"regexp"
	"strconv"
	"strings"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
)

const (
	// priority is behind the body limit (-990) and before anything that acts on the body.
	priority = -970

	// maxFieldErrors bounds the answer to a body that is wrong in every member.
	maxFieldErrors = 50
)

// The routes of PocketBase's generated API whose bodies are checked.
const (
	createPattern = "POST /api/collections/{collection}/records"
	updatePattern = "PATCH /api/collections/{collection}/records/{id}"
	batchPattern  = "POST /api/batch"
)

// batchWritePattern is a write in a batch; PUT creates or updates.
var batchWritePattern = regexp.MustCompile(`^(POST|PUT|PATCH) /api(?:/v1)?/collections/([^/?]+)/records(?:[/?].*)?$`)

// Codes in the errors of the problem.
var (
	ErrUnknown = &extensions.Code{Name: "records.field_unknown", Status: http.StatusBadRequest, Title: "The collection has no such field"}
	ErrType    = &extensions.Code{Name: "records.field_type", Status: http.StatusBadRequest, Title: "The value has the wrong type for the field"}
)

// Check is the middleware. It works below /api/v1 only; the stock paths stay as lenient as stock. Multipart bodies are
// text and have no types to check.
func Check() *hook.Handler[*core.RequestEvent] {
	return &hook.Handler[*core.RequestEvent]{
		Id: "satchelRecordBody", Priority: priority,
		Func: func(e *core.RequestEvent) error {
			if !api.RequestOf(e.Request.Context()).Versioned || !hasJSON(e.Request) {
				return e.Next()
			}
			var err error
			switch e.Request.Pattern {
			case createPattern, updatePattern:
				err = checkRecord(e)
			case batchPattern:
				err = checkBatch(e)
			}
			if err != nil {
				return err
			}
			return e.Next()
		},
	}
}

// hasJSON reports whether the generated API would read a JSON body.
func hasJSON(r *http.Request) bool {
	return r.ContentLength != 0 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/json")
}

func checkRecord(e *core.RequestEvent) error {
	collection := cachedCollection(e.App, e.Request.PathValue("collection"))
	body, err := api.ReadBody(e)
	if err != nil {
		return err
	}
	members, err := api.Object(body)
	if err != nil {
		return err
	}
	c := checker{superuser: e.HasSuperuserAuth()}
	if collection != nil && c.writable(collection, e.Request.Method) {
		c.check(collection, members, "")
	}
	return c.problem()
}

// checkBatch checks the bodies inside a batch. Its members are read as PocketBase reads them: names in any case.
func checkBatch(e *core.RequestEvent) error {
	if !e.App.Settings().Batch.Enabled {
		return nil // the handler says so
	}
	body, err := api.ReadBody(e)
	if err != nil {
		return err
	}
	if _, err := api.Object(body); err != nil {
		return err
	}
	var batch struct {
		Requests []struct {
			Method string         `json:"method"`
			URL    string         `json:"url"`
			Body   jsontext.Value `json:"body"`
		} `json:"requests"`
	}
	if err := jsonv2.Unmarshal(body, &batch, jsonv2.MatchCaseInsensitiveNames(true)); err != nil {
		return api.Malformed(err)
	}
	c := checker{superuser: e.HasSuperuserAuth()}
	for i, r := range batch.Requests {
		m := batchWritePattern.FindStringSubmatch(strings.ToUpper(r.Method) + " " + r.URL)
		if m == nil || len(r.Body) == 0 {
			continue
		}
		collection := cachedCollection(e.App, m[2])
		if collection == nil || !c.writable(collection, m[1]) {
			continue
		}
		prefix := "requests." + strconv.Itoa(i) + ".body"
		members, err := api.Object(r.Body)
		if err != nil {
			c.add(prefix, ErrType, "must be an object")
			continue
		}
		c.check(collection, members, prefix+".")
	}
	return c.problem()
}

func cachedCollection(app core.App, nameOrID string) *core.Collection {
	c, err := app.FindCachedCollectionByNameOrId(nameOrID)
	if err != nil {
		return nil
	}
	return c
}
