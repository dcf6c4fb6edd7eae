package teams

import (
	"net/http"

	"github.com/satchelbase/satchel/extensions"
)

// Codes of refusals. A team that the caller is not in is not found.
var (
	ErrTeamNotFound      = &extensions.Code{Name: "teams.team_not_found", Status: http.StatusNotFound, Title: "There is no such team"}
	ErrMemberNotFound    = &extensions.Code{Name: "teams.member_not_found", Status: http.StatusNotFound, Title: "There is no such member"}
	ErrRole              = &extensions.Code{Name: "teams.role_insufficient", Status: http.StatusForbidden, Title: "Your role in the team does not allow this"}
	ErrRoleUnknown       = &extensions.Code{Name: "teams.role_unknown", Status: http.StatusBadRequest, Title: "There is no such role"}
	ErrLastOwner         = &extensions.Code{Name: "teams.last_owner", Status: http.StatusConflict, Title: "A team must keep an owner"}
	ErrAlreadyMember     = &extensions.Code{Name: "teams.already_member", Status: http.StatusConflict, Title: "You are in this team already"}
	ErrFull              = &extensions.Code{Name: "teams.full", Status: http.StatusConflict, Title: "The team has as many members as it may have"}
	ErrTooManyTeams      = &extensions.Code{Name: "teams.too_many_teams", Status: http.StatusConflict, Title: "You are in as many teams as you may be"}
	ErrTooManyPending    = &extensions.Code{Name: "teams.too_many_pending", Status: http.StatusConflict, Title: "Too many invitations of the team wait for an answer"}
	ErrMailLimit         = &extensions.Code{Name: "teams.mail_limited", Status: http.StatusTooManyRequests, Title: "Too many invitations were mailed; wait"}
	ErrUnverified        = &extensions.Code{Name: "teams.address_unverified", Status: http.StatusForbidden, Title: "Verify your e-mail address first"}
	ErrInvitationInvalid = &extensions.Code{Name: "teams.invitation_invalid", Status: http.StatusNotFound, Title: "There is no such invitation"}
	ErrInvitationExpired = &extensions.Code{Name: "teams.invitation_expired", Status: http.StatusGone, Title: "The invitation has expired"}
	ErrInvitationClosed  = &extensions.Code{Name: "teams.invitation_closed", Status: http.StatusGone, Title: "The invitation was used, declined or revoked"}
	ErrInvitationAddress = &extensions.Code{Name: "teams.invitation_address", Status: http.StatusForbidden, Title: "The invitation was sent to another e-mail address"}
)

func codes() []*extensions.Code {
	return []*extensions.Code{
		ErrTeamNotFound, ErrMemberNotFound, ErrRole, ErrRoleUnknown, ErrLastOwner, ErrAlreadyMember, ErrFull, ErrTooManyTeams, ErrTooManyPending,
		ErrMailLimit, ErrUnverified, ErrInvitationInvalid, ErrInvitationExpired, ErrInvitationClosed, ErrInvitationAddress,
	}
}
