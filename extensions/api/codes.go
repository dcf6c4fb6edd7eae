package api

import (
	"net/http"

	"github.com/satchelbase/satchel/extensions"
)

// Codes of the HTTP interface that belong to no feature. Names are stable: clients switch on them.
var (
	ErrBadRequest      = &extensions.Code{Name: "api.bad_request", Status: http.StatusBadRequest, Title: "The request is not valid"}
	ErrValidation      = &extensions.Code{Name: "api.validation_failed", Status: http.StatusBadRequest, Title: "Some fields are not valid"}
	ErrBodyMalformed   = &extensions.Code{Name: "api.body_malformed", Status: http.StatusBadRequest, Title: "The body is not well-formed"}
	ErrUnauthorized    = &extensions.Code{Name: "api.unauthorized", Status: http.StatusUnauthorized, Title: "Authentication is required"}
	ErrForbidden       = &extensions.Code{Name: "api.forbidden", Status: http.StatusForbidden, Title: "This is not allowed"}
	ErrNotFound        = &extensions.Code{Name: "api.not_found", Status: http.StatusNotFound, Title: "Nothing was found here"}
	ErrConflict        = &extensions.Code{Name: "api.conflict", Status: http.StatusConflict, Title: "The request conflicts with the current state"}
	ErrBodyTooLarge    = &extensions.Code{Name: "api.body_too_large", Status: http.StatusRequestEntityTooLarge, Title: "The body is too large"}
	ErrMediaType       = &extensions.Code{Name: "api.media_type_unsupported", Status: http.StatusUnsupportedMediaType, Title: "The media type is not supported"}
	ErrAppUpgrade      = &extensions.Code{Name: "api.app_upgrade_required", Status: http.StatusUpgradeRequired, Title: "This version of the app is too old"}
	ErrTooManyRequests = &extensions.Code{Name: "api.too_many_requests", Status: http.StatusTooManyRequests, Title: "Too many requests"}
	ErrInternal        = &extensions.Code{Name: "api.internal", Status: http.StatusInternalServerError, Title: "Something went wrong on the server"}
	ErrUnavailable     = &extensions.Code{Name: "api.unavailable", Status: http.StatusServiceUnavailable, Title: "The server cannot answer right now"}
	ErrDeadline        = &extensions.Code{Name: "api.deadline_exceeded", Status: http.StatusServiceUnavailable, Title: "The request took too long"}
)

// Codes lists the codes of this package.
func Codes() []*extensions.Code {
	return []*extensions.Code{
		ErrBadRequest, ErrValidation, ErrBodyMalformed, ErrUnauthorized, ErrForbidden, ErrNotFound,
		ErrConflict, ErrBodyTooLarge, ErrMediaType, ErrAppUpgrade, ErrTooManyRequests, ErrInternal, ErrUnavailable, ErrDeadline,
		ErrFieldUnknown, ErrFieldType, ErrFieldLong, ErrFieldRequired, ErrFieldInvalid,
	}
}

// codeOf picks the code for an error that carries only a status.
func codeOf(status int) *extensions.Code {
	for _, c := range Codes() {
		if c.Status == status && c != ErrValidation && c != ErrBodyMalformed && c != ErrDeadline {
			return c
		}
	}
	if status >= http.StatusInternalServerError {
		return ErrInternal
	}
	return ErrBadRequest
}
