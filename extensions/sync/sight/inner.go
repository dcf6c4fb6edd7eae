package sight

import (
	"bytes"
	"io"
	"net/http"

	"github.com/pocketbase/pocketbase/tools/router"
)

// newBody is a body that can be read again and again, as those of the router.
func newBody(b []byte) io.ReadCloser {
	return &router.RereadableReadCloser{ReadCloser: io.NopCloser(bytes.NewReader(b))}
}

// nowhere is the answer of a request within another one: hooks may write to it, and nobody sees it.
type nowhere struct {
	header http.Header
	status int
}

func (w *nowhere) Header() http.Header { return w.header }

func (w *nowhere) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
}

func (w *nowhere) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return len(b), nil
}

// Written and Status are what PocketBase asks an answer.
func (w *nowhere) Written() bool { return w.status != 0 }

func (w *nowhere) Status() int { return w.status }
