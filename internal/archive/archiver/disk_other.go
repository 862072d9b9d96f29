//go:build !linux

package archiver

// freeBytes does not know other systems than Linux.
func freeBytes(string) (free int64, known bool) { return 0, false }
