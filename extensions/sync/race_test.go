//go:build race

package sync_test

// raceEnabled says that the race detector slows everything down tenfold.
const raceEnabled = true
