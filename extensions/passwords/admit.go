package passwords

import (
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
)

// The routes of PocketBase's generated API that hash passwords, besides the login.
const (
	createPattern      = "POST /api/collections/{collection}/records"
	updatePattern      = "PATCH /api/collections/{collection}/records/{id}"
	batchPattern       = "POST /api/batch"
	resetPattern       = "POST /api/collections/{collection}/confirm-password-reset"
	emailChangePattern = "POST /api/collections/{collection}/confirm-email-change"
)

// candidate is a password that the request wants to set; field is its path in the body.
type candidate struct{ field, password string }

// admit lets requests that will hash a password wait for their turn, and asks about the passwords before anything is
// written. A body that cannot be read is left to the handler, which says what is wrong with it.
func (h *Hasher) admit(e *core.RequestEvent) error {
	switch e.Request.Pattern {
	case createPattern, updatePattern, resetPattern, emailChangePattern, batchPattern:
	default:
		return e.Next()
	}
	if e.Request.Pattern != batchPattern && !isAuth(e.App, e.Request.PathValue("collection")) {
		return e.Next()
	}
	info, err := e.RequestInfo()
	if err != nil {
		return e.Next()
	}
	wanted, hashes := candidates(e, info.Body)
	if !hashes {
		return e.Next()
	}
	for _, c := range wanted {
		if h.ranges.leaked(e.Request.Context(), e.App.Logger(), c.password) {
			p := api.Fail(ErrLeaked, "choose another password")
			p.Errors = []api.FieldError{{Field: c.field, Code: ErrLeaked.Name, Message: ErrLeaked.Title + "."}}
			return p
		}
	}
	leave, err := h.Enter(e)
	if err != nil {
		return err
	}
	defer leave()
	return e.Next()
}

// candidates lists the passwords to set, and reports whether the handler will hash at all.
func candidates(e *core.RequestEvent, body map[string]any) (wanted []candidate, hashes bool) {
	switch e.Request.Pattern {
	case emailChangePattern:
		return nil, true
	case batchPattern:
		items, _ := body["requests"].([]any)
		for i, item := range items {
			members, ok := batchWrite(e.App, item)
			if !ok {
				continue
			}
			found, hash := fromRecord(members)
			for j := range found {
				found[j].field = fmt.Sprintf("requests.%d.body.%s", i, found[j].field)
			}
			wanted, hashes = append(wanted, found...), hashes || hash
		}
		return wanted, hashes
	}
	return fromRecord(body)
}

func fromRecord(members map[string]any) (wanted []candidate, hashes bool) {
	value, sets := members[core.FieldNamePassword]
	_, checks := members["oldPassword"]
	if sets {
		wanted = []candidate{{core.FieldNamePassword, text(value)}}
	}
	return wanted, sets || checks
}

// text is a value as PocketBase reads it where it expects text.
func text(value any) string {
	switch v := value.(type) {
	case string:
		return v
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return ""
}

// batchWrite returns the body of a batch's item that writes to an auth collection.
func batchWrite(app core.App, item any) (map[string]any, bool) {
	request, _ := item.(map[string]any)
	members := map[string]any{}
	var method, address string
	for name, value := range request { // PocketBase reads these names in any case
		switch strings.ToLower(name) {
		case "method":
			method, _ = value.(string)
		case "url":
			address, _ = value.(string)
		case "body":
			members, _ = value.(map[string]any)
		}
	}
	u, err := url.Parse(address)
	if err != nil || strings.EqualFold(method, http.MethodDelete) {
		return nil, false
	}
	_, rest, found := strings.Cut(u.Path, "/collections/")
	name, _, _ := strings.Cut(rest, "/")
	return members, found && isAuth(app, name)
}

func isAuth(app core.App, collection string) bool {
	c, err := app.FindCachedCollectionByNameOrId(collection)
	return err == nil && c.IsAuth()
}
