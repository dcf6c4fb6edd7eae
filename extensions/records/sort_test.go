package records

import (
	"strings"
	"testing"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/search"
)

// orderText is an order as SQL would have it.
func orderText(o order) string {
	var out []string
	for _, t := range o.terms {
		text := t.Column
		if t.Collate != "" {
			text += " " + t.Collate
		}
		if t.Desc {
			text += " DESC"
		}
		out = append(out, text)
	}
	return strings.Join(out, ", ")
}

func TestPlan(t *testing.T) {
	cases := []struct {
		name, index, sort string
		want              string // empty: refused
	}{
		{"id needs no index", "", "-id", "id DESC"},
		{"nothing matters after id", "", "id,title", "id"},
		{"the same field again", "(a, id)", "a,-a", "a, id"},
		{"tie-break as in the index", "(a, id DESC)", "a", "a, id DESC"},
		{"tie-break as in the index, backwards", "(a, id DESC)", "-a", "a DESC, id"},
		{"tie-break as the last field", "(a)", "-a", "a DESC, id DESC"},
		{"tie-break asked for", "(a, id)", "a,-id", "a, id DESC"},
		{"several fields", "(a, b, id)", "a,b", "a, b, id"},
		{"leading fields", "(a, b, id)", "a", "a, id"},
		{"mixed directions", "(a, b DESC)", "-a,b", "a DESC, b, id"},
		{"quoted, any case, unique", "UNIQUE (`A`, \"b\")", "a,b", "a, b, id"},
		{"collation", "(a COLLATE nocase, id)", "a", "a NOCASE, id"},
		{"default collation first", "(a COLLATE NOCASE);(a, id)", "a", "a, id"},
		{"bound column", "(owner, a, id)", "a", "a, id"},
		{"bound column sorted by", "(owner, a, id)", "owner,a", "owner, a, id"},
		{"bound column in another collation", "(owner COLLATE NOCASE, a)", "a", ""},
		{"unbound column", "(b, a)", "a", ""},
		{"bound column in the middle", "(a, owner, b)", "a,b", ""},
		{"wrong order of fields", "(b, a)", "a,b", ""},
		{"wrong directions", "(a, b)", "a,-b", ""},
		{"own collation", "(a COLLATE mine)", "a", ""},
		{"expression", "(lower(a))", "a", ""},
		{"partial", "(a) WHERE a != ''", "a", ""},
		{"no index", "", "a", ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			posts := core.NewBaseCollection("posts")
			posts.Fields.Add(&core.TextField{Name: "a"}, &core.TextField{Name: "b"}, &core.TextField{Name: "owner"})
			if c.index != "" {
				for index := range strings.SplitSeq(c.index, ";") {
					unique, columns, found := strings.Cut(index, "(")
					if !found {
						t.Fatal(index)
					}
					posts.Indexes = append(posts.Indexes, "CREATE "+unique+" INDEX i ON posts ("+columns)
				}
			}
			p := planner{collection: posts, bindings: &bindings{collection: posts, values: map[string]any{"owner": "x"}}}
			o, err := p.plan(search.ParseSortFromString(c.sort))
			if got := orderText(o); (err != nil) != (c.want == "") || (err == nil && got != c.want) {
				t.Errorf("%q, %v; want %q", got, err, c.want)
			}
		})
	}
}
