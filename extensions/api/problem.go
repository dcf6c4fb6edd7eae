package api

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/pocketbase/pocketbase/tools/router"

	"github.com/satchelbase/satchel/extensions"
)

// Problem is the error answer of every own route: RFC 9457 members, plus those that the stock SDK and simpler clients
// look for. It is an error; handlers return it and the outermost middleware writes it.
type Problem struct {
	Code   *extensions.Code
	Detail string // for people, in English; may name what the client sent, never what the server holds
	Errors []FieldError

	// RetryAfter, rounded up to whole seconds, becomes the Retry-After header.
	RetryAfter time.Duration

	// Header is added to the answer, such as WWW-Authenticate.
	Header http.Header

	// Cause goes to the log and nowhere else.
	Cause error
}

// FieldError is one invalid member of the input. Field is its path: "title", "items.2.price".
type FieldError struct {
	Field   string `json:"field"`
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Fail is the short form for a problem with a detail.
func Fail(code *extensions.Code, detail string) *Problem {
	return &Problem{Code: code, Detail: detail}
}

// Because adds the cause for the log.
func (p *Problem) Because(err error) *Problem {
	p.Cause = err
	return p
}

// Error is the text for logs: code, detail and cause.
func (p *Problem) Error() string {
	parts := []string{p.Code.Name}
	if p.Detail != "" {
		parts = append(parts, p.Detail)
	}
	if p.Cause != nil {
		parts = append(parts, p.Cause.Error())
	}
	return strings.Join(parts, ": ")
}

// Unwrap makes errors.Is match the code and the cause.
func (p *Problem) Unwrap() []error {
	if p.Cause == nil {
		return []error{p.Code}
	}
	return []error{p.Code, p.Cause}
}

// As lets PocketBase's own error handler write the problem, with its status, on routes outside /api/v1.
func (p *Problem) As(target any) bool {
	apiErr, ok := target.(**router.ApiError)
	if !ok {
		return false
	}
	data := make(map[string]any, len(p.Errors))
	for _, f := range p.Errors {
		data[f.Field] = map[string]string{"code": f.Code, "message": f.Message}
	}
	detail := p.Detail
	if detail == "" {
		detail = p.Code.Title
	}
	*apiErr = router.NewApiError(p.Code.Status, detail, p.Cause)
	(*apiErr).Data = data
	return true
}

// asProblem turns any error of a handler into a problem. PocketBase's default for an unknown error is 400; here it is
// the server's own fault, so that clients keep their data and retry.
func asProblem(err error) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p
	}
	if code, ok := errors.AsType[*extensions.Code](err); ok {
		return &Problem{Code: code, Cause: err}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return &Problem{Code: ErrDeadline, RetryAfter: time.Second, Cause: err}
	}
	if errors.Is(err, context.Canceled) { // the client has gone, or the server is stopping
		return &Problem{Code: ErrUnavailable, RetryAfter: time.Second, Cause: err}
	}
	if apiErr, ok := errors.AsType[*router.ApiError](err); ok {
		return fromStock(apiErr)
	}
	return &Problem{Code: ErrInternal, Cause: err}
}

// fromStock keeps what PocketBase's error says and gives it a code.
func fromStock(apiErr *router.ApiError) *Problem {
	p := &Problem{Code: codeOf(apiErr.Status), Detail: apiErr.Message}
	if cause, ok := apiErr.RawData().(error); ok {
		p.Cause = cause
	}
	if p.Errors = fieldErrors("", apiErr.Data); len(p.Errors) > 0 && apiErr.Status == http.StatusBadRequest {
		p.Code = ErrValidation
	}
	return p
}

// fieldErrors flattens PocketBase's nested {field: {code, message}} data, in the order of the fields' names.
func fieldErrors(prefix string, data map[string]any) []FieldError {
	var out []FieldError
	for _, name := range sortedKeys(data) {
		m, ok := data[name].(map[string]any)
		if !ok {
			continue
		}
		code, isItem := m["code"].(string)
		if !isItem {
			out = append(out, fieldErrors(prefix+name+".", m)...)
			continue
		}
		message, _ := m["message"].(string)
		out = append(out, FieldError{Field: prefix + name, Code: code, Message: message})
	}
	return out
}
