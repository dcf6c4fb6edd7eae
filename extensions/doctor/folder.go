package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/satchelbase/satchel/extensions"
)

// clockTolerance forgives file systems whose times are coarse or come from another machine.
const clockTolerance = 2 * time.Minute

// folderLines look at the data folder without writing to it.
func folderLines(dir string) []Line {
	const name = "data folder"
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []Line{missingFolderLine(dir)}
	case err != nil:
		return []Line{line(name, extensions.Fail, err.Error(), "give this user access, or choose another folder with --dir")}
	case !info.IsDir():
		return []Line{line(name, extensions.Fail, dir+" is not a folder", "choose another folder with --dir")}
	}
	lines := []Line{line(name, extensions.OK, dir+", writable", "")}
	if err := writable(dir); err != nil {
		lines[0] = line(name, extensions.Fail, fmt.Sprintf("%s cannot be written: %v", dir, err), "give this user write access, or choose another folder with --dir")
	}
	for _, file := range dataFiles(dir) {
		if err := writable(file); err != nil {
			lines = append(lines, line(name, extensions.Fail, fmt.Sprintf("%s cannot be written: %v", file, err), "give this user write access to the files"))
		}
	}
	// Windows has no such bits: access is in lists that inherit from the user's folder.
	if runtime.GOOS != "windows" && info.Mode().Perm()&0o007 != 0 {
		lines = append(lines, line("permissions", extensions.Warn,
			fmt.Sprintf("every user of this machine can look into %s (%s)", dir, info.Mode().Perm()), "chmod 700 "+dir))
	}
	return lines
}

// missingFolderLine is good news on a new machine, if the folder can be made.
func missingFolderLine(dir string) Line {
	parent := filepath.Dir(dir)
	for parent != filepath.Dir(parent) {
		if _, err := os.Stat(parent); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		parent = filepath.Dir(parent)
	}
	if err := writable(parent); err != nil {
		return line("data folder", extensions.Fail, fmt.Sprintf("%s does not exist and cannot be created: %v", dir, err),
			"give this user write access to "+parent+", or choose another folder with --dir")
	}
	return line("data folder", extensions.Info, dir+" does not exist yet; the first start creates it", "satchel serve")
}

// dataFiles are the databases with their logs, as far as they exist.
func dataFiles(dir string) []string {
	var out []string
	for _, name := range []string{dataFile, auxiliaryFile} {
		for _, suffix := range []string{"", "-wal", "-shm"} {
			path := filepath.Join(dir, name+suffix)
			if _, err := os.Stat(path); err == nil {
				out = append(out, path)
			}
		}
	}
	return out
}

// clockLines compare the files with the clock: a file from the future means that the clock was set back, or is wrong,
// and then tokens live too long or not at all.
func clockLines(dir string, now time.Time) []Line {
	var ahead []string
	for _, path := range dataFiles(dir) {
		if info, err := os.Stat(path); err == nil && info.ModTime().After(now.Add(clockTolerance)) {
			ahead = append(ahead, fmt.Sprintf("%s by %s", filepath.Base(path), info.ModTime().Sub(now).Round(time.Second)))
		}
	}
	if len(ahead) > 0 {
		return []Line{line("clock", extensions.Warn, "files are newer than the clock: "+strings.Join(ahead, ", "),
			"set the clock and keep it right with NTP")}
	}
	return []Line{line("clock", extensions.OK, now.UTC().Format(time.RFC3339)+", no file is newer", "")}
}
