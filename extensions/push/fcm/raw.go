package fcm

import (
	"bytes"
	"context"
	"net/http"

	"github.com/satchelbase/satchel/extensions/push/sender"
)

// rawWire speaks the HTTP v1 interface itself. It is in every build, so that its tests are run; the tag decides what is
// used.
type rawWire struct {
	client *http.Client
	url    string
}

func newRawWire(client *http.Client, endpoint, project string) (wire, error) {
	own := *client
	own.Transport = authorize{client.Transport}
	return rawWire{&own, endpoint + "/v1/projects/" + project + "/messages:send"}, nil
}

func (w rawWire) send(ctx context.Context, message []byte, dry bool) (*sender.Answer, sender.Result) {
	body := append([]byte(`{"message":`), message...)
	if dry {
		body = append(body, `,"validate_only":true`...)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(append(body, '}')))
	if err != nil {
		return nil, sender.Result{Outcome: sender.Rejected, Code: sender.CodeInvalid, Detail: "the endpoint is no address"}
	}
	req.Header.Set("Content-Type", "application/json")
	return sender.Call(w.client, req)
}
