package memory

import (
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// unlimited is where numbers stop meaning anything: version 1 of control groups writes the largest multiple of a page.
const unlimited = 1 << 60

// available is the memory that the process can have, in bytes, and what says so: the tightest of the limits of its
// control group, the groups above it, and the machine. It reads /proc and /sys below root; 0 means that they do not tell.
func available(root fs.FS) (bytes uint64, source string) {
	if total := machine(root); total > 0 {
		bytes, source = total, "machine"
	}
	for _, file := range limitFiles(root) {
		if n, ok := number(root, file); ok && (bytes == 0 || n < bytes) {
			bytes, source = n, "control group"
		}
	}
	return bytes, source
}

// machine is the line MemTotal of /proc/meminfo, which counts in kB of 1024 bytes.
func machine(root fs.FS) uint64 {
	data, err := fs.ReadFile(root, "proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) == 3 && fields[0] == "MemTotal:" && fields[2] == "kB" {
			n, err := strconv.ParseUint(fields[1], 10, 50)
			if err != nil {
				return 0
			}
			return n * 1024
		}
	}
	return 0
}

// limitFiles lists the files that may limit this process. A line of /proc/self/cgroup is "id:controllers:path"; version
// 2 has the one line "0::path". In a container the path may be that of the host, which is not mounted: then the files at
// the mount itself count, so every group from the path up to the mount is looked at.
func limitFiles(root fs.FS) []string {
	data, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return nil
	}
	var files []string
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		var mount string
		var names []string
		switch {
		case parts[0] == "0" && parts[1] == "":
			mount, names = "sys/fs/cgroup", []string{"memory.max", "memory.high"}
		case hasController(parts[1], "memory"):
			mount, names = "sys/fs/cgroup/memory", []string{"memory.limit_in_bytes"}
		default:
			continue
		}
		for group := path.Clean("/" + parts[2]); ; group = path.Dir(group) {
			for _, name := range names {
				files = append(files, path.Join(mount, group, name))
			}
			if group == "/" {
				break
			}
		}
	}
	return files
}

func hasController(list, name string) bool {
	for c := range strings.SplitSeq(list, ",") {
		if c == name {
			return true
		}
	}
	return false
}

// number reads a limit. "max" and absurd values are none.
func number(root fs.FS, file string) (uint64, bool) {
	data, err := fs.ReadFile(root, file)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(data)), 10, 64)
	return n, err == nil && n > 0 && n < unlimited
}
