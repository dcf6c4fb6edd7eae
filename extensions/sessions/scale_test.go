package sessions_test

import (
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/pocketbase/dbx"

	"github.com/satchelbase/satchel/extensions/internal/apptest"
)

// many is how many sessions the server has in [BenchmarkManySessions].
const many = 100_000

// BenchmarkManySessions is the work beside sign-ins on a server with 100,000 sessions, 20 of each of 5,000 users, as
// somebody waits for it:
//
//   - own: a user's list of his 20 sessions, over HTTP with a connection for each request; page: an admin's first page of
//     25 sessions of everybody; deep: the page in the middle; user: an admin's page about one user. ns/op is one answer.
//   - sweep: 100,000 sessions have ended or expired long ago and are removed, beside the 100,000. ns/op is the whole
//     sweep. Meanwhile one writer commits single rows, one after another: writer-p50-ms and writer-max-ms are the time
//     that its writes take, waiting included; alone-p50-ms and alone-max-ms are as many writes before the sweep.
//
// The data is on the disk of the temporary folder, durable as by default.
//
//	go test -run '^$' -bench ManySessions -benchtime 20x ./extensions/sessions
func BenchmarkManySessions(b *testing.B) {
	f := start(b)
	f.User(b, email)
	g := f.signIn(b, nil)
	_, admin := f.superuser(b)
	now := time.Now().UnixMilli()
	f.exec(b, copies(`'s' || i, collection, CASE WHEN i < 20 THEN record ELSE 'user' || (i / 20) END, {:now} - i, idle_until, expires_at`),
		dbx.Params{"n": many - 1, "id": g.SessionID, "now": now})
	f.exec(b, "PRAGMA optimize", nil)
	for _, get := range []struct {
		name, path, token string
		rows              int
	}{
		{"own", "", g.AccessToken, 20},
		{"page", "?limit=25", admin, 25},
		{"deep", fmt.Sprintf("?limit=25&cursor=%d.s", now-many/2), admin, 25},
		{"user", "?limit=25&user=user100", admin, 20},
	} {
		b.Run(get.name, func(b *testing.B) {
			for b.Loop() {
				r := f.Do(b, apptest.Request{Path: "/api/v1/auth/sessions" + get.path, Token: get.token})
				if rows, _ := r.JSON(b)["data"].([]any); r.Status != http.StatusOK || len(rows) != get.rows {
					b.Fatalf("%d, %d sessions: %.200s", r.Status, len(rows), r.Body)
				}
			}
		})
	}
	b.Run("sweep", f.benchmarkSweep)
}

// copies inserts n sessions made of the one with the id: own values for id, owner, use and ends, the rest as it is.
func copies(values string) string {
	return `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {:n})
		INSERT INTO sessions_logins (id, collection, record, used_at, idle_until, expires_at, salt, generation, confirmed, rotated_at, created_at,
			auth_at, methods, device_id, device_name, platform, app_version, user_agent, address, actor, actor_collection, reason, read_only)
		SELECT ` + values + `, salt, generation, confirmed, rotated_at, created_at,
			auth_at, methods, device_id, device_name, platform, app_version, user_agent, address, actor, actor_collection, reason, read_only
		FROM sessions_logins, n WHERE id = {:id}`
}

func (f *fixture) benchmarkSweep(b *testing.B) {
	f.exec(b, "CREATE TABLE IF NOT EXISTS beside (n INTEGER)", nil)
	one := func() time.Duration {
		begin := time.Now()
		f.exec(b, "INSERT INTO beside VALUES (1)", nil)
		return time.Since(begin)
	}
	var id string
	if err := f.ConcurrentDB().NewQuery("SELECT id FROM sessions_logins LIMIT 1").Row(&id); err != nil {
		b.Fatal(err)
	}
	var alone, beside []time.Duration
	for b.Loop() {
		b.StopTimer()
		f.exec(b, copies(`'old' || i, collection, 'old' || (i / 20), 1, CASE WHEN i % 2 THEN 1 ELSE idle_until END, expires_at`),
			dbx.Params{"n": many, "id": id})
		f.exec(b, "INSERT INTO sessions_ended SELECT id, 1, 'revoked' FROM sessions_logins WHERE id LIKE 'old%' AND idle_until > 1", nil)
		b.StartTimer()
		swept := make(chan error, 1)
		go func() { swept <- f.sessions.Sweep(b.Context()) }()
		var err error
		for running := true; running; {
			beside = append(beside, one())
			select {
			case err = <-swept:
				running = false
			default:
			}
		}
		b.StopTimer()
		if err != nil {
			b.Fatal(err)
		}
		if left := f.count(b, "SELECT count(*) FROM sessions_logins WHERE id LIKE 'old%'") + f.count(b, "SELECT count(*) FROM sessions_ended"); left != 0 {
			b.Fatalf("%d rows are left", left)
		}
		for len(alone) < len(beside) {
			alone = append(alone, one())
		}
		b.StartTimer()
	}
	for name, times := range map[string][]time.Duration{"alone": alone, "writer": beside} {
		slices.Sort(times)
		b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, name+"-p50-ms")
		b.ReportMetric(float64(times[len(times)-1].Microseconds())/1000, name+"-max-ms")
	}
}
