// Package migrations holds the collections of this app, one file for each step, in PocketBase's form: a file registers
// its step when the program starts, and the database remembers the step by the file's name. The server applies missing
// steps before it listens; `satchel migrate up` and `satchel migrate down` do it by hand.
//
// Every step names itself "<unix time>_app_<what>.go" and keeps that name for ever after a release. A step must have a
// way back. Nothing but this package may have init functions.
//
// Collections: notes (a user's private notes; the model to copy).
package migrations
