package rows

import (
	"slices"
	"sync"

	"github.com/pocketbase/pocketbase/core"
)

// AppendRecord writes a record as its MarshalJSON does, to the byte: what it exports to the public, with the keys in
// order. An error leaves dst with half a record.
func AppendRecord(dst []byte, record *core.Record) ([]byte, error) {
	return appendObject(dst, record.PublicExport())
}

// AppendRecords writes a list of records.
func AppendRecords(dst []byte, records []*core.Record) ([]byte, error) {
	return appendList(dst, records, func(dst []byte, r *core.Record) ([]byte, error) { return appendAny(dst, r) })
}

func appendObject(dst []byte, object map[string]any) ([]byte, error) {
	var room [32]string
	names := room[:0]
	for name := range object {
		names = append(names, name)
	}
	slices.Sort(names)
	dst = append(dst, '{')
	for i, name := range names {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(appendString(dst, name), ':')
		var err error
		if dst, err = appendAny(dst, object[name]); err != nil {
			return dst, err
		}
	}
	return append(dst, '}'), nil
}

// keptBuffer bounds what the pool keeps, in bytes: about a list of a hundred records with long texts.
const keptBuffer = 1 << 18

// buffers are reused between answers.
var buffers = sync.Pool{New: func() any { return new([]byte) }} //nolint:gochecknoglobals // a pool is shared by nature

// Buffered lends fn an empty buffer. fn returns it as it has grown, and nobody may use it after fn has returned.
func Buffered(fn func(buf []byte) ([]byte, error)) error {
	p, _ := buffers.Get().(*[]byte)
	buf, err := fn((*p)[:0])
	if cap(buf) <= keptBuffer {
		*p = buf
		buffers.Put(p)
	}
	return err
}
