package store

import (
	"context"
	"database/sql"
	"math/rand/v2"
	"testing"
	"time"
)

// A transaction whose context ends while it begins must not stay open: the next write on the shared connection would be
// part of it and get lost, and the next reads of a reader's connection would see the past for ever.
func TestGivingUpWhileBeginning(t *testing.T) {
	p := openPair(t, Config{Durability: Normal}, Options{})
	p.read.SetMaxOpenConns(1)
	p.exec(t, "INSERT INTO notes VALUES (1, '0')")
	stop := time.Now().Add(2 * time.Second)
	for n := 1; time.Now().Before(stop); n++ {
		for _, db := range []*sql.DB{p.write, p.read} {
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(rand.IntN(60))*time.Microsecond)
			if tx, err := db.BeginTx(ctx, nil); err == nil {
				_ = tx.Rollback()
			}
			cancel()
		}
		p.exec(t, "UPDATE notes SET title = ? WHERE id = 1", n)
		var got int
		if err := p.read.QueryRow("SELECT CAST(title AS INT) FROM notes WHERE id = 1").Scan(&got); err != nil || got != n {
			t.Fatalf("after %d writes the reader sees %d (%v)", n, got, err)
		}
	}
}
