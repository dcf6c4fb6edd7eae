//go:build race

package records

// raceEnabled says that the race detector slows everything down tenfold.
const raceEnabled = true
