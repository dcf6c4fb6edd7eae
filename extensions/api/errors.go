package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/pocketbase/pocketbase/core"
	"github.com/pocketbase/pocketbase/tools/hook"
	"github.com/pocketbase/pocketbase/tools/router"
)

type problemJSON struct {
	Type      string         `json:"type"`
	Title     string         `json:"title"`
	Status    int            `json:"status"`
	Detail    string         `json:"detail,omitempty"`
	Code      string         `json:"code"`
	RequestID string         `json:"requestId"`
	Errors    []FieldError   `json:"errors"`
	Success   bool           `json:"success"`
	Message   string         `json:"message"`
	Data      map[string]any `json:"data"`
	Timestamp string         `json:"timestamp"`
}

// generatedJSON is the error of PocketBase's generated API below /api/v1: its own three members and ours.
type generatedJSON struct {
	Data      map[string]any `json:"data"`
	Message   string         `json:"message"`
	Status    int            `json:"status"`
	Code      string         `json:"code"`
	RequestID string         `json:"requestId"`
}

// errorWriter writes the errors of all handlers below /api/v1. Outside of it the stock handler does, byte for byte.
func errorWriter() *hook.Handler[*core.RequestEvent] {
	return &hook.Handler[*core.RequestEvent]{
		Id: "satchelErrors", Priority: errorsPriority,
		Func: func(e *core.RequestEvent) error {
			err := e.Next()
			if err == nil || e.Written() {
				return err
			}
			if !RequestOf(e.Request.Context()).Versioned {
				if p, ok := errors.AsType[*Problem](tooLarge(err)); ok {
					p.setHeaders(e.Response.Header())
				}
				return tooLarge(err)
			}
			return WriteError(e, err)
		},
	}
}

// WriteError answers with the error of a handler, as it is answered when the handler returns it. It is for those who
// keep answers.
func WriteError(e *core.RequestEvent, err error) error {
	err = tooLarge(err)
	req := RequestOf(e.Request.Context())
	if !req.Versioned {
		if p, ok := errors.AsType[*Problem](err); ok {
			p.setHeaders(e.Response.Header())
		}
		router.ErrorHandler(e.Response, e.Request, err)
		return nil
	}
	p := asProblem(err)
	p.setHeaders(e.Response.Header())
	body, marshalErr := p.body(req, err)
	if marshalErr != nil {
		return fmt.Errorf("marshal problem: %w", marshalErr)
	}
	contentType := "application/problem+json"
	if req.Generated {
		contentType = "application/json"
	}
	if e.Request.Method == http.MethodHead {
		body = nil
	}
	return writeJSON(e.Response, p.Code.Status, contentType, body)
}

// StatusOf is the status with which the error of a handler will be answered, for what looks at it before it is written.
func StatusOf(ctx context.Context, err error) int {
	err = tooLarge(err)
	if RequestOf(ctx).Versioned {
		return asProblem(err).Code.Status
	}
	return router.ToApiError(err).Status
}

// ProblemOf is the problem that /api/v1 answers for the error, for answers that carry problems inside.
func ProblemOf(err error) *Problem { return asProblem(tooLarge(err)) }

// CodeOf is the name of the code that /api/v1 answers for the error.
func CodeOf(err error) string { return asProblem(tooLarge(err)).Code.Name }

// tooLarge recognises the body limit behind the general error that a failed read of the body becomes.
func tooLarge(err error) error {
	var limit *http.MaxBytesError
	if errors.As(err, &limit) {
		return Fail(ErrBodyTooLarge, "").Because(err)
	}
	if apiErr, ok := errors.AsType[*router.ApiError](err); ok {
		if cause, ok := apiErr.RawData().(error); ok && errors.As(cause, &limit) {
			return Fail(ErrBodyTooLarge, "").Because(err)
		}
	}
	return err
}

func (p *Problem) setHeaders(h http.Header) {
	for name, values := range p.Header {
		h[http.CanonicalHeaderKey(name)] = values
	}
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(int(math.Ceil(p.RetryAfter.Seconds()))))
	}
	if h.Get("Cache-Control") == "" {
		h.Set("Cache-Control", "no-store")
	}
}

func (p *Problem) body(req *Request, err error) ([]byte, error) {
	var stock *router.ApiError
	errors.As(err, &stock)
	message := p.Detail
	if message == "" {
		message = p.Code.Title
	}
	data := map[string]any{}
	if stock != nil && stock.Data != nil {
		data = stock.Data
	}
	if req.Generated {
		return json.Marshal(generatedJSON{Data: data, Message: message, Status: p.Code.Status, Code: p.Code.Name, RequestID: req.ID})
	}
	fields := p.Errors
	if fields == nil {
		fields = []FieldError{}
	}
	return json.Marshal(problemJSON{
		Type: DocsURL(p.Code.Name), Title: p.Code.Title, Status: p.Code.Status, Detail: p.Detail, Code: p.Code.Name,
		RequestID: req.ID, Errors: fields, Message: message, Data: data, Timestamp: time.Now().UTC().Format(time.RFC3339Nano),
	})
}

// DocsURL is the problem type of a code: a reference that stays the same wherever the server runs (RFC 9457 section 3.1.1).
func DocsURL(code string) string { return "urn:satchel:problem:" + code }
