package ledger

import (
	"bytes"
	"crypto/hmac"
	"database/sql"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/pocketbase/dbx"
	"github.com/pocketbase/pocketbase/core"

	"github.com/satchelbase/satchel/extensions/cli"
	"github.com/satchelbase/satchel/extensions/internal/secret"
)

const (
	// headDelay is how long after a commit the file is written; all commits of that time share one write.
	headDelay = 100 * time.Millisecond

	// maxHeadFile bounds what is read of the file, in bytes; a line has about 250.
	maxHeadFile = 16 << 10

	// maxMarks bounds the lines. A line more than one is there for each time that the database fell behind its file.
	maxMarks = 16
)

// Mark is a signed line of the file: what the chain held once, and must hold for ever. With Restore, a backup was about
// to replace the database, which may fall behind therefore.
type Mark struct {
	Entry   int64     `json:"entry"`
	MAC     string    `json:"mac"`
	At      time.Time `json:"at"`
	Restore *Restore  `json:"restore,omitempty"`
	Seal    string    `json:"seal"`
}

// Restore is the backup of a restore, and who wanted it: the entry that says so is replaced with all others.
type Restore struct {
	Name string `json:"name"`
	By   Party  `json:"by"`
}

func (m Mark) sum(key []byte) string {
	b := binary.BigEndian.AppendUint64([]byte{encodingVersion}, uint64(m.Entry))
	b = binary.BigEndian.AppendUint64(b, uint64(m.At.UnixMilli()))
	b = appendText(b, m.MAC)
	if r := m.Restore; r != nil {
		for _, s := range []string{r.Name, r.By.Kind, r.By.Collection, r.By.ID} {
			b = appendText(b, s)
		}
	}
	return hex.EncodeToString(mac(key, b))
}

func (m Mark) authentic(key []byte) bool { return hmac.Equal([]byte(m.Seal), []byte(m.sum(key))) }

// head writes the file, at most once in [headDelay], in the background.
type head struct {
	app    core.App
	path   func() string
	warn   func(error)
	mu     sync.Mutex
	timer  *time.Timer
	closed bool
	err    error      // of the last attempt
	writes sync.Mutex // one at a time
}

// Connect says of which application's database the newest entry is written to the file that path names; empty is none.
// warn is told what goes wrong in the background.
func (l *Ledger) Connect(app core.App, path func() string, warn func(error)) {
	l.head.app, l.head.path, l.head.warn = app, path, warn
}

// File is where the newest entry is written, empty if nowhere.
func (l *Ledger) File() string {
	if l.head.path == nil {
		return ""
	}
	return l.head.path()
}

// FileError is what was wrong when the file was last written.
func (l *Ledger) FileError() error {
	l.head.mu.Lock()
	defer l.head.mu.Unlock()
	return l.head.err
}

// committed makes the file be written soon after a transaction with entries.
func (l *Ledger) committed(txErr error) error {
	if txErr != nil || l.File() == "" {
		return nil
	}
	h := &l.head
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.timer == nil && !h.closed {
		h.timer = time.AfterFunc(headDelay, l.writeSoon)
	}
	return nil
}

// writeSoon writes unless the database may be closed already.
func (l *Ledger) writeSoon() {
	h := &l.head
	h.writes.Lock()
	defer h.writes.Unlock()
	h.mu.Lock()
	h.timer = nil
	closed := h.closed
	h.mu.Unlock()
	if closed {
		return
	}
	if err := l.write(func(Mark) bool { return false }, nil); err != nil {
		h.warn(err)
	}
}

// Reopen undoes Close, for an application that is opened again.
func (l *Ledger) Reopen() {
	l.head.mu.Lock()
	defer l.head.mu.Unlock()
	l.head.closed = false
}

// Close ends the writing in the background and writes what is still to be written.
func (l *Ledger) Close() error {
	l.head.mu.Lock()
	l.head.closed = true
	if l.head.timer != nil {
		l.head.timer.Stop()
		l.head.timer = nil
	}
	l.head.mu.Unlock()
	return l.Flush()
}

// Outside refuses a file in the data folder: whoever replaces the database would replace it, and backups would hold it.
func (l *Ledger) Outside() error {
	path := l.File()
	if path == "" {
		return nil
	}
	inside, err := secret.Inside(path, l.head.app.DataDir())
	if err != nil {
		return cli.Fail(cli.ExitChecks, "the checkpoint file of the audit cannot be used", err.Error(), "set SATCHEL_AUDIT_CHECKPOINT_FILE")
	}
	if inside {
		return cli.Fail(cli.ExitChecks, "the checkpoint file of the audit must not lie in the data folder",
			path+" would be replaced together with the database", "name another place in SATCHEL_AUDIT_CHECKPOINT_FILE")
	}
	return nil
}

