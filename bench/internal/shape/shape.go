// Package shape finds, in answers of different servers to the same request, what must be the same.
package shape

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Shape says where the records of an answer are, and what in them differs between servers that do the same.
type Shape int

// Shapes.
const (
	Whole   Shape = iota // no records; the answer itself counts
	Record               // one
	List                 // many
	Created              // one that the request has made
	Batch                // many of those
	Tokens               // the account's
)

// Records returns what must be the same on all servers.
func (s Shape) Records(body []byte) ([]map[string]any, error) {
	var v any
	if err := json.Unmarshal(body, &v); err != nil {
		return nil, fmt.Errorf("parse answer: %w", err)
	}
	if s == Batch {
		items, ok := v.([]any)
		if !ok {
			return nil, errors.New("the answer to the batch is not a list")
		}
		return createdRecords(items)
	}
	object, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("the answer is not an object")
	}
	if _, enveloped := object["success"]; enveloped {
		v = object["data"]
	} else if s == List {
		v = object["items"]
	}
	switch s {
	case List:
		items, ok := v.([]any)
		if !ok {
			return nil, errors.New("the answer has no list")
		}
		return objects(items)
	case Created:
		return createdRecords([]any{map[string]any{"body": v}})
	case Tokens:
		return objects([]any{object["record"]})
	default:
		return objects([]any{v})
	}
}

// createdRecords leaves out what the server chooses.
func createdRecords(items []any) ([]map[string]any, error) {
	results, err := objects(items)
	if err != nil {
		return nil, err
	}
	var bodies []any
	for _, r := range results {
		bodies = append(bodies, r["body"])
	}
	records, err := objects(bodies)
	for _, r := range records {
		for _, field := range []string{"id", "created", "updated"} {
			if text, ok := r[field].(string); ok && text != "" {
				delete(r, field)
			}
		}
	}
	return records, err
}

func objects(items []any) ([]map[string]any, error) {
	var list []map[string]any
	for _, item := range items {
		object, ok := item.(map[string]any)
		if !ok {
			return nil, errors.New("a record is not an object")
		}
		list = append(list, object)
	}
	return list, nil
}
