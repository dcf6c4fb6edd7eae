//go:build race

package ledger_test

// raceEnabled says that the race detector slows everything down tenfold.
const raceEnabled = true
