// Package payload reads the JSON bodies of Satchel's own routes strictly: unknown members, wrong types and missing
// members are refused, all of them in one answer.
package payload

import (
	"encoding/json/jsontext"
	jsonv2 "encoding/json/v2"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"reflect"
	"slices"
	"strings"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions/api"
)

// maxSize bounds the body in bytes. The largest that these routes take, a WebAuthn registration, has a few thousand.
const maxSize = 64 << 10

// maxErrors bounds the answer to a body that is wrong everywhere.
const maxErrors = 20

// Read decodes the body into the struct that target points to. Members are the json tags of its fields; one whose tag
// has no omitempty is required. Text is trimmed by nobody and an empty required string counts as missing. Handlers
// behind can read the body again. The error is a problem for the client.
func Read(e *core.RequestEvent, target any) error {
	members, err := object(e)
	if err != nil {
		return err
	}
	value := reflect.ValueOf(target).Elem()
	problem := api.Fail(api.ErrValidation, "")
	for i := range value.NumField() {
		name, options, _ := strings.Cut(value.Type().Field(i).Tag.Get("json"), ",")
		raw, given := members[name]
		delete(members, name)
		field := value.Field(i)
		if given {
			if err := jsonv2.Unmarshal(raw, field.Addr().Interface()); err != nil {
				problem.Errors = append(problem.Errors, api.FieldError{Field: name, Code: "type_invalid", Message: "must be " + kind(field.Type())})
				continue
			}
		}
		if options != "omitempty" && field.IsZero() {
			problem.Errors = append(problem.Errors, api.FieldError{Field: name, Code: "required", Message: "must be given"})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(members)) {
		problem.Errors = append(problem.Errors, api.FieldError{Field: name, Code: "unknown", Message: "is not a member of this body"})
	}
	if len(problem.Errors) == 0 {
		return nil
	}
	problem.Errors = problem.Errors[:min(len(problem.Errors), maxErrors)]
	return problem
}

// kind names a type as a client knows it.
func kind(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Map, reflect.Struct:
		return "an object"
	case reflect.Slice:
		return "a list"
	default:
		return "a number"
	}
}

// object reads the body to its end. No body at all is an empty object, so that routes without required members take it.
func object(e *core.RequestEvent) (map[string]jsontext.Value, error) {
	body, err := io.ReadAll(io.LimitReader(e.Request.Body, maxSize+1))
	if err != nil {
		var limit *http.MaxBytesError
		var stock *router.ApiError
		if errors.As(err, &limit) || errors.As(err, &stock) {
			return nil, api.Fail(api.ErrBodyTooLarge, "").Because(err)
		}
		return nil, api.Fail(api.ErrBodyMalformed, "the body ended early").Because(err)
	}
	if len(body) > maxSize {
		return nil, api.Fail(api.ErrBodyTooLarge, fmt.Sprintf("the limit is %d bytes", maxSize))
	}
	if r, ok := e.Request.Body.(router.Rereader); ok {
		r.Reread()
	}
	if len(body) == 0 {
		return map[string]jsontext.Value{}, nil
	}
	// PocketBase reads the members of its own from JSON bodies alone, so another type would hide some from it.
	if media, _, err := mime.ParseMediaType(e.Request.Header.Get("Content-Type")); err != nil || media != "application/json" {
		return nil, api.Fail(api.ErrMediaType, "send application/json")
	}
	if jsontext.Value(body).Kind() != '{' {
		return nil, api.Fail(api.ErrBodyMalformed, "the body must be a JSON object")
	}
	var members map[string]jsontext.Value
	if err := jsonv2.Unmarshal(body, &members); err != nil {
		return nil, api.Fail(api.ErrBodyMalformed, "the body is not valid JSON").Because(err)
	}
	return members, nil
}
