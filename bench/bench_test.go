package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/satchelbase/satchel/bench/internal/device"
	"github.com/satchelbase/satchel/bench/internal/pushes"
	"github.com/satchelbase/satchel/bench/internal/report"
	"github.com/satchelbase/satchel/bench/internal/seed"
)

func TestParse(t *testing.T) {
	o, err := parse([]string{"-rows", "2,3", "-quick", "-json", "a.json"}, io.Discard)
	if err != nil || !slices.Equal(o.rows, []string{"2", "3"}) || o.json != "a.json" || o.plan.rounds != quick().rounds {
		t.Errorf("%+v, %v", o, err)
	}
	if want := []string{satchel, report.Stock, report.Limit}; !slices.Equal(o.contenders, want) {
		t.Errorf("a quick run has %v, want %v", o.contenders, want)
	}
	if o, err := parse(nil, io.Discard); err != nil || !slices.Equal(o.rows, ids()) || !slices.Equal(o.contenders, names()) {
		t.Errorf("%+v, %v", o, err)
	}
	for _, args := range [][]string{{"-rows", "2,99"}, {"-contenders", "stock,other"}, {"-fast"}} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("%v is accepted", args)
		}
	}
}

// TestTargetsNameLanes finds targets that could never be judged.
func TestTargetsNameLanes(t *testing.T) {
	lanes := append(names(), versioned, notDurable, accessLane, keyedLane, unrecorded, device.Pull, device.Fold, device.First, device.List, pushes.Node)
	for _, row := range rows() {
		for _, target := range row.targets {
			if !slices.Contains(lanes, target.Lane) || target.Against != "" && !slices.Contains(lanes, target.Against) {
				t.Errorf("row %s: no lane for %+v", row.id, target)
			}
			if target.AtLeast == 0 && target.AtMost == 0 {
				t.Errorf("row %s: no bound in %+v", row.id, target)
			}
		}
	}
}

// answering returns a lane of a contender that answers every request with one text.
func answering(t *testing.T, name, text string, op operation) *lane {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) }))
	t.Cleanup(s.Close)
	return &lane{name: name, op: op, server: &server{
		contender: &contender{name: name}, addr: s.Listener.Addr().String(), accounts: []account{{id: "a", token: "t"}},
	}}
}

func TestVerifyNoticesOtherAnswers(t *testing.T) {
	const stock = `{"items":[{"id":"1","title":"a"},{"id":"2","title":"b"}],"page":1}`
	for name, c := range map[string]struct {
		text string
		same bool
	}{
		"same":          {`{"page":1,"items":[{"title":"a","id":"1"},{"id":"2","title":"b"}]}`, true},
		"enveloped":     {`{"success":true,"data":[{"id":"1","title":"a"},{"id":"2","title":"b"}],"pagination":{}}`, true},
		"fewer records": {`{"items":[{"id":"1","title":"a"}]}`, false},
		"fewer fields":  {`{"items":[{"id":"1"},{"id":"2","title":"b"}]}`, false},
		"other value":   {`{"items":[{"id":"1","title":"a"},{"id":"2","title":"c"}]}`, false},
		"other order":   {`{"items":[{"id":"2","title":"b"},{"id":"1","title":"a"}]}`, false},
		"no list":       {`{"success":true,"data":{}}`, false},
		"no JSON":       {`<html>`, false},
	} {
		b := &bench{plan: smoke()}
		err := b.verify(t.Context(), []*lane{answering(t, satchel, c.text, listStock()), answering(t, report.Stock, stock, listStock())})
		if (err == nil) != c.same {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRequestsReadOwnNotes(t *testing.T) {
	p := plan{size: seed.Size{Users: 100, Notes: 20_000}}
	s := &server{addr: "127.0.0.1:1"}
	for i := range signedIn {
		s.accounts = append(s.accounts, account{id: seed.UserID(i), token: fmt.Sprintf("token-%d", i)})
	}
	op, different := getOne(stockNotes), map[string]bool{}
	for k := range op.variants {
		line, rest, _ := strings.Cut(string(op.request(&p, s, k)), "\r\n")
		var note int
		if _, err := fmt.Sscanf(line, "GET "+stockNotes+"/note%d HTTP/1.1", &note); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if note >= p.size.Notes || !strings.Contains(rest, fmt.Sprintf("token-%d\r\n", note%p.size.Users)) {
			t.Errorf("request %d reads note %d with a token that is not its owner's", k, note)
		}
		different[line] = true
	}
	if len(different) < op.variants*9/10 {
		t.Errorf("only %d different requests of %d", len(different), op.variants)
	}
}

func TestWaits(t *testing.T) {
	for delay, want := range map[time.Duration]bool{0: false, 2 * slowSync: true} {
		s := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(delay) }))
		l := &lane{op: create(), server: &server{contender: &contender{}, addr: s.Listener.Addr().String(), accounts: []account{{}}}}
		if got, err := l.waits(t.Context(), &plan{}); err != nil || got != want {
			t.Errorf("delay %v: %v, %v", delay, got, err)
		}
		s.Close()
	}
}
