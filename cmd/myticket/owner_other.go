//go:build !unix

package main

import "io/fs"

// ownedByUser reports whether a file belongs to the user. This system does not say, so it returns true.
func ownedByUser(fs.FileInfo) bool { return true }
