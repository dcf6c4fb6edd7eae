package capture

// Action is what happened.
type Action uint8

// The actions. The last three concern a whole collection and have no record.
const (
	Create Action = iota + 1
	Update
	Delete
	Schema // the collection's definition, which includes its rules
	Reset  // capture began: anything may have changed before
	Gone   // the collection was deleted, or is no longer captured
)

// String is the word for it.
func (a Action) String() string {
	words := []string{"", "create", "update", "delete", "schema", "reset", "gone"}
	if int(a) >= len(words) {
		return "unknown"
	}
	return words[a]
}
