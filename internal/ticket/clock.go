//go:build !chaosclock

package ticket

import "time"

// Now is the clock of ids, and so of partitions. The build tag chaosclock replaces it.
func Now() time.Time { return time.Now() }
