package spool

import (
	"errors"
	"io/fs"
	"syscall"
)

// isReadOnlyDisk tells that a folder cannot be written, by whomever or by this user.
func isReadOnlyDisk(err error) bool {
	return errors.Is(err, syscall.EROFS) || errors.Is(err, fs.ErrPermission)
}

// ignoreReadOnlyDisk is for what would only tidy up.
func ignoreReadOnlyDisk(err error) error {
	if isReadOnlyDisk(err) {
		return nil
	}
	return err
}
