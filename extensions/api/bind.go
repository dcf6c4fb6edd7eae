package api

import (
	"encoding/json/jsontext"
	jsonv2 "encoding/json/v2"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
)

// Codes in the errors of a problem with the body.
var (
	ErrFieldUnknown  = &extensions.Code{Name: "api.field_unknown", Status: http.StatusBadRequest, Title: "There is no such field"}
	ErrFieldType     = &extensions.Code{Name: "api.field_type", Status: http.StatusBadRequest, Title: "The value has the wrong type for the field"}
	ErrFieldLong     = &extensions.Code{Name: "api.field_too_long", Status: http.StatusBadRequest, Title: "The value is too long"}
	ErrFieldRequired = &extensions.Code{Name: "api.field_required", Status: http.StatusBadRequest, Title: "The field is required"}
	ErrFieldInvalid  = &extensions.Code{Name: "api.field_invalid", Status: http.StatusBadRequest, Title: "The value is not one that the field takes"}
)

// Invalid is one mistake in a field.
func Invalid(field string, code *extensions.Code, detail string) FieldError {
	if detail == "" {
		detail = code.Title
	}
	return FieldError{Field: field, Code: code.Name, Message: detail}
}

// InvalidBody is the problem with all mistakes in the fields.
func InvalidBody(mistakes ...FieldError) *Problem {
	return &Problem{Code: ErrValidation, Errors: mistakes}
}

// Bind reads the JSON object in the body into the struct that into points to. Names are matched exactly; unknown and
// missing members and wrong types are refused, all mistakes at once. A member whose tag says omitempty may be missing. An
// empty body is an empty object. The body can be read again afterwards.
func Bind(e *core.RequestEvent, into any) error {
	body, err := ReadBody(e)
	if err != nil {
		return err
	}
	members := map[string]jsontext.Value{}
	if len(body) > 0 {
		if members, err = Object(body); err != nil {
			return err
		}
	}
	var mistakes []FieldError
	target := reflect.ValueOf(into).Elem()
	for i := range target.NumField() {
		name, options, _ := strings.Cut(target.Type().Field(i).Tag.Get("json"), ",")
		value, given := members[name]
		delete(members, name)
		switch {
		case !given || value.Kind() == 'n':
			if !strings.Contains(options, "omitempty") {
				mistakes = append(mistakes, Invalid(name, ErrFieldRequired, ""))
			}
		case jsonv2.Unmarshal(value, target.Field(i).Addr().Interface(), jsonv2.RejectUnknownMembers(true)) != nil:
			mistakes = append(mistakes, Invalid(name, ErrFieldType, ""))
		}
	}
	for _, name := range sortedKeys(members) {
		mistakes = append(mistakes, Invalid(name, ErrFieldUnknown, ""))
	}
	if len(mistakes) > 0 {
		return InvalidBody(mistakes[:min(len(mistakes), maxMistakes)]...)
	}
	return nil
}

// maxMistakes bounds the answer to a body that is wrong in every member.
const maxMistakes = 50

// ReadBody returns the whole body, which handlers can read again afterwards.
func ReadBody(e *core.RequestEvent) ([]byte, error) {
	body, err := io.ReadAll(e.Request.Body)
	if err != nil {
		var limit *http.MaxBytesError
		var stock *router.ApiError
		if errors.As(err, &limit) || errors.As(err, &stock) {
			return nil, Fail(ErrBodyTooLarge, "").Because(err)
		}
		return nil, Fail(ErrBodyMalformed, "the body ended early").Because(err)
	}
	if r, ok := e.Request.Body.(router.Rereader); ok {
		r.Reread()
	}
	return body, nil
}

// Object parses exactly one JSON object: no duplicate names at any depth, no invalid UTF-8, nothing behind it.
func Object(body []byte) (map[string]jsontext.Value, error) {
	if jsontext.Value(body).Kind() != '{' {
		if !jsontext.Value(body).IsValid() {
			return nil, Fail(ErrBodyMalformed, "the body is not valid JSON")
		}
		return nil, Fail(ErrBodyMalformed, "the body must be a JSON object")
	}
	var members map[string]jsontext.Value
	if err := jsonv2.Unmarshal(body, &members); err != nil {
		return nil, Malformed(err)
	}
	return members, nil
}

// Malformed is the problem with a body that could not be decoded.
func Malformed(err error) *Problem {
	if syntax, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		return Fail(ErrBodyMalformed, fmt.Sprintf("%v at byte %d", syntax.Err, syntax.ByteOffset)).Because(err)
	}
	return Fail(ErrBodyMalformed, "the body does not have the expected form").Because(err)
}
