package changes

import (
	"context"
	"strings"
)

// registry is the list of collections as the log last saw it. It is immutable.
type registry struct {
	byNumber map[int64]Collection
	byKey    map[string]int64 // ids and lower-case names of those that are captured
}

func newRegistry(list []Collection) *registry {
	r := &registry{byNumber: make(map[int64]Collection, len(list)), byKey: make(map[string]int64, 2*len(list))}
	for _, k := range list {
		r.byNumber[k.C] = k
		if k.Gone == 0 {
			r.byKey[strings.ToLower(k.Name)] = k.C
		}
	}
	for _, k := range list { // an id wins over another collection's name
		if k.Gone == 0 {
			r.byKey[k.ID] = k.C
		}
	}
	return r
}

func (r *registry) find(idOrName string) (Collection, error) {
	c, ok := r.byKey[idOrName]
	if !ok {
		c, ok = r.byKey[strings.ToLower(idOrName)]
	}
	if !ok {
		return Collection{}, ErrNotCaptured
	}
	return r.byNumber[c], nil
}

// Collection finds a captured collection by id or name. It returns ErrNotCaptured for all others.
func (l *Log) Collection(ctx context.Context, idOrName string) (Collection, error) {
	t, err := l.fresh(ctx)
	if err != nil {
		return Collection{}, err
	}
	return t.registry.find(idOrName)
}

// Gone lists the collections that were deleted or excluded after the number and are not captured now.
func (l *Log) Gone(ctx context.Context, after int64) ([]Collection, error) {
	t, err := l.fresh(ctx)
	if err != nil {
		return nil, err
	}
	var out []Collection
	for _, k := range t.registry.byNumber {
		if _, again := t.registry.byKey[k.ID]; k.Gone > after && !again {
			out = append(out, k)
		}
	}
	return out, nil
}