// Marks reads the lines of the file that are signed; none if it does not exist.
func (l *Ledger) Marks() ([]Mark, error) {
	if err := l.Unlock(); err != nil {
		return nil, err
	}
	good, _, err := ReadMarks(l.File(), l.keys().head)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return good, err
}

// ReadMarks reads the lines of the file; none if it does not exist. bad are the lines that cannot be read or are not
// signed with the key; with a nil key, signatures are not looked at.
func ReadMarks(path string, key []byte) (good []Mark, bad []string, err error) {
	if path == "" {
		return nil, nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	text, err := io.ReadAll(io.LimitReader(f, maxHeadFile))
	if err != nil {
		return nil, nil, fmt.Errorf("read checkpoint file: %w", err)
	}
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 {
			continue
		}
		var m Mark
		if json.Unmarshal(line, &m) != nil || key != nil && !m.authentic(key) {
			bad = append(bad, string(line))
			continue
		}
		good = append(good, m)
	}
	return good, bad, nil
}

// Kept reports whether the chain in the database still holds what the mark says, as far as it can be told: what lies
// below the floor cannot.
func (m Mark) Kept(db dbx.Builder) (bool, error) {
	from, _, err := start(db)
	if err != nil {
		return false, err
	}
	if m.Entry < from.Floor {
		return true, nil
	}
	have := from.MAC
	if m.Entry > from.Floor {
		err = db.NewQuery("SELECT mac FROM audit_chain WHERE id = {:id}").Bind(dbx.Params{"id": m.Entry}).Row(&have)
	}
	if errors.Is(err, sql.ErrNoRows) {
		return false, nil
	}
	return hex.EncodeToString(have) == m.MAC, err
}

// Flush writes the newest entry into the file. Lines that the database does not bear out stay: they are the evidence that
// it was cut off or replaced.
func (l *Ledger) Flush() error { return l.WriteMarks(func(Mark) bool { return false }, nil) }

// WriteMarks writes the newest entry, and before it the lines that the database contradicts unless drop says otherwise.
// With restore, the new line says that the backup comes.
func (l *Ledger) WriteMarks(drop func(Mark) bool, restore *Restore) error {
	l.head.writes.Lock()
	defer l.head.writes.Unlock()
	return l.write(drop, restore)
}

// write is WriteMarks for those who hold the lock.
func (l *Ledger) write(drop func(Mark) bool, restore *Restore) error {
	path := l.File()
	if path == "" {
		return nil
	}
	err := l.replaceMarks(path, drop, restore)
	l.head.mu.Lock()
	l.head.err = err
	l.head.mu.Unlock()
	return err
}

func (l *Ledger) replaceMarks(path string, drop func(Mark) bool, restore *Restore) error {
	if err := l.Outside(); err != nil {
		return err
	}
	if err := l.Unlock(); err != nil {
		return err
	}
	key := l.keys().head
	good, bad, err := ReadMarks(path, key)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read checkpoint file: %w", err)
	}
	db := l.head.app.ConcurrentDB()
	last, err := Newest(db)
	if err != nil {
		return err
	}
	if last.ID == 0 && len(good)+len(bad) == 0 {
		return nil
	}
	next := Mark{Entry: last.ID, MAC: hex.EncodeToString(last.MAC), At: time.Now().UTC().Truncate(time.Millisecond), Restore: restore}
	next.Seal = next.sum(key)
	var out bytes.Buffer
	n := 0
	for _, line := range bad {
		if n++; n < maxMarks && !drop(Mark{}) {
			out.WriteString(line + "\n")
		}
	}
	for _, m := range append(good, next) {
		if m.Seal != next.Seal {
			ok, err := m.Kept(db)
			if err != nil {
				return err
			}
			if n++; ok && m.Restore == nil || drop(m) || n >= maxMarks {
				continue
			}
		} else if last.ID == 0 {
			continue
		}
		line, err := json.Marshal(m)
		if err != nil {
			return err
		}
		out.Write(append(line, '\n'))
	}
	return replaceFile(path, out.Bytes())
}

// replaceFile makes the file hold the text, whole or not at all.
func replaceFile(path string, text []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".audit.*") // 0600
	if err != nil {
		return fmt.Errorf("create checkpoint file: %w", err)
	}
	defer func() { _ = os.Remove(f.Name()) }() // what a failure leaves
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write checkpoint file: %w", err)
	}
	if runtime.GOOS == "windows" { // it cannot sync a folder, and need not
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync folder of the checkpoint file: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}
