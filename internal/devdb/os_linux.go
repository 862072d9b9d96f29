package devdb

import (
	"fmt"
	"os"
	"syscall"
)

// isPostmasterOf reports whether a process is the postmaster of a data folder, which is where it works.
func isPostmasterOf(pid int, data string) bool {
	dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))

	return err == nil && dir == data
}

// memoryRoot returns /dev/shm where it has room for the tests of a whole repository; containers often give it 64 MB.
func memoryRoot() string {
	const (
		root = "/dev/shm"
		room = 4 << 30
	)
	var stat syscall.Statfs_t
	if err := syscall.Statfs(root, &stat); err != nil || stat.Bavail*uint64(stat.Bsize) < room {
		return ""
	}

	return root
}
