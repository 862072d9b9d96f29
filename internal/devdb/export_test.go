package devdb

// TempRoot is where tests make their folders, which is much faster in memory.
func TempRoot() string { return tempRoot(true) }
