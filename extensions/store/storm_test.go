package store

import (
	"bufio"
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/satchelbase/satchel/extensions/settings"
)

// stormEnv makes the test binary write to the database in the named folder instead of testing, until it has done its
// number of transactions or is killed: "<folder> <mode> <number>". Every answered transaction is one line of output.
const stormEnv = "STORE_TEST_STORM"

func TestMain(m *testing.M) {
	if storm := os.Getenv(stormEnv); storm != "" {
		if err := runStorm(storm); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// runStorm writes pairs of rows with eight writers on both kinds of path, while the log is cut all the time.
func runStorm(storm string) error {
	var dir, mode string
	var first, number int64
	if _, err := fmt.Sscan(storm, &dir, &mode, &first, &number); err != nil {
		return err
	}
	cfg := settings.Defaults[Config]()
	if mode != Full {
		cfg.Durability = Normal
	}
	s, err := Open(cfg, Options{})
	if err != nil {
		return err
	}
	path := filepath.Join(dir, dataFile)
	reading, err := s.Connect(path)
	if err != nil {
		return err
	}
	defer reading.Close()
	writing, err := s.Connect(path)
	if err != nil {
		return err
	}
	defer writing.Close()
	db := writing.DB()
	db.SetMaxOpenConns(writers)
	if _, err := db.Exec("PRAGMA wal_autocheckpoint = 30"); err != nil {
		return err
	}
	if mode == "off" {
		if _, err := db.Exec("PRAGMA synchronous = OFF"); err != nil {
			return err
		}
	}
	var (
		next atomic.Int64
		all  sync.WaitGroup
		fail = make(chan error, 8)
	)
	next.Store(first - 1)
	for range cap(fail) {
		all.Go(func() {
			for n := next.Add(1); n < first+number; n = next.Add(1) {
				if err := writePair(db, n); err != nil {
					fail <- err
					return
				}
				os.Stdout.WriteString(strconv.FormatInt(n, 10) + "\n")
			}
		})
	}
	all.Wait()
	close(fail)
	return <-fail
}

func writePair(db *sql.DB, n int64) error {
	text := strings.Repeat(strconv.FormatInt(n, 10)+" ", 40)
	if n%3 == 0 {
		_, err := db.Exec("INSERT INTO pairs VALUES (?, ?), (?, ?)", 2*n, text, 2*n+1, text)
		return err
	}
	return inTx(context.Background(), db, func(tx *sql.Tx) error {
		for _, id := range []int64{2 * n, 2*n + 1} {
			if _, err := tx.Exec("INSERT INTO pairs VALUES (?, ?)", id, text); err != nil {
				return err
			}
		}
		return nil
	})
}

func prepareStorm(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	p := openAt(t, filepath.Join(dir, dataFile), full(), Options{})
	p.exec(t, "CREATE TABLE pairs (id INTEGER PRIMARY KEY, text TEXT)")
	p.read.Close()
	p.write.Close()
	return dir
}

func stormCommand(ctx context.Context, dir, mode string, first, number int64) *exec.Cmd {
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s %d %d", stormEnv, dir, mode, first, number))
	cmd.Stderr = os.Stderr
	return cmd
}

// damage opens the database in dir as a restarted server would and says what is wrong with it.
func damage(dir string, acknowledged []int64) (string, error) {
	s, err := Open(full(), Options{})
	if err != nil {
		return "", err
	}
	db, err := s.Connect(filepath.Join(dir, dataFile))
	if err != nil {
		return "", err
	}
	defer db.Close()
	var check string
	if err := db.NewQuery("PRAGMA integrity_check").Row(&check); err != nil {
		return "", fmt.Errorf("check: %w", err)
	}
	if check != "ok" {
		return check, nil
	}
	var ids []int64
	if err := db.NewQuery("SELECT id FROM pairs").Column(&ids); err != nil {
		return "", fmt.Errorf("read pairs: %w", err)
	}
	have := map[int64]int{}
	for _, id := range ids {
		have[id/2]++
	}
	for n, rows := range have {
		if rows != 2 {
			return fmt.Sprintf("transaction %d is half there", n), nil
		}
	}
	lost := 0
	for _, n := range acknowledged {
		if have[n] == 0 {
			lost++
		}
	}
	if lost > 0 {
		return fmt.Sprintf("%d of %d acknowledged transactions are lost", lost, len(acknowledged)), nil
	}
	return "", nil
}

func TestKilledInAWriteStorm(t *testing.T) {
	dir := prepareStorm(t)
	var acknowledged []int64
	for round := range int64(8) {
		first := round * 1_000_000
		cmd := stormCommand(t.Context(), dir, Full, first, 1_000_000)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		var kill sync.Once
		got := 0
		for lines.Scan() {
			n, err := strconv.ParseInt(lines.Text(), 10, 64)
			if err != nil {
				continue // cut in the middle by the kill
			}
			acknowledged = append(acknowledged, n)
			got++
			kill.Do(func() { // not before the first answer, then at any moment
				time.AfterFunc(time.Duration(round*17)*time.Millisecond, func() { _ = cmd.Process.Kill() })
			})
		}
		if err := cmd.Wait(); err == nil || got == 0 {
			t.Fatalf("the storm ended by itself after %d transactions: %v", got, err)
		}
		if found, err := damage(dir, acknowledged); err != nil || found != "" {
			t.Fatalf("round %d, %d acknowledged: %s %v", round, len(acknowledged), found, err)
		}
	}
	t.Logf("%d acknowledged transactions survived 8 kills", len(acknowledged))
}
