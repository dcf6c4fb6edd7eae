package ownership

import (
	"cmp"
	"slices"
	"strings"

	"github.com/pocketbase/pocketbase/core"
)

// Line is what happens to the records of one collection.
type Line struct {
	Accounts   string `json:"accounts"` // the collection of the accounts
	Collection string `json:"collection"`
	By         string `json:"by"` // what makes a record belong to an account
	Export     bool   `json:"export"`
	Delete     string `json:"delete"`
	Warning    string `json:"warning,omitempty"`
}

// Describe lists what happens to the records of each collection.
func (p *Plan) Describe() []Line {
	var lines []Line
	for _, s := range p.Sets {
		l := Line{Accounts: p.Accounts.Name, Collection: s.Collection.Name, By: s.note, Export: s.Export, Delete: "deleted"}
		if !s.Erase {
			l.Delete = "deleted with what it belongs to"
		}
		for _, path := range s.paths {
			if hop, _, deep := strings.Cut(path, "."); deep {
				l.Warning = cmp.Or(l.Warning, unindexed(s.Collection, hop))
			}
		}
		lines = append(lines, l)
	}
	for _, r := range p.Direct {
		l := Line{Accounts: p.Accounts.Name, Collection: r.Collection.Name, By: r.Field.Name, Delete: "kept, " + r.Field.Name + " emptied"}
		if r.Erase {
			l.Delete = "deleted"
			if r.Field.IsMultiple() {
				l.Delete = "deleted when nobody else is in " + r.Field.Name
			}
		}
		if !r.Field.IsMultiple() { // an index cannot help with several
			l.Warning = unindexed(r.Collection, r.Field.Name)
		}
		at := -1
		for i := range lines {
			if lines[i].Collection == l.Collection && lines[i].By == l.By {
				at = i
			}
		}
		if at < 0 {
			lines = append(lines, l)
			continue
		}
		lines[at].Delete, lines[at].Warning = l.Delete, l.Warning
	}
	for _, name := range p.undecided {
		collection, field, _ := strings.Cut(name, ".")
		if !slices.ContainsFunc(lines, func(l Line) bool { return l.Collection == collection && l.By == field }) {
			lines = append(lines, Line{
				Accounts: p.Accounts.Name, Collection: collection, By: field, Delete: "deleted with what it belongs to",
				Warning: "undecided: it belongs to records that a filter of the map selects, so only the map can say how it is exported",
			})
			continue
		}
		for i := range lines {
			if lines[i].Collection == collection && lines[i].By == field {
				lines[i].Warning = "undecided: neither required nor deleted with the account, and not in the map"
			}
		}
	}
	return lines
}

// unindexed warns of a relation for which every record that is deleted makes SQLite read the whole table.
func unindexed(c *core.Collection, field string) string {
	for _, index := range c.Indexes {
		_, columns, _ := strings.Cut(index, "(")
		first := strings.FieldsFunc(columns, func(r rune) bool { return strings.ContainsRune(" ,()`\"[]\n\t", r) })
		if len(first) > 0 && first[0] == field {
			return ""
		}
	}
	return "no index begins with " + field + ", so a deletion reads the whole table for each record"
}
