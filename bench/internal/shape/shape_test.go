package shape_test

import (
	"testing"

	"github.com/satchelbase/satchel/bench/internal/shape"
)

func TestRecordsThatTheServerNames(t *testing.T) {
	one, err := shape.Created.Records([]byte(`{"id":"1","created":"x","updated":"y","title":"a"}`))
	if err != nil || len(one) != 1 || len(one[0]) != 1 {
		t.Errorf("%v, %v", one, err)
	}
	// A record without an id is not the same as one with an id.
	if bare, err := shape.Created.Records([]byte(`{"id":"","title":"a"}`)); err != nil || len(bare[0]) != 2 {
		t.Errorf("%v, %v", bare, err)
	}
	if many, err := shape.Batch.Records([]byte(`[{"status":200,"body":{"id":"1","title":"a"}},{"status":200,"body":{"id":"2","title":"b"}}]`)); err != nil || len(many) != 2 {
		t.Errorf("%v, %v", many, err)
	}
	if _, err := shape.Batch.Records([]byte(`[{"status":200}]`)); err == nil {
		t.Error("a batch without records is accepted")
	}
	if who, err := shape.Tokens.Records([]byte(`{"token":"t","record":{"id":"u"}}`)); err != nil || len(who) != 1 || who[0]["id"] != "u" {
		t.Errorf("%v, %v", who, err)
	}
}
