package identities

import (
	"encoding/json/jsontext"
	jsonv2 "encoding/json/v2"
	"errors"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions/api"
)

const (
	maxText = 512
	maxName = 100
)

// input is the body of an exchange or a link.
type input struct {
	Provider    string
	IDToken     string
	Nonce       string
	AccessToken string
	Collection  string
	code        string // Apple's authorization code
	mfaID       string
}

// readInput parses the body strictly, so that a mistyped "nonce" is told and not ignored. All mistakes are told at once.
func readInput(e *core.RequestEvent) (input, error) {
	var in input
	raw, err := io.ReadAll(e.Request.Body) // limited by the server
	if limit, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return in, limit
	}
	if err != nil {
		return in, api.Fail(api.ErrBodyMalformed, "the body ended early").Because(err)
	}
	if r, ok := e.Request.Body.(router.Rereader); ok {
		r.Reread() // PocketBase reads mfaId by itself
	}
	var members map[string]jsontext.Value // refuses duplicate names
	if err := jsonv2.Unmarshal(raw, &members); err != nil || members == nil {
		return in, api.Fail(api.ErrBodyMalformed, "the body must be a JSON object").Because(err)
	}
	fields := []struct {
		name     string
		target   *string
		max      int
		required bool
	}{
		{"provider", &in.Provider, maxName, true},
		{"idToken", &in.IDToken, maxToken, true},
		{"nonce", &in.Nonce, maxText, false},
		{"accessToken", &in.AccessToken, maxToken, false},
		{"collection", &in.Collection, maxName, false},
		{"mfaId", &in.mfaID, maxName, false},
		{"authorizationCode", &in.code, maxText, false},
	}
	var wrong []api.FieldError
	for _, f := range fields {
		value, present := members[f.name]
		delete(members, f.name)
		if present && value.Kind() != 'n' && jsonv2.Unmarshal(value, f.target) != nil {
			wrong = append(wrong, api.FieldError{Field: f.name, Code: "validation_invalid_type", Message: "Must be a string."})
		} else if f.required && *f.target == "" {
			wrong = append(wrong, api.FieldError{Field: f.name, Code: "validation_required", Message: "Cannot be blank."})
		} else if len(*f.target) > f.max {
			wrong = append(wrong, api.FieldError{Field: f.name, Code: "validation_length_too_long", Message: "Is too long."})
		}
	}
	for i, name := range slices.Sorted(maps.Keys(members)) {
		if i == maxUnknownMembers {
			break
		}
		wrong = append(wrong, api.FieldError{Field: name, Code: "validation_unknown", Message: "There is no such member."})
	}
	if len(wrong) > 0 {
		return in, &api.Problem{Code: api.ErrValidation, Errors: wrong}
	}
	return in, nil
}

// maxUnknownMembers bounds the answer to a body of nonsense.
const maxUnknownMembers = 20

// devicePattern is what is taken for the id of a device.
var devicePattern = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`)

// deviceOf is the id that the app gave its installation, empty when there is none.
func deviceOf(r *http.Request) string {
	if id := r.Header.Get("X-Device-Id"); devicePattern.MatchString(id) {
		return id
	}
	return ""
}
