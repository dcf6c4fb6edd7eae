// Package apikeys gives keys to other servers, such as a resource server that asks whether a token is still good. A key
// is "sk_<id>_<secret>": the id names a row, the secret has 256 bits and only its SHA-256 is stored, so that a leaked
// database opens nothing. A fast hash is enough, because a secret of that length cannot be guessed.
//
// A key may do what its scopes say and nothing else; it is never a user and never a superuser. Keys are made, listed and
// revoked on the command line, and each such act is audited. The table is read on every use: a revoked key is refused
// from the next request on.
//
// Tables: apikeys_keys. Routes and settings: none; routes that take keys call [Authenticate]. Failure modes: when the
// time of the last use cannot be written, the key works all the same and the log says so.
package apikeys

import (
	"net/http"

	"github.com/pocketbase/pocketbase/core"
	"github.com/spf13/cobra"

	"github.com/satchelbase/satchel/extensions"
	"github.com/satchelbase/satchel/extensions/audit"
)

// ScopeIntrospect allows to ask what a token is worth (RFC 7662) and to revoke it (RFC 7009).
const ScopeIntrospect = "introspect"

// scopes lists what keys may be allowed to do.
func scopes() []string { return []string{ScopeIntrospect} }

// Codes of keys that are refused. A key that is unknown, revoked or past its time is invalid, without a difference.
var (
	ErrInvalid      = &extensions.Code{Name: "apikeys.invalid", Status: http.StatusUnauthorized, Title: "The API key is not valid"}
	ErrScopeMissing = &extensions.Code{Name: "apikeys.scope_missing", Status: http.StatusForbidden, Title: "The API key lacks the scope"}
)

// New returns the extension. record writes an entry of the audit, in the transaction of tx.
func New(record func(tx core.App, e audit.Entry) error) extensions.Extension {
	return extensions.Extension{
		Name:   "apikeys",
		Codes:  []*extensions.Code{ErrInvalid, ErrScopeMissing},
		Tables: []string{table},
		Migrations: []extensions.Migration{
			{Unix: 1795310010, What: "create_keys", Up: createKeys, Down: dropKeys},
		},
		Commands: func(h *extensions.Host) []*cobra.Command { return []*cobra.Command{command(h, record)} },
	}
}
