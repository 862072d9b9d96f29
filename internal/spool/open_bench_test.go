package spool_test

import (
	"strings"
	"testing"

	"myticket/internal/intake"
	"myticket/internal/spool"
)

// BenchmarkOpen is how long a server waits at start for a spool that holds 100,000 tickets: every one is verified.
func BenchmarkOpen(b *testing.B) {
	const tickets, batch = 100_000, 1000
	dir := b.TempDir()
	s := open(b, spool.Config{Dir: dir})
	for range tickets / batch {
		entries := make([]*intake.Entry, batch)
		for i := range entries {
			entries[i] = entry(b, strings.Repeat("Order: 1 ", 20))
		}
		if err := tryPut(s, entries); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s := open(b, spool.Config{Dir: dir})
		if n := s.Stats().Tickets; n != tickets {
			b.Fatal(n)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
