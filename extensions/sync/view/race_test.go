//go:build race

package view

// raceEnabled says that the race detector slows everything down tenfold.
const raceEnabled = true
