package main

import "golang.org/x/sys/unix"

// disk is what a file system has left.
type disk struct {
	free     uint64 // bytes for this user
	inodes   uint64 // files that can still be made
	noInodes bool   // it does not count files
	volatile string // why what is on it is lost early; empty if it is not
}

// diskOf returns what the file system of a folder has left.
func diskOf(dir string) (d disk, known bool, err error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return d, false, err
	}
	d = disk{free: s.Bavail * uint64(s.Bsize), inodes: s.Ffree, noInodes: s.Files == 0}
	switch s.Type {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC:
		d.volatile = "memory: its tickets are lost with the power, and with the machine or pod"
	case unix.OVERLAYFS_SUPER_MAGIC:
		d.volatile = "the writable layer of a container: its tickets are lost with the container"
	}
	return d, true, nil
}

// openFilesLimit returns how many files and connections this process may have open.
func openFilesLimit() (limit uint64, known bool) {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) != nil {
		return 0, false
	}
	return r.Cur, true
}
