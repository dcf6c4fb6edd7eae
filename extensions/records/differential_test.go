package records

import (
	"bytes"
	"encoding/json"
	"encoding/json/jsontext"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"github.com/satchelbase/satchel/extensions/rows"
)

var seedFlag = flag.Uint64("seed", 1, "seed of the differential test")

// Least numbers of cases, and of each class in them.
const (
	leastCases      = 10_000
	leastClass      = 100
	leastDiffering  = 0.30 // share of cases that are not empty and whose answer differs between two viewers
	greatestRefused = 0.10 // share of cases that are lists which both sides refuse
)

// questionsPerRound are asked, each by two viewers, before the rules change.
const questionsPerRound = 250

// classes are what the cases must cover.
func classes() []string {
	list := []string{"back-relation", "multi-relation", "hidden field", "expand 1", "expand 2", "expand 3", "view collection", "auth collection", "list", "view", "fields", "total", "superuser", "user", "guest"}
	for _, t := range fieldTypes() {
		list = append(list, "field "+t)
	}
	for _, op := range operators() {
		list = append(list, "operator "+op)
	}
	for _, m := range []string{"isset", "changed", "length", "each", "lower"} {
		list = append(list, "modifier "+m)
	}
	return list
}

// tally counts cases.
type tally struct {
	cases, differing, refused int
	class                     map[string]int
}

func (n *tally) add(q question) {
	n.cases++
	for name := range q.classes {
		n.class[name]++
	}
}

// question is one case but for the viewer.
type question struct {
	collection string
	id         string // of the record; empty for a list
	query      []string
	classes    map[string]bool
}

// reply is an answer, reduced to what both interfaces have.
type reply struct {
	status int
	items  []json.RawMessage
	total  int
}

// exact reports that the bytes must be equal and not only what they mean: PocketBase writes chosen fields in any order.
func (q question) exact() bool { return !strings.Contains(strings.Join(q.query, " "), "fields") }

// TestDifferential compares the reads of this package with PocketBase's own over random collections, rules, viewers and
// parameters, and PocketBase's own as they were with as they are written now.
func TestDifferential(t *testing.T) {
	share := 1
	if testing.Short() || raceEnabled { // make test also runs it whole, without the detector
		share = 30
	}
	w := newWorld(t, *seedFlag)
	n := &tally{class: map[string]int{}}
	for round := 0; n.cases < leastCases/share; round++ {
		w.newRules()
		questions := make([]question, questionsPerRound)
		for i := range questions {
			questions[i] = w.question()
		}
		w.compare(t, n, questions)
		if t.Failed() && round > 2 {
			t.Fatalf("seed %d: more than enough", *seedFlag)
		}
	}
	for _, name := range classes() {
		t.Logf("%6d %s", n.class[name], name)
		if n.class[name] < leastClass/share {
			t.Errorf("only %d cases with %s", n.class[name], name)
		}
	}
	differing, refused := float64(n.differing)/float64(n.cases), float64(n.refused)/float64(n.cases)
	t.Logf("seed %d: %d cases, %.0f %% differ between viewers, %.0f %% refused", *seedFlag, n.cases, 100*differing, 100*refused)
	if differing < leastDiffering || refused > greatestRefused {
		t.Error("the cases tell too little")
	}
}

// FuzzDifferential asks the questions that grow out of a number.
func FuzzDifferential(f *testing.F) {
	if raceEnabled {
		f.Skip("make test runs it without the detector, which the same code meets in TestDifferential")
	}
	for seed := range uint64(2) {
		f.Add(seed)
	}
	w := newWorld(f, 1)
	f.Fuzz(func(t *testing.T, seed uint64) {
		w.random = rand.New(rand.NewPCG(seed, 1))
		w.t = t
		w.newRules()
		questions := make([]question, 20)
		for i := range questions {
			questions[i] = w.question()
		}
		w.compare(t, &tally{class: map[string]int{}}, questions)
	})
}

// compare asks every question twice, as two viewers. The true stock answers are got first, without the handlers that
// write the stock answers now.
func (w *world) compare(t testing.TB, n *tally, questions []question) {
	t.Helper()
	pairs := make([][2]viewer, len(questions))
	want := make([][2]reply, len(questions))
	raw := make([][2][]byte, len(questions))
	w.app.OnRecordsListRequest().Unbind("satchelRows")
	w.app.OnRecordViewRequest().Unbind("satchelRows")
	for i, q := range questions {
		pairs[i] = w.twoViewers()
		for j, v := range pairs[i] {
			want[i][j], raw[i][j] = w.askStock(t, q, v)
		}
	}
	rows.BindStock(w.app)
	for i, q := range questions {
		for j, v := range pairs[i] {
			n.add(q)
			n.class[v.kind]++
			got := w.askOwn(t, q, v)
			if problem := differ(q, got, want[i][j]); problem != "" {
				t.Errorf("seed %d: %s as %s: %s\nrule %s", *seedFlag, q.path("/api/v1/records/"), v.name, problem, w.rule(q.collection))
			}
			if q.id == "" && want[i][j].status != http.StatusOK {
				n.refused++
			}
			if i%4 == 0 && want[i][j].status == http.StatusOK {
				if _, now := w.askStock(t, q, v); !same(q, now, raw[i][j]) {
					t.Errorf("seed %d: %s as %s: the stock answer changed%s", *seedFlag, q.path("/api/collections/"), v.name, apart(now, raw[i][j]))
				}
			}
		}
		if a, b := want[i][0], want[i][1]; len(a.items)+len(b.items) > 0 && !bytes.Equal(raw[i][0], raw[i][1]) {
			n.differing += 2
		}
	}
}

