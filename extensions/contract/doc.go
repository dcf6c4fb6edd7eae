// Package contract tests what the whole tree has promised: who may import whom, how long files, packages and functions
// get, that every package and exported name is documented, that nothing registers itself, which modules each extension
// pulls in, and that no tracked file names a machine.
//
// It has tests only. Each rule is a function from a tree to its findings; a test applies it to this module, and another
// to a planted tree that breaks the rule, so that a rule which has gone blind is noticed.
package contract
