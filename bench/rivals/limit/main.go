// Command limit shows what HTTP and SQLite can do in Go on this machine: net/http, modernc's driver and prepared
// statements answer the same URLs with the same bytes as PocketBase, for the one schema of the benchmark. It checks who
// owns what, and has no framework, no rules and no features; no product can be this small. Statements run without the
// context of their request, because the driver starts a goroutine to watch one.
//
//	limit -http ADDRESS -db FILE
//
// With BENCH_SYNC_DELAY, a duration, it commits with synchronous=FULL on a disk that is as much slower.
package main

import (
	"database/sql"
	"flag"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/satchelbase/satchel/bench/rivals/slowsync"
)

const (
	readers    = 8
	idle       = 10 * time.Minute
	headerTime = time.Minute
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "limit:", err)
		os.Exit(1) //nolint:forbidigo // this is main
	}
}

func run() error {
	addr := flag.String("http", "127.0.0.1:8090", "address to listen on")
	path := flag.String("db", "data.db", "database that PocketBase made")
	flag.Parse()
	writer, err := open(*path, 1)
	if err != nil {
		return err
	}
	reader, err := open(*path, readers)
	if err != nil {
		return err
	}
	s, err := newServer(reader, writer)
	if err != nil {
		return err
	}
	server := http.Server{Addr: *addr, Handler: s.routes(), ReadHeaderTimeout: headerTime, IdleTimeout: idle}
	return server.ListenAndServe()
}

// open connects with PocketBase's pragmas, and with FULL when durable writes are measured.
func open(path string, connections int) (*sql.DB, error) {
	mode, delay := "NORMAL", time.Duration(0)
	if text := os.Getenv("BENCH_SYNC_DELAY"); text != "" {
		var err error
		if delay, err = time.ParseDuration(text); err != nil {
			return nil, fmt.Errorf("read BENCH_SYNC_DELAY: %w", err)
		}
		mode = "FULL"
	}
	dsn := path + "?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=journal_size_limit(200000000)&_pragma=synchronous(" + mode +
		")&_pragma=foreign_keys(ON)&_pragma=temp_store(MEMORY)&_pragma=cache_size(-32000)"
	db, err := sql.Open("sqlite", dsn)
	if delay > 0 {
		db, err = slowsync.Open(dsn, delay)
	}
	if err != nil {
		return nil, fmt.Errorf("open database: %w", err)
	}
	db.SetMaxOpenConns(connections)
	db.SetMaxIdleConns(connections)
	return db, nil
}
