package api

import "github.com/pocketbase/pocketbase/core"

// SuperusersOnly is the judgement of roles in a program that has none: superusers have every role and nobody else has
// one. Its error is the answer.
func SuperusersOnly(e *core.RequestEvent, _ string) error {
	switch {
	case e.Auth == nil:
		return ErrUnauthorized
	case !e.HasSuperuserAuth():
		return ErrForbidden
	}
	return nil
}
