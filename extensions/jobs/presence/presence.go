// Package presence tells which processes of this machine work on a folder, and lets one of them call the others.
package presence

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// bell is the file whose time of change is the call. It is no name of a process.
const bell = "wake"

// Folder is where each process holds a lock on a file named by its epoch; the system drops the lock when the process
// ends, and a process number that is used again cannot deceive anybody. It is safe for concurrent use.
type Folder struct {
	mu    sync.Mutex
	path  string
	file  *os.File
	heard time.Time
}

// Enter makes this process known. It does nothing if it is known already.
func (f *Folder) Enter(path, epoch string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file != nil {
		return nil
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("make folder of processes: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(path, epoch), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("make file of this process: %w", err)
	}
	if taken, err := lock(file); err != nil || !taken {
		_ = file.Close()
		return fmt.Errorf("lock file of this process: %w", err)
	}
	f.path, f.file = path, file
	return nil
}

// Leave makes this process unknown.
func (f *Folder) Leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file == nil {
		return
	}
	name := f.file.Name()
	_ = f.file.Close()
	_ = os.Remove(name) // one that stays is one of a process that is gone
	f.file = nil
}

// Gone reports whether a process has ended. It is not known of a process on another machine, which has no file here.
func (f *Folder) Gone(epoch string) (gone, known bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	file, err := os.OpenFile(filepath.Join(f.path, filepath.Base(epoch)), os.O_RDWR, 0)
	if err != nil {
		return false, false
	}
	taken, err := lock(file)
	_ = file.Close() // and with it the lock
	return taken && err == nil, err == nil
}

// Tidy removes the files of processes that have ended without leaving anything to do. They are old, so that none is taken
// that was made a moment ago and is not locked yet.
func (f *Folder) Tidy(before time.Time) {
	entries, err := os.ReadDir(f.path)
	if err != nil {
		return // the next time
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || entry.Name() == bell || !info.ModTime().Before(before) {
			continue
		}
		if gone, _ := f.Gone(entry.Name()); gone {
			f.Bury(entry.Name())
		}
	}
}

// Bury removes the file of a process that has ended and has left nothing.
func (f *Folder) Bury(epoch string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	_ = os.Remove(filepath.Join(f.path, filepath.Base(epoch)))
}

// Ring calls the processes that have entered the folder, which need not exist.
func Ring(path string) error {
	err := os.WriteFile(filepath.Join(path, bell), []byte(time.Now().UTC().Format(time.RFC3339Nano)), 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // nobody listens
	}
	if err != nil {
		return fmt.Errorf("call other processes: %w", err)
	}
	return nil
}

// Rung reports whether somebody has called since the last time. It asks the file system, never the database.
func (f *Folder) Rung() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	info, err := os.Stat(filepath.Join(f.path, bell))
	if err != nil || info.ModTime().Equal(f.heard) {
		return false
	}
	f.heard = info.ModTime()
	return true
}
