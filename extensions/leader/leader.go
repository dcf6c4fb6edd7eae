// Package leader says whether this process may do what only one process of the installation may do: run schedules, send
// what must be sent once. It has no settings, tables or routes.
//
// Features take a [Leader] as an argument and ask it each time, right before the deed: leadership can be lost while a
// feature works. Being the leader is not a lock. What must not happen twice is claimed in the database, in the same
// transaction as its effect; leadership only keeps the others from trying. A write by a process that has lost it fails
// like any other write that the database cannot take.
package leader

// Leader answers the question. Implementations are safe for concurrent use and answer at once.
type Leader interface {
	Is() bool
}

// Alone is the leader of an installation that consists of one process.
func Alone() Leader { return alone{} }

type alone struct{}

// Is implements [Leader].
func (alone) Is() bool { return true }
