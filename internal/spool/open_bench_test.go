package spool_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/spool"
)

// BenchmarkOpen is a start on a spool that holds a million tickets: how long it takes until a ticket is on the disk, and how
// long until the old ones are verified and their idempotency keys are known.
func BenchmarkOpen(b *testing.B) {
	const tickets, batch = 1_000_000, 5000
	for name, withKeys := range map[string]bool{"keys": true, "no keys": false} {
		b.Run(name, func(b *testing.B) {
			dir := b.TempDir()
			s := open(b, spool.Config{Dir: dir})
			for n := range tickets / batch {
				entries := make([]*intake.Entry, batch)
				for i := range entries {
					if entries[i] = entry(b, strings.Repeat("Order: 1 ", 20)); withKeys {
						entries[i] = keyed(b, fmt.Sprint(n*batch+i), strings.Repeat("Order: 1 ", 20))
					}
				}
				require.NoError(b, tryPut(s, entries))
			}
			require.NoError(b, s.Close())
			var taking, verified time.Duration
			for b.Loop() {
				start := time.Now()
				s, err := spool.Open(spool.Config{Dir: dir, MaxTickets: 2 * tickets})
				require.NoError(b, err)
				require.GreaterOrEqual(b, s.Stats().Tickets, tickets)
				require.NoError(b, tryPut(s, []*intake.Entry{entry(b, "new")}))
				taking += time.Since(start)
				require.NoError(b, s.Verify(b.Context()))
				verified += time.Since(start)
				require.NoError(b, s.Close())
			}
			b.ReportMetric(float64(taking.Milliseconds())/float64(b.N), "ms-until-it-takes-tickets")
			b.ReportMetric(float64(verified.Milliseconds())/float64(b.N), "ms-until-verified")
		})
	}
}
