package operations

import (
	"bytes"
	"encoding/json"
	"encoding/json/jsontext"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
	reflector "github.com/swaggest/jsonschema-go"
	"golang.org/x/text/language"
	"golang.org/x/text/message"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
)

// maxMistakes bounds the answer to an input that is wrong everywhere.
const maxMistakes = 50

// schema is the JSON Schema of an input. It is safe for concurrent use.
type schema struct {
	text     json.RawMessage
	compiled *jsonschema.Schema
}

func newSchema(t reflect.Type) (*schema, error) {
	text, err := describe(t, true)
	if err != nil {
		return nil, err
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("read schema of %s: %w", t, err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	const address = "urn:input"
	if err := compiler.AddResource(address, doc); err != nil {
		return nil, fmt.Errorf("add schema of %s: %w", t, err)
	}
	compiled, err := compiler.Compile(address)
	if err != nil {
		return nil, fmt.Errorf("compile schema of %s: %w", t, err)
	}
	return &schema{text: text, compiled: compiled}, nil
}

// describe derives the JSON Schema of a type. Members whose tag has no omitempty or omitzero are required; closed refuses
// members that the type lacks.
func describe(t reflect.Type, closed bool) (json.RawMessage, error) {
	var r reflector.Reflector
	s, err := r.Reflect(
		reflect.New(t).Elem().Interface(), reflector.InlineRefs,
		reflector.InterceptNullability(func(p reflector.InterceptNullabilityParams) {
			if closed {
				p.Schema.RemoveType(reflector.Null) // null means that the member is left out
			}
		}),
		reflector.InterceptProp(func(p reflector.InterceptPropParams) error {
			_, options, _ := strings.Cut(p.Field.Tag.Get("json"), ",")
			if p.Processed && !strings.Contains(options, "omit") && !slices.Contains(p.ParentSchema.Required, p.Name) {
				p.ParentSchema.Required = append(p.ParentSchema.Required, p.Name)
			}
			return nil
		}),
		reflector.InterceptSchema(func(p reflector.InterceptSchemaParams) (bool, error) {
			if closed && p.Processed && isObject(p.Value.Type()) && p.Schema.HasType(reflector.Object) {
				p.Schema.AdditionalPropertiesEns().WithTypeBoolean(false)
			}
			return false, nil
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("derive schema of %s: %w", t, err)
	}
	if t.Kind() == reflect.Struct && s.Type == nil { // without members
		s.AddType(reflector.Object)
		if closed {
			s.AdditionalPropertiesEns().WithTypeBoolean(false)
		}
	}
	text, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("marshal schema of %s: %w", t, err)
	}
	return text, nil
}

func isObject(t reflect.Type) bool {
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	return t.Kind() == reflect.Struct
}

func hasMember(t reflect.Type, name string) bool {
	for f := range t.Fields() {
		if member, _, _ := strings.Cut(f.Tag.Get("json"), ","); member == name {
			return true
		}
	}
	return false
}

// parse reads the JSON object and validates it, with all mistakes at once. A member that is null counts as left out, as
// serialisers of phones write those that have no value.
func (s *schema) parse(body []byte) (jsontext.Value, error) {
	members := map[string]jsontext.Value{}
	if len(bytes.TrimSpace(body)) > 0 {
		var err error
		if members, err = api.Object(body); err != nil {
			return nil, err
		}
	}
	for name, value := range members {
		if value.Kind() == 'n' {
			delete(members, name)
		}
	}
	input, err := json.Marshal(members)
	if err != nil {
		return nil, fmt.Errorf("marshal input: %w", err)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(input))
	if err != nil {
		return nil, api.Malformed(err)
	}
	return input, s.validate(value)
}

func (s *schema) validate(value any) error {
	err := s.compiled.Validate(value)
	invalid, ok := errors.AsType[*jsonschema.ValidationError](err)
	if !ok {
		return err
	}
	var mistakes []api.FieldError
	collect(invalid, &mistakes)
	slices.SortStableFunc(mistakes, func(a, b api.FieldError) int { return strings.Compare(a.Field, b.Field) })
	return api.InvalidBody(mistakes[:min(len(mistakes), maxMistakes)]...)
}

// collect turns the leaves of an error into mistakes. Fields inside of others are named "address.city" and "tags.0".
func collect(e *jsonschema.ValidationError, into *[]api.FieldError) {
	for _, cause := range e.Causes {
		collect(cause, into)
	}
	if len(e.Causes) > 0 {
		return
	}
	at := func(name ...string) string {
		return strings.Join(append(slices.Clone(e.InstanceLocation), name...), ".")
	}
	switch k := e.ErrorKind.(type) {
	case *kind.Required:
		for _, name := range k.Missing {
			*into = append(*into, api.Invalid(at(name), api.ErrFieldRequired, ""))
		}
	case *kind.AdditionalProperties:
		for _, name := range k.Properties {
			*into = append(*into, api.Invalid(at(name), api.ErrFieldUnknown, ""))
		}
	default:
		*into = append(*into, api.Invalid(at(), codeOf(k), k.LocalizedString(message.NewPrinter(language.English))))
	}
}

func codeOf(k jsonschema.ErrorKind) *extensions.Code {
	switch k.(type) {
	case *kind.Type:
		return api.ErrFieldType
	case *kind.MaxLength, *kind.MaxItems:
		return api.ErrFieldLong
	}
	return api.ErrFieldInvalid
}
