package apns

import (
	"io"
	"net/http"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/push/sender"
)

// maxAnswer is far more than APNs says: a reason and a time.
const maxAnswer = 16 << 10

// captureKey is where a call's context has a *sender.Answer to fill.
type captureKey struct{}

// capture keeps what apns2 drops, the status and the headers, and bounds the answer that it reads.
type capture struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (c capture) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	if seen, ok := r.Context().Value(captureKey{}).(*sender.Answer); ok {
		seen.Status, seen.Header = resp.StatusCode, resp.Header
	}
	resp.Body = &bounded{ReadCloser: resp.Body, left: maxAnswer}
	return resp, nil
}

// CloseIdleConnections lets http.Client's method of that name reach the transport.
func (c capture) CloseIdleConnections() {
	if t, ok := c.next.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// bounded fails where io.LimitReader would pretend that the body has ended.
type bounded struct {
	io.ReadCloser

	left int
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, outbound.ErrTooLarge
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}
