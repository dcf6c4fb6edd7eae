package hooks

import "github.com/satchelbase/satchel/extensions/account"

// Accounts says which records belong to a user, where the schema does not: they are exported and deleted with the account.
// `satchel account map` shows what comes of it. What a person has said in public, for example, stays without the name:
//
//	account.Map{"posts": {Owner: "author", Delete: account.Blank}}
func Accounts() account.Map { return account.Map{} }
