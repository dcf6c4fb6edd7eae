package rows

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/pocketbase/pocketbase/core"
)

// maxExpandDepth is where PocketBase silently stops to follow relations.
const maxExpandDepth = 6

// backRelationPattern is PocketBase's name of the records of another collection that point here.
var backRelationPattern = regexp.MustCompile(`^(\w+)_via_(\w+)$`)

// ParseExpand splits the parameter and checks that every path follows relations, which the stock API ignores. What a
// viewer may see at the end of a path is decided later, by the view rule of the related collection.
func ParseExpand(app core.App, collection *core.Collection, raw string) ([]string, error) {
	var paths []string
	for path := range strings.SplitSeq(strings.ReplaceAll(raw, " ", ""), ",") {
		if path == "" {
			continue
		}
		steps := strings.Split(path, ".")
		if len(steps) > maxExpandDepth {
			return nil, fmt.Errorf("%q has more than %d levels", path, maxExpandDepth)
		}
		at := collection
		for _, step := range steps {
			if at = related(app, at, step); at == nil {
				return nil, fmt.Errorf("%q in %q is not a relation", step, path)
			}
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// related is the collection that one step of an expand leads to, nil if it leads nowhere. As in PocketBase, a name that
// looks like a back-relation is one.
func related(app core.App, from *core.Collection, step string) *core.Collection {
	if m := backRelationPattern.FindStringSubmatch(step); m != nil {
		to := cachedCollection(app, m[1])
		if to == nil {
			return nil
		}
		if back, ok := to.Fields.GetByName(m[2]).(*core.RelationField); ok && back.CollectionId == from.Id {
			return to
		}
		return nil
	}
	if relation, ok := from.Fields.GetByName(step).(*core.RelationField); ok {
		return cachedCollection(app, relation.CollectionId)
	}
	return nil
}

func cachedCollection(app core.App, nameOrID string) *core.Collection {
	c, err := app.FindCachedCollectionByNameOrId(nameOrID)
	if err != nil {
		return nil
	}
	return c
}
