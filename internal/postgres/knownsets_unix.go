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
	return unsafe.Slice((*knownSet)(unsafe.Pointer(unsafe.SliceData(memory))), knownSets) // there are no pointers in it
}