func same(q question, a, b []byte) bool {
	if q.exact() {
		return bytes.Equal(a, b)
	}
	return meaning(a) == meaning(b)
}

// unescaped undoes the escapes that the envelope of /api/v1 adds.
func unescaped(raw []byte) []byte {
	out, err := jsontext.AppendFormat(nil, raw, jsontext.AllowDuplicateNames(true))
	if err != nil {
		return raw
	}
	return out
}

// apart shows two texts from a little before where they part.
func apart(got, want []byte) string {
	i := 0
	for i < min(len(got), len(want)) && got[i] == want[i] {
		i++
	}
	from := max(0, i-60)
	return fmt.Sprintf("\n got …%s\nwant …%s", got[from:min(len(got), i+100)], want[from:min(len(want), i+100)])
}

func differ(q question, got, want reply) string {
	if (got.status == http.StatusOK) != (want.status == http.StatusOK) {
		return fmt.Sprintf("status %d, stock %d: %s", got.status, want.status, got.items)
	}
	if got.status != http.StatusOK {
		return ""
	}
	if len(got.items) != len(want.items) || got.total != want.total {
		return fmt.Sprintf("%d records of %d, stock %d of %d", len(got.items), got.total, len(want.items), want.total)
	}
	for i := range want.items {
		if own := unescaped(got.items[i]); !same(q, own, want.items[i]) {
			return fmt.Sprintf("record %d", i) + apart(own, want.items[i])
		}
	}
	return ""
}

func (q question) path(prefix string) string {
	path := prefix + q.collection
	if strings.HasSuffix(prefix, "collections/") {
		path += "/records"
	}
	if q.id != "" {
		path += "/" + q.id
	}
	return path + "?" + queryOf(q.query...)
}

func (w *world) askStock(t testing.TB, q question, v viewer) (reply, []byte) {
	path := q.path("/api/collections/")
	if q.id != "" {
		status, body := w.get(t, path, v)
		return reply{status: status, items: []json.RawMessage{body}}, body
	}
	path += "&perPage=100"
	if !q.classes["total"] {
		path += "&skipTotal=1"
	}
	status, body := w.get(t, path, v)
	var out struct {
		Items      []json.RawMessage
		TotalItems int
	}
	if status == http.StatusOK {
		if err := json.Unmarshal(body, &out); err != nil {
			t.Fatalf("%s: %v: %s", path, err, body)
		}
	}
	return reply{status, out.Items, out.TotalItems}, body
}

func (w *world) askOwn(t testing.TB, q question, v viewer) reply {
	path := q.path("/api/v1/records/")
	if q.id == "" {
		path += "&limit=100"
	}
	if q.classes["total"] {
		path += "&total=true"
	}
	status, body := w.get(t, path, v)
	if status != http.StatusOK {
		return reply{status: status, items: []json.RawMessage{body}}
	}
	if q.id != "" {
		var out struct{ Data json.RawMessage }
		if err := json.Unmarshal(body, &out); err != nil {
			t.Fatalf("%s: %v: %s", path, err, body)
		}
		return reply{status: status, items: []json.RawMessage{out.Data}}
	}
	var a answer
	if err := json.Unmarshal(body, &a); err != nil {
		t.Fatalf("%s: %v: %s", path, err, body)
	}
	r := reply{status: status, items: a.Data, total: -1}
	if a.Pagination.Total != nil {
		r.total = *a.Pagination.Total
	}
	return r
}

// get sends a request of its own address, so that nobody's empty lists are slowed down.
func (w *world) get(t testing.TB, path string, v viewer) (int, []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.app.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.requests++
	req.Header.Set(addressHeader, fmt.Sprintf("10.%d.%d.%d", w.requests>>16&255, w.requests>>8&255, w.requests&255))
	req.Header.Set("X-Color", v.color)
	if v.token != "" {
		req.Header.Set("Authorization", v.token)
	}
	resp, err := w.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, body
}

// meaning is the text of what JSON means, for comparison.
func meaning(raw []byte) string {
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return string(raw)
	}
	out, err := json.Marshal(v)
	if err != nil {
		return string(raw)
	}
	return string(out)
}
