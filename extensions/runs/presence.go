package runs

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// presence tells which processes of this machine work on the data folder. Each holds a lock on a file named by its epoch;
// the system drops the lock when the process ends, and a process number that is used again cannot deceive anybody.
type presence struct {
	mu     sync.Mutex
	folder string
	file   *os.File
}

// enter makes this process known. It does nothing if it is known already.
func (p *presence) enter(dataDir, epoch string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file != nil {
		return nil
	}
	folder := filepath.Join(dataDir, "runs")
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return fmt.Errorf("make folder of processes: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(folder, epoch), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("make file of this process: %w", err)
	}
	if taken, err := lock(file); err != nil || !taken {
		_ = file.Close()
		return fmt.Errorf("lock file of this process: %w", err)
	}
	p.folder, p.file = folder, file
	return nil
}

func (p *presence) leave() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file == nil {
		return
	}
	name := p.file.Name()
	_ = p.file.Close()
	_ = os.Remove(name) // one that stays is one of a process that is gone
	p.file = nil
}

// gone reports whether a process has ended. It is not known of a process on another machine, which has no file here.
func (p *presence) gone(epoch string) (gone, known bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	file, err := os.OpenFile(filepath.Join(p.folder, filepath.Base(epoch)), os.O_RDWR, 0)
	if err != nil {
		return false, false
	}
	taken, err := lock(file)
	_ = file.Close() // and with it the lock
	return taken && err == nil, err == nil
}

// tidy removes the files of processes that have ended without leaving anything to do. They are old, so that none is taken
// that was made a moment ago and is not locked yet.
func (p *presence) tidy(before time.Time) {
	entries, err := os.ReadDir(p.folder)
	if err != nil {
		return // the next time
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || !info.ModTime().Before(before) {
			continue
		}
		if gone, _ := p.gone(entry.Name()); gone {
			p.bury(entry.Name())
		}
	}
}

// bury removes the file of a process that has ended and has left nothing.
func (p *presence) bury(epoch string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_ = os.Remove(filepath.Join(p.folder, filepath.Base(epoch)))
}
