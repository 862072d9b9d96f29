//go:build !unix

package postgres

// makeKnownSets returns the table of k.
func makeKnownSets(*known) []knownSet { return make([]knownSet, knownSets) }
