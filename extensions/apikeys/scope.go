package apikeys

import (
	"regexp"
	"slices"
	"strings"
)

// ScopeIntrospect allows to ask what a token is worth (RFC 7662).
const ScopeIntrospect = "introspect"

// maxScopes bounds the scopes of a key, maxScope the length of one, in bytes.
const (
	maxScopes = 50
	maxScope  = 100
)

// scopePattern is a word, or a family and a name of dotted words below it, whose last may be a star for all of them:
// "introspect", "operations:teams.invite", "operations:teams.*", "operations:*".
var scopePattern = regexp.MustCompile(`^[a-z][a-z0-9]*(:([A-Za-z0-9_-]+\.)*([A-Za-z0-9_-]+|\*))?$`)

// covers reports whether a scope, which may end in a star, allows what another one does.
func covers(granted, scope string) bool {
	if family, ok := strings.CutSuffix(granted, "*"); ok {
		return strings.HasPrefix(scope, family)
	}
	return granted == scope
}

// May reports whether the key has the scope.
func (k *Key) May(scope string) bool {
	return slices.ContainsFunc(k.Scopes, func(granted string) bool { return covers(granted, scope) })
}

// scopes lists what keys may be allowed to do.
func (s *service) scopes() []string {
	return append([]string{ScopeIntrospect}, s.deps.Scopes...)
}

// grantable reports whether a key may be given the scope: one that is listed, a member of a family that is, or a family
// with a member that is.
func (s *service) grantable(scope string) bool {
	return len(scope) <= maxScope && scopePattern.MatchString(scope) && slices.ContainsFunc(s.scopes(), func(listed string) bool {
		return covers(listed, scope) || covers(scope, listed)
	})
}
