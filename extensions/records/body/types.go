package body

import (
	"encoding/json/jsontext"
	jsonv2 "encoding/json/v2"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/api"
)

// ruleBodyPattern finds the members of the body that a rule reads; they need not be fields.
var ruleBodyPattern = regexp.MustCompile(`@request\.body\.(\w+)`)

// checker collects what is wrong with the members of bodies.
type checker struct {
	superuser bool
	errors    []api.FieldError
	more      int
}

// Mistakes are what is wrong with the members of a body that a user sends to write to the collection, for those that take
// such bodies in another form than the generated API does.
func Mistakes(collection *core.Collection, members map[string]jsontext.Value) []api.FieldError {
	c := checker{}
	c.check(collection, members, "")
	return c.errors
}

// writable reports whether the sender could write to the collection at all; whoever cannot learns nothing about its
// fields, and hears so from the handler.
func (c *checker) writable(collection *core.Collection, method string) bool {
	if collection.IsView() {
		return false
	}
	create, update := collection.CreateRule != nil, collection.UpdateRule != nil
	switch method {
	case http.MethodPost:
		return c.superuser || create
	case http.MethodPatch:
		return c.superuser || update
	}
	return c.superuser || create || update
}

func (c *checker) check(collection *core.Collection, members map[string]jsontext.Value, prefix string) {
	known := c.extraNames(collection)
	for _, name := range slices.Sorted(maps.Keys(members)) {
		path := prefix + name
		field := c.fieldOf(collection, name)
		switch {
		case field != nil:
			if want := mismatch(field, field.GetName() != name, members[name]); want != "" {
				c.add(path, ErrType, "must be "+want)
			}
		case collection.IsAuth() && (name == "passwordConfirm" || name == "oldPassword"):
			if !isText(members[name]) {
				c.add(path, ErrType, "must be "+wantText)
			}
		case known[name]:
		case name == router.JSONPayloadKey:
			c.add(path, ErrUnknown, "belongs into a multipart body")
		default:
			c.add(path, ErrUnknown, collection.Name+" has no such field")
		}
	}
}

// extraNames are members that are accepted with any value: those of a record that was read and is sent back, and those
// that the rules ask for.
func (c *checker) extraNames(collection *core.Collection) map[string]bool {
	names := map[string]bool{}
	for _, name := range core.SystemDynamicFieldNames {
		names[name] = true
	}
	for _, rule := range []*string{collection.CreateRule, collection.UpdateRule, collection.ManageRule} {
		if rule == nil {
			continue
		}
		for _, m := range ruleBodyPattern.FindAllStringSubmatch(*rule, -1) {
			names[m[1]] = true
		}
	}
	return names
}

// fieldOf is the field that a member sets, also by a modifier such as "tags+". Hidden fields are unknown to everybody
// but superusers, except for the password.
func (c *checker) fieldOf(collection *core.Collection, name string) core.Field {
	for _, f := range collection.Fields {
		finder, ok := f.(core.SetterFinder)
		if f.GetName() != name && (!ok || finder.FindSetter(name) == nil) {
			continue
		}
		if f.GetHidden() && !c.superuser && f.Type() != core.FieldTypePassword {
			return nil
		}
		return f
	}
	return nil
}

func (c *checker) add(path string, code *extensions.Code, message string) {
	if len(c.errors) == maxFieldErrors {
		c.more++
		return
	}
	c.errors = append(c.errors, api.FieldError{Field: path, Code: code.Name, Message: message})
}

func (c *checker) problem() error {
	if len(c.errors) == 0 {
		return nil
	}
	detail := fmt.Sprintf("%d members of the body are not valid; nothing was written", len(c.errors)+c.more)
	return &api.Problem{Code: api.ErrValidation, Detail: detail, Errors: c.errors}
}

// What a value must be, for people.
const (
	wantText   = "a string or null"
	wantNumber = "a number or null"
	wantBool   = "true, false or null"
	wantList   = "a list of strings, a string or null"
	wantPoint  = `an object {"lon": number, "lat": number} or null`
)

// mismatch says what the value must be when it has the wrong type for the field.
func mismatch(field core.Field, modified bool, value jsontext.Value) string {
	want, ok := "", true
	switch field.Type() {
	case core.FieldTypeText, core.FieldTypeEditor, core.FieldTypeEmail, core.FieldTypeURL, core.FieldTypeDate,
		core.FieldTypeAutodate, core.FieldTypePassword:
		want, ok = wantText, isText(value)
	case core.FieldTypeNumber:
		want, ok = wantNumber, isNumber(value)
	case core.FieldTypeBool:
		kind := value.Kind()
		want, ok = wantBool, kind == 't' || kind == 'f' || kind == 'n'
	case core.FieldTypeSelect, core.FieldTypeRelation, core.FieldTypeFile:
		multi, _ := field.(core.MultiValuer)
		if modified || (multi != nil && multi.IsMultiple()) {
			want, ok = wantList, isText(value) || isList(value)
		} else {
			want, ok = wantText, isText(value)
		}
	case core.FieldTypeGeoPoint:
		want, ok = wantPoint, isPoint(value)
	}
	if ok {
		return ""
	}
	return want
}

func isText(v jsontext.Value) bool { return v.Kind() == '"' || v.Kind() == 'n' }

// isNumber refuses numbers that no float64 can hold, such as 1e999.
func isNumber(v jsontext.Value) bool {
	if v.Kind() == 'n' {
		return true
	}
	_, err := strconv.ParseFloat(strings.TrimSpace(string(v)), 64)
	return v.Kind() == '0' && err == nil
}

func isList(v jsontext.Value) bool {
	var items []jsontext.Value
	if v.Kind() != '[' || jsonv2.Unmarshal(v, &items) != nil {
		return false
	}
	return !slices.ContainsFunc(items, func(item jsontext.Value) bool { return item.Kind() != '"' })
}

func isPoint(v jsontext.Value) bool {
	if v.Kind() == 'n' {
		return true
	}
	var point map[string]jsontext.Value
	if v.Kind() != '{' || jsonv2.Unmarshal(v, &point) != nil || len(point) != 2 {
		return false
	}
	for _, name := range []string{"lon", "lat"} {
		if part, ok := point[name]; !ok || part.Kind() != '0' || !isNumber(part) {
			return false
		}
	}
	return true
}
