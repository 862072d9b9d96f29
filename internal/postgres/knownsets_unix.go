//go:build unix

package postgres

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// makeKnownSets returns the table of k, outside of the Go heap. It is given back when k is garbage.
func makeKnownSets(k *known) []knownSet {
	memory, err := unix.Mmap(-1, 0, KnownProductsBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return make([]knownSet, knownSets)
	}
	runtime.AddCleanup(k, func(memory []byte) { _ = unix.Munmap(memory) }, memory)
	first := unsafe.Pointer(unsafe.SliceData(memory))  //nolint:gosec // memory has the size of the table
	return unsafe.Slice((*knownSet)(first), knownSets) //nolint:gosec // the same; there are no pointers in it
}
