package teams

import "slices"

// The roles that every team has.
const (
	Owner  = "owner"
	Admin  = "admin"
	Member = "member"
)

func builtIn() []string { return []string{Owner, Admin, Member} }

// known reports whether a membership may have the role.
func (t *Teams) known(role string) bool {
	return slices.Contains(builtIn(), role) || slices.Contains(t.cfg.Roles, role)
}

// rank orders roles. A role that the settings do not name any more is a member.
func rank(role string) int {
	switch role {
	case Owner:
		return 3
	case Admin:
		return 2
	default:
		return 1
	}
}

// leads reports whether the role may rename the team and see its invitations.
func leads(role string) bool { return rank(role) >= rank(Admin) }

// mayInvite reports whether someone with the role may invite for the other one. Nobody is invited to own a team: an owner
// is made of a member.
func mayInvite(role, as string) bool { return as != Owner && mayManage(role, as) }

// mayManage reports whether someone with the role may give the other role to others, and take it or the membership from
// those who have it: owners all roles, admins those below their own.
func mayManage(role, other string) bool {
	return role == Owner || role == Admin && rank(other) < rank(Admin)
}

// mayTake reports whether someone may change their own role: only to step down. Roles of the app are of equal rank, and
// may mean anything, so that nobody takes one who could not give it.
func mayTake(role, as string) bool {
	return leads(role) && (rank(as) < rank(role) || as == role)
}
