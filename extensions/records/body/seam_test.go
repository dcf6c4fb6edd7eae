package body

import (
	"testing"

	"github.com/pocketbase/pocketbase/core"
)

// PocketBase's fields accept modifiers beside their names.
func TestSeamSetters(t *testing.T) {
	posts := core.NewBaseCollection("posts")
	posts.Fields.Add(
		&core.TextField{Name: "title"}, &core.NumberField{Name: "n"}, &core.FileField{Name: "doc", MaxSelect: 1},
		&core.SelectField{Name: "tags", Values: []string{"x"}, MaxSelect: 3},
	)
	c := &checker{}
	for name, field := range map[string]string{"n+": "n", "n-": "n", "tags+": "tags", "+tags": "tags", "tags-": "tags", "doc+": "doc", "title:autogenerate": "title"} {
		if f := c.fieldOf(posts, name); f == nil || f.GetName() != field {
			t.Errorf("%s sets %v", name, f)
		}
	}
}
