//go:build !race

package doors

const raceEnabled = false
