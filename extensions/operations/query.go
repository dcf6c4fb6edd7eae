package operations

import (
	"encoding/json"
	"encoding/json/jsontext"
	"fmt"
	"net/url"
)

// property is what a query needs to know of a member's schema.
type property struct {
	Type       string               `json:"type"`
	Items      *property            `json:"items"`
	Properties map[string]*property `json:"properties"`
}

// fromQuery makes the input of a GET out of its query: one parameter for each member, repeated for a list. Texts that are
// no number or boolean stay texts, which the schema then refuses.
func (s *schema) fromQuery(query url.Values) (jsontext.Value, error) {
	var shape property
	if err := json.Unmarshal(s.text, &shape); err != nil {
		return nil, fmt.Errorf("read schema: %w", err)
	}
	input := make(map[string]any, len(query))
	for name, values := range query {
		p := shape.Properties[name]
		if p != nil && p.Type == "array" && p.Items != nil {
			list := make([]any, len(values))
			for i, v := range values {
				list[i] = p.Items.value(v)
			}
			input[name] = list
			continue
		}
		input[name] = p.value(values[len(values)-1])
	}
	body, err := json.Marshal(input)
	if err != nil {
		return nil, fmt.Errorf("marshal input: %w", err)
	}
	return s.parse(body)
}

func (p *property) value(text string) any {
	if p != nil && p.Type != "string" {
		raw := jsontext.Value(text)
		if kind := raw.Kind(); (kind == '0' || kind == 't' || kind == 'f') && raw.IsValid() {
			return json.RawMessage(text)
		}
	}
	return text
}
