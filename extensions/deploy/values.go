package deploy

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/satchelbase/satchel/extensions/cli"
)

const (
	defaultUser = "satchel"
	defaultDir  = "/var/lib/satchel"

	// stateRoot is where systemd creates the folders named by StateDirectory.
	stateRoot = "/var/lib/"

	// maxDomain is the longest name that DNS can hold, in bytes (RFC 1035, section 3.1).
	maxDomain = 253
)

var (
	// userPattern is what useradd of Debian accepts.
	userPattern = regexp.MustCompile(`^[a-z_][a-z0-9_-]{0,30}$`)

	// dirPattern leaves out what a unit gives a meaning: blanks, quotes, %, $, \ and line breaks.
	dirPattern = regexp.MustCompile(`^(/[A-Za-z0-9_.-]+)+$`)

	// domainPattern is two or more labels of letters, digits and inner hyphens.
	domainPattern = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$`)
)

// unit is what the systemd template needs.
type unit struct {
	User string
	Dir  string // absolute; data are in pb_data inside it
}

func (u unit) check() error {
	const next = "see: satchel deploy systemd --help"
	if !userPattern.MatchString(u.User) {
		return cli.Fail(cli.ExitUsage, "the value of --user is not acceptable", "a user name starts with a-z or _, then a-z, 0-9, _ or -, 31 characters at most", next)
	}
	if u.User == "root" {
		return cli.Fail(cli.ExitUsage, "the service must not run as root", "it needs no right that root has", "leave --user away, or name an ordinary user")
	}
	if !dirPattern.MatchString(u.Dir) || path.Clean(u.Dir) != u.Dir {
		return cli.Fail(cli.ExitUsage, "the value of --dir is not acceptable", "an absolute path of letters, digits, dots, _ and - is needed, without . or .. parts or a slash at the end", next)
	}
	if top, closed := u.closed(); closed {
		return cli.Fail(cli.ExitUsage, "the service cannot keep data in "+u.Dir, "the unit closes "+top+" to it, or it belongs to the system", "choose a folder of its own below /var/lib or /srv")
	}
	return nil
}

// closed reports whether the folder is one that the unit hides (ProtectHome, PrivateTmp, PrivateDevices), that does not
// outlive a restart, or that holds the system's own files.
func (u unit) closed() (top string, yes bool) {
	whole := []string{"/srv", "/var", "/var/lib", "/opt", "/mnt", "/media"}
	if slices.Contains(whole, u.Dir) {
		return u.Dir, true
	}
	for _, top := range []string{
		"/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/tmp", "/usr", "/var/tmp", "/var/run",
	} {
		if u.Dir == top || strings.HasPrefix(u.Dir, top+"/") {
			return top, true
		}
	}
	return "", false
}

// StateDirectory is the folder's name below /var/lib, which systemd creates; empty for a folder elsewhere.
func (u unit) StateDirectory() string {
	name, ok := strings.CutPrefix(u.Dir, stateRoot)
	if !ok {
		return ""
	}
	return name
}

// Flags repeats what differs from the defaults, so that the unit says how it was made.
func (u unit) Flags() string {
	var flags string
	if u.User != defaultUser {
		flags += " --user " + u.User
	}
	if u.Dir != defaultDir {
		flags += " --dir " + u.Dir
	}
	return flags
}

// site is what the Compose template needs.
type site struct {
	Domain string
}

func (s *site) check() error {
	if s.Domain == "" {
		return cli.Fail(cli.ExitUsage, "the server's name is missing", "Caddy gets the TLS certificate for it", "add --domain api.example.com")
	}
	s.Domain = strings.ToLower(s.Domain)
	if len(s.Domain) > maxDomain || !domainPattern.MatchString(s.Domain) {
		return cli.Fail(cli.ExitUsage, "the value of --domain is not acceptable", "a full host name such as api.example.com is needed, without https:// and without a port; write other scripts as xn-- names", "see: satchel deploy compose --help")
	}
	return nil
}
