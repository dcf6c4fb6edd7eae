// Package device measures Satchel's offline sync as a phone meets it: a first sync, pulls of what has changed out of a
// large table, and, for comparison, what an app does without sync, which fetches its list again.
package device

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	_ "modernc.org/sqlite" // the driver that fill opens the database with

	"github.com/satchelbase/satchel/bench/internal/load"
	"github.com/satchelbase/satchel/bench/internal/report"
	"github.com/satchelbase/satchel/bench/internal/seed"
)

// The lanes, all of one server.
const (
	Pull  = "satchel, pull of 100 changes"
	Fold  = "satchel, a pull that folds 100 changes for all"
	First = "satchel, first sync, a row"
	List  = "satchel, the whole list again"
)

const (
	// changed is how many rows a pull brings; one batch writes them.
	changed = 100

	page = 1000 // the most that sync gives at once
)

// Server is what is measured.
type Server struct {
	Addr  string
	Few   string // access token of user 0, who has a thousandth of the rows, at least changed ones
	Many  string // and of user 1, who has a twentieth
	CPU   func() time.Duration
	Total int // rows in the table, as Prepare made them
}

// few is how many rows user 0 has of so many.
func few(total int) int { return max(total/1000, changed) }

// Prepare makes a folder for a server below in, whose data are a copy of seeded with another number of notes.
func Prepare(ctx context.Context, seeded, in string, total int) (dir string, err error) {
	if dir, err = os.MkdirTemp(in, "device-"); err != nil {
		return "", fmt.Errorf("create folder: %w", err)
	}
	data := filepath.Join(dir, "pb_data")
	if err := os.CopyFS(data, os.DirFS(seeded)); err != nil {
		return "", fmt.Errorf("copy database: %w", err)
	}
	return dir, fill(ctx, data, total)
}

