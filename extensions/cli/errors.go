// Package cli holds the manners of the command line: exit codes, the form of errors, machine-readable output, and which
// commands must not touch the database.
//
// Exit codes are part of the contract: 0 done, 1 it failed, 2 the command line or the settings are wrong, 3 a check
// found problems. An error is three lines on standard error: what failed, why, and what to do next; with --json it is
// one JSON object. Commands marked with [NoDatabase] neither open nor create the data folder.
package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Exit codes.
const (
	ExitOK     = 0
	ExitError  = 1
	ExitUsage  = 2
	ExitChecks = 3
)

// Failure is an error for a person at a terminal.
type Failure struct {
	Exit int    `json:"exit"`
	What string `json:"what"`
	Why  string `json:"why,omitempty"`
	Next string `json:"next,omitempty"`
}

// Error joins the three lines for logs.
func (f *Failure) Error() string {
	var parts []string
	for _, s := range []string{f.What, f.Why, f.Next} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, ": ")
}

// Fail returns an error that ends the program with an exit code and three lines: what failed, why, what to do next.
// An empty line is left out.
func Fail(exit int, what, why, next string) error {
	return &Failure{Exit: exit, What: what, Why: why, Next: next}
}

// Report writes err to w and returns the exit code of the program; nil writes nothing.
func Report(w io.Writer, err error, asJSON bool) int {
	if err == nil {
		return ExitOK
	}
	var f *Failure
	if !errors.As(err, &f) {
		f = &Failure{Exit: ExitError, What: "the command failed", Why: err.Error(), Next: "see --help, or run: satchel doctor"}
	}
	if asJSON {
		body, jsonErr := json.Marshal(map[string]*Failure{"error": f})
		if jsonErr == nil {
			_, _ = fmt.Fprintf(w, "%s\n", body)
			return f.Exit
		}
	}
	_, _ = fmt.Fprintf(w, "error: %s\n", f.What)
	if f.Why != "" {
		_, _ = fmt.Fprintf(w, "why:   %s\n", strings.ReplaceAll(f.Why, "\n", "\n       "))
	}
	if f.Next != "" {
		_, _ = fmt.Fprintf(w, "next:  %s\n", f.Next)
	}
	return f.Exit
}
