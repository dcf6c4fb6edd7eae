// Package postgres finds PostgreSQL on this machine and runs it as the user that it demands.
package postgres

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
)

// Program finds a program of PostgreSQL; Debian keeps them outside the path.
func Program(name string) (string, error) {
	places, _ := filepath.Glob("/usr/lib/postgresql/*/bin/" + name) // the pattern is well-formed
	if len(places) > 0 {
		return places[len(places)-1], nil
	}
	return exec.LookPath(name)
}

// Folder is outside the folder of the run, which only the owner of this process may enter.
func Folder() (string, error) {
	dir, err := os.MkdirTemp("", "satchel-bench-pg-")
	if err != nil {
		return "", fmt.Errorf("create folder for PostgreSQL: %w", err)
	}
	if os.Getuid() != 0 {
		return dir, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return "", fmt.Errorf("find user postgres: %w", err)
	}
	uid, errUser := strconv.Atoi(u.Uid)
	gid, errGroup := strconv.Atoi(u.Gid)
	if err := errors.Join(errUser, errGroup, os.Chown(dir, uid, gid)); err != nil {
		return "", fmt.Errorf("give folder to user postgres: %w", err)
	}
	return dir, nil
}

// Unprivileged runs a program as the user postgres when this process is root, as PostgreSQL demands. The programs that
// change the user replace themselves, so that the process id stays.
func Unprivileged(line ...string) []string {
	if os.Getuid() != 0 {
		return line
	}
	return slices.Concat([]string{"setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"}, line)
}
