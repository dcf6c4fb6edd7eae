package records

import (
	"encoding/json"
	"encoding/json/jsontext"
	jsonv2 "encoding/json/v2"
	"errors"
	"fmt"
	"strings"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/picker"
	"github.com/pocketbase/pocketbase/tools/tokenizer"

	"github.com/satchelbase/satchel/extensions/api"
)

// projection is the parameter fields. The zero value is the whole record.
type projection struct {
	raw   string
	names []string // the top-level names in it; nil when it has a wildcard
}

func parseFields(raw string) (projection, error) {
	if raw == "" {
		return projection{}, nil
	}
	// With nothing to pick from, only a fields list that cannot be parsed is an error.
	if _, err := picker.Pick(nil, raw); err != nil {
		return projection{}, api.Fail(ErrFields, err.Error())
	}
	tokens, err := tokenizer.NewFromString(raw).ScanAll()
	if err != nil {
		return projection{}, api.Fail(ErrFields, err.Error())
	}
	p := projection{raw: raw}
	for _, token := range tokens {
		path, _, _ := strings.Cut(strings.TrimSpace(token), ":")
		name, _, _ := strings.Cut(path, ".")
		if name == "*" {
			return projection{raw: raw}, nil
		}
		p.names = append(p.names, name)
	}
	return p, nil
}

// columns are the columns of the collection that an answer needs; nil means all. id is always among them, and so are
// those that decide what may be shown (the visibility of an e-mail address) and those that the expands start from.
func (p projection) columns(collection *core.Collection, expand []string) []string {
	if p.names == nil {
		return nil
	}
	wanted := map[string]bool{core.FieldNameId: true}
	if collection.IsAuth() {
		wanted[core.FieldNameEmailVisibility] = true
	}
	for _, name := range p.names {
		wanted[name] = true
	}
	for _, path := range expand {
		root, _, _ := strings.Cut(path, ".")
		wanted[root] = true
	}
	var columns []string
	for _, f := range collection.Fields {
		if wanted[f.GetName()] {
			columns = append(columns, f.GetName())
		}
	}
	return columns
}

// encode writes records as the stock API does, down to the byte. data is a record or a list of them.
func (p projection) encode(data any) (json.RawMessage, error) {
	if p.raw != "" {
		picked, err := picker.Pick(data, p.raw)
		switch {
		case err == nil:
			data = picked
		case !errors.Is(err, picker.ErrInvalidModifierData): // the stock API then answers with the whole record
			return nil, fmt.Errorf("pick fields: %w", err)
		}
	}
	raw, err := jsonv2.Marshal(
		data, jsonv2.Deterministic(true), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true),
	)
	if err != nil {
		return nil, fmt.Errorf("encode records: %w", err)
	}
	return raw, nil
}
