//go:build race

package doors

// raceEnabled says that the race detector slows everything down tenfold.
const raceEnabled = true
