package metrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/pprof"
	"slices"
	"strconv"
	"time"

	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/api"
)

const (
	cpuProfile     = "profile"
	defaultSeconds = 30
	maxSeconds     = 300

	// sendGrace is how long a finished profile may take to arrive.
	sendGrace = 30 * time.Second
)

// snapshots are the profiles that are there at any time. Those of locks and blocking are not: recording them slows the
// program down.
func snapshots() []string { return []string{"heap", "allocs", "goroutine", "threadcreate"} }

// profile answers with a profile in the format of the pprof tool.
func profile(e *core.RequestEvent) error {
	name := e.Request.PathValue("profile")
	var out bytes.Buffer
	switch {
	case name == cpuProfile:
		seconds := defaultSeconds
		if s := e.Request.URL.Query().Get("seconds"); s != "" {
			n, err := strconv.Atoi(s)
			if err != nil || n < 1 || n > maxSeconds {
				return api.Fail(api.ErrBadRequest, "seconds must be from 1 to "+strconv.Itoa(maxSeconds))
			}
			seconds = n
		}
		if err := recordCPU(e, &out, time.Duration(seconds)*time.Second); err != nil {
			return err
		}
	case slices.Contains(snapshots(), name):
		if err := pprof.Lookup(name).WriteTo(&out, 0); err != nil {
			return fmt.Errorf("write profile %s: %w", name, err)
		}
	default:
		return api.Fail(api.ErrNotFound, "there is no profile of this name")
	}
	h := e.Response.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", `attachment; filename="`+name+`.pprof"`)
	h.Set("Content-Length", strconv.Itoa(out.Len()))
	h.Set("Cache-Control", "no-store")
	e.Response.WriteHeader(http.StatusOK)
	_, err := out.WriteTo(e.Response)
	return err
}

// recordCPU may take longer than the deadline of a request: the end of the deadline is not the end of the client.
func recordCPU(e *core.RequestEvent, out *bytes.Buffer, took time.Duration) error {
	until := time.Now().Add(took + sendGrace)
	c := http.NewResponseController(e.Response)
	if err := errors.Join(c.SetReadDeadline(until), c.SetWriteDeadline(until)); err != nil {
		return fmt.Errorf("extend deadline: %w", err)
	}
	if err := pprof.StartCPUProfile(out); err != nil { // the only reason is that one is running
		return api.Fail(ErrProfileBusy, "").Because(err)
	}
	defer pprof.StopCPUProfile()
	timer := time.NewTimer(took)
	defer timer.Stop()
	ctx := e.Request.Context()
	select {
	case <-timer.C:
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.Canceled) {
			return ctx.Err()
		}
		<-timer.C
	}
	return nil
}
