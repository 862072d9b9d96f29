package devdb

// IsAlive lets the external tests tell a zombie from a process that runs.
func IsAlive(pid int) bool { return isAlive(pid) }

// ChildrenOf lets the external tests see the server's processes.
func ChildrenOf(pid int) ([]int, error) { return childrenOf(pid) }

// TempRoot is where tests make their folders, which is much faster in memory.
func TempRoot() string { return tempRoot(true) }