// fill replaces the notes in a data folder, which no server uses.
func fill(ctx context.Context, dataDir string, total int) (err error) {
	db, err := sql.Open("sqlite", filepath.Join(dataDir, "data.db"))
	if err != nil {
		return fmt.Errorf("open database: %w", err)
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	for _, text := range []string{
		"DELETE FROM " + seed.Notes,
		fmt.Sprintf(`WITH RECURSIVE n (i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < %d)
			INSERT INTO %s (id, owner, title, body, meta, status, attachment, created, updated)
			SELECT printf('note%%011d', i), CASE WHEN i %% %d = 0 THEN '%s' WHEN i %% 20 = 1 THEN '%s' ELSE printf('none%%011d', i %% 1000) END,
				'note ' || i, '%s', '%s', 'open', '', '2026-01-01 00:00:00.000Z', '2026-01-01 00:00:00.000Z' FROM n`,
			total-1, seed.Notes, total/few(total), seed.UserID(0), seed.UserID(1), seed.Body(), seed.Meta),
		"ANALYZE",
	} {
		if _, err := db.ExecContext(ctx, text); err != nil {
			return fmt.Errorf("fill table: %w", err)
		}
	}
	return nil
}

// Measure returns a result for each lane. After each writing user 1's device pulls first: nothing of it concerns it, and it
// pays for folding the log, as the first pull after any writing does.
func Measure(ctx context.Context, s Server, rounds int) ([]report.Result, error) {
	first, other, err := s.first(ctx)
	if err != nil {
		return nil, fmt.Errorf("first sync: %w", err)
	}
	pull, fold, list := &samples{}, &samples{}, &samples{}
	cursor := ""
	for round := range rounds + 1 {
		if round > 0 {
			if err := s.write(ctx, round); err != nil {
				return nil, fmt.Errorf("change rows: %w", err)
			}
		}
		begin := s.begin()
		got, err := s.sync(ctx, s.Many, other)
		if err != nil {
			return nil, fmt.Errorf("pull: %w", err)
		}
		other = got.cursor
		if round > 0 {
			fold.add(s, begin, got.bytes)
		}
		begin = s.begin()
		if got, err = s.sync(ctx, s.Few, cursor); err != nil {
			return nil, fmt.Errorf("pull: %w", err)
		}
		if cursor = got.cursor; round == 0 {
			continue
		}
		if got.rows != changed || got.more {
			return nil, fmt.Errorf("a pull brought %d rows, more: %v", got.rows, got.more)
		}
		pull.add(s, begin, got.bytes)
		begin = s.begin()
		bytes, err := s.list(ctx)
		if err != nil {
			return nil, fmt.Errorf("list: %w", err)
		}
		list.add(s, begin, bytes)
	}
	return []report.Result{pull.result(Pull), fold.result(Fold), first, list.result(List)}, nil
}

// moment is when something began.
type moment struct {
	at  time.Time
	cpu time.Duration
}

func (s Server) begin() moment { return moment{time.Now(), s.CPU()} }

// samples of one lane.
type samples struct {
	load.Tally
	cpu, busy time.Duration
}

func (l *samples) add(s Server, m moment, bytes int) {
	took := time.Since(m.at)
	l.Ops, l.Bytes, l.cpu, l.busy = l.Ops+1, l.Bytes+int64(bytes), l.cpu+s.CPU()-m.cpu, l.busy+took
	l.Latency.Record(took)
}

func (l *samples) result(lane string) report.Result {
	return report.Measured(lane, "satchel", 1, 1, l.Tally, l.cpu, l.busy)
}

// first is user 1's first sync, after one that makes the server complete what it knows of the table.
func (s Server) first(ctx context.Context) (r report.Result, cursor string, err error) {
	if _, err := s.sync(ctx, s.Many, ""); err != nil {
		return r, "", err
	}
	begin := s.begin()
	got := answer{more: true}
	rows, bytes := 0, 0
	for got.more {
		if got, err = s.sync(ctx, s.Many, got.cursor); err != nil {
			return r, "", err
		}
		rows, bytes = rows+got.rows, bytes+got.bytes
	}
	if want := s.Total / 20; rows < want-few(s.Total) || rows > want {
		return r, "", fmt.Errorf("%d rows, want about %d", rows, want)
	}
	n, took := float64(rows), time.Since(begin.at)
	return report.Result{Lane: First, Contender: "satchel", Connections: 1, Operations: rows, Values: map[report.Metric]float64{
		report.CPU: float64((s.CPU() - begin.cpu).Microseconds()) / n, report.Rate: n / took.Seconds(), report.Bytes: float64(bytes) / n,
	}}, got.cursor, nil
}

// answer is what came of one sync request.
type answer struct {
	rows, bytes int
	cursor      string
	more        bool
}

func (s Server) sync(ctx context.Context, token string, cursor string) (answer, error) {
	body := map[string]any{"collections": []string{seed.Notes}, "limit": page}
	if cursor != "" {
		body["cursor"] = cursor
	}
	raw, err := s.send(ctx, http.MethodPost, "/api/v1/sync", token, body)
	if err != nil {
		return answer{}, err
	}
	var got struct {
		Data struct {
			Collections map[string]struct{ Upserts []json.RawMessage }
			Cursor      string
			More        bool
		}
	}
	if err := json.Unmarshal(raw, &got); err != nil {
		return answer{}, fmt.Errorf("read answer: %w", err)
	}
	return answer{len(got.Data.Collections[seed.Notes].Upserts), len(raw), got.Data.Cursor, got.Data.More}, nil
}

// write changes rows of user 0 that lie far apart.
func (s Server) write(ctx context.Context, round int) error {
	var items []any
	for i := range changed {
		id := seed.NoteID(i * (few(s.Total) / changed) * (s.Total / few(s.Total)))
		items = append(items, map[string]any{
			"method": http.MethodPatch, "url": "/api/collections/" + seed.Notes + "/records/" + id, "body": map[string]any{"title": fmt.Sprintf("round %d", round)},
		})
	}
	_, err := s.send(ctx, http.MethodPost, "/api/batch", s.Few, map[string]any{"requests": items})
	return err
}

// list fetches all that user 0 sees and returns its size.
func (s Server) list(ctx context.Context) (bytes int, err error) {
	for at, rows := 1, 0; rows < few(s.Total); at++ {
		raw, err := s.send(ctx, http.MethodGet, fmt.Sprintf("/api/collections/%s/records?perPage=%d&skipTotal=1&sort=id&page=%d", seed.Notes, page, at), s.Few, nil)
		if err != nil {
			return 0, err
		}
		var got struct{ Items []json.RawMessage }
		if err := json.Unmarshal(raw, &got); err != nil || len(got.Items) == 0 {
			return 0, fmt.Errorf("page %d has %d rows: %w", at, len(got.Items), err)
		}
		bytes, rows = bytes+len(raw), rows+len(got.Items)
	}
	return bytes, nil
}

func (s Server) send(ctx context.Context, method, path string, token string, body any) ([]byte, error) {
	var raw []byte
	if body != nil {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			return nil, fmt.Errorf("build request: %w", err)
		}
	}
	got, err := load.Fetch(ctx, s.Addr, load.NewRequest(method, s.Addr, path, raw, load.Header{Name: "Authorization", Value: token}))
	if err != nil {
		return nil, err
	}
	if got.Status != http.StatusOK {
		return nil, fmt.Errorf("%s %s: status %d: %s", method, path, got.Status, got.Body)
	}
	return got.Body, nil
}
