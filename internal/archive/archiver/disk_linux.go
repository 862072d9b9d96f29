package archiver

import "golang.org/x/sys/unix"

// freeBytes returns what the file system of a folder has left for this user.
func freeBytes(dir string) (free int64, known bool) {
	var s unix.Statfs_t
	if unix.Statfs(dir, &s) != nil {
		return 0, false
	}
	return int64(s.Bavail) * s.Bsize, true
}
