//go:build !linux

package main

// disk is what a file system has left.
type disk struct {
	free, inodes uint64
	noInodes     bool
	volatile     string
}

// diskOf does not know other systems than Linux.
func diskOf(string) (d disk, known bool, err error) { return d, false, nil }

// openFilesLimit does not know other systems than Linux.
func openFilesLimit() (limit uint64, known bool) { return 0, false }
