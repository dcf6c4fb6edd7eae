//go:build !fcmraw

package fcm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"firebase.google.com/go/v4/messaging"
	"google.golang.org/api/option"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
	"github.com/satchelbase/satchel/extensions/push/sender"
)

// newWire makes the program with Google's SDK.
func newWire(client *http.Client, endpoint, project string) (wire, error) {
	own := *client
	own.Transport = once{authorize{client.Transport}}
	ctx := context.Background() // the SDK keeps it for nothing
	m, err := newClient(ctx, messaging.NewClient, sdkConfig{
		Opts:      []option.ClientOption{option.WithHTTPClient(&own), option.WithEndpoint(endpoint + "/v1")},
		ProjectID: project,
		Version:   sdkVersion,
	})
	if err != nil {
		return nil, fmt.Errorf("start the SDK: %w", err)
	}
	return sdkWire{m}, nil
}

// sdkVersion is what the SDK tells Google of itself; it is the version that go.mod pins.
const sdkVersion = "4.19.0"

// sdkConfig has the shape of what messaging.NewClient takes, a type that is internal to the SDK.
type sdkConfig = struct {
	Opts      []option.ClientOption
	ProjectID string
	Version   string
}

// newClient calls messaging.NewClient without the SDK's root package, which links Firestore, Storage and what these need:
// 15 MB of the program and of the memory of an idle server. The type that cannot be named is inferred, and the compiler
// refuses a version of the SDK that gives it another shape.
func newClient[C interface{ ~sdkConfig }](ctx context.Context, construct func(context.Context, *C) (*messaging.Client, error), config sdkConfig) (*messaging.Client, error) {
	c := C(config)
	return construct(ctx, &c)
}

type sdkWire struct{ client *messaging.Client }

func (w sdkWire) send(ctx context.Context, message []byte, dry bool) (*sender.Answer, sender.Result) {
	var m messaging.Message
	if err := json.Unmarshal(message, &m); err != nil {
		return nil, sender.Result{Outcome: sender.Rejected, Code: sender.CodeInvalid, Detail: "the SDK does not read the message: " + err.Error()}
	}
	seen := &seen{}
	ctx = context.WithValue(ctx, seenKey{}, seen)
	call := w.client.Send
	if dry {
		call = w.client.SendDryRun
	}
	_, err := call(ctx, &m)
	switch {
	case seen.answer != nil:
		return seen.answer, sender.Result{}
	case seen.err != nil:
		return nil, sender.Unanswered(seen.err)
	case err != nil:
		return nil, sender.Result{Outcome: sender.Rejected, Code: sender.CodeInvalid, Detail: err.Error()} // it made no request
	}
	return nil, sender.Result{Outcome: sender.Retry, Code: sender.CodeUnreadable, Detail: "the SDK made no request"}
}

// seenKey is where a call's context has a *seen to fill.
type seenKey struct{}

// seen is what really happened, before the SDK was told.
type seen struct {
	answer *sender.Answer
	err    error
}

// once hides from the SDK what it would try again, which is 503 and every error of the network: both become a 500.
type once struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (o once) RoundTrip(r *http.Request) (*http.Response, error) {
	s, _ := r.Context().Value(seenKey{}).(*seen)
	if s == nil {
		s = &seen{}
	}
	failed := func(err error) (*http.Response, error) {
		s.err = err
		return &http.Response{StatusCode: http.StatusInternalServerError, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{}, Body: io.NopCloser(strings.NewReader("{}")), Request: r}, nil
	}
	resp, err := o.next.RoundTrip(r)
	if err != nil {
		return failed(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := outbound.Read(resp.Body, sender.MaxAnswer)
	if err != nil {
		return failed(err)
	}
	s.answer = &sender.Answer{Status: resp.StatusCode, Header: resp.Header, Body: body}
	told := *resp
	told.Body = io.NopCloser(bytes.NewReader(body))
	if told.StatusCode == http.StatusServiceUnavailable {
		told.StatusCode = http.StatusInternalServerError
	}
	return &told, nil
}
