package sender

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"

	"github.com/satchelbase/satchel/extensions/internal/outbound"
)

// MaxAnswer is how much of a provider's answer is read, in bytes: a thousand of Expo's receipts fit.
const MaxAnswer = 512 << 10

// Answer is what a provider said.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// Call sends a request and reads the answer. Without an answer, the result says why.
func Call(client *http.Client, r *http.Request) (*Answer, Result) {
	return call(client, r, func(body io.Reader) ([]byte, error) { return outbound.Read(body, MaxAnswer) })
}

// Knock is Call for answers whose body means nothing. It is not kept, because who answers may be anybody.
func Knock(client *http.Client, r *http.Request) (*Answer, Result) {
	return call(client, r, func(body io.Reader) ([]byte, error) {
		n, err := io.Copy(io.Discard, io.LimitReader(body, MaxAnswer+1))
		if err == nil && n > MaxAnswer {
			err = outbound.ErrTooLarge
		}
		return nil, err
	})
}

func call(client *http.Client, r *http.Request, read func(body io.Reader) ([]byte, error)) (*Answer, Result) {
	resp, err := client.Do(r) //nolint:gosec // the guarded client checks where it leads
	if err != nil {
		return nil, Unanswered(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := read(resp.Body)
	if err != nil {
		return nil, Unanswered(err)
	}
	return &Answer{resp.StatusCode, resp.Header, body}, Result{}
}

// Unanswered is the result of a call that ended with an error instead of an answer. Detail does not repeat the error: it
// would name the token, which is in the address.
func Unanswered(err error) Result {
	for refusal, detail := range map[error]string{
		outbound.ErrScheme: "it is not https", outbound.ErrHost: "its host is not allowed", outbound.ErrAddress: "it is not on the public internet",
		outbound.ErrPort: "its port is not allowed", outbound.ErrRedirect: "it redirects",
	} {
		if errors.Is(err, refusal) {
			return Result{Outcome: Rejected, Code: CodeRefused, Detail: "the address is not called: " + detail}
		}
	}
	var slow net.Error
	switch {
	case errors.Is(err, outbound.ErrTooLarge):
		return Result{Outcome: Retry, Code: CodeUnreadable, Detail: "the answer is too large"}
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &slow) && slow.Timeout():
		return Result{Outcome: Retry, Code: CodeTimeout, Detail: "the provider did not answer in time"}
	}
	return Result{Outcome: Retry, Code: CodeUnreachable, Detail: "the provider could not be reached, or ended the connection"}
}

// Later is the result of an answer that asks to try again.
func Later(a *Answer, code string) Result {
	return Result{Outcome: Retry, Code: code, Status: a.Status, After: outbound.RetryAfter(a.Header)}
}
