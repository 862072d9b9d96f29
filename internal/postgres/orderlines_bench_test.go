package postgres_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"myticket/internal/intake"
	"myticket/internal/postgres"
)

// BenchmarkOrderLines fills the lines of tickets that were stored in batches, as fast as one server can.
func BenchmarkOrderLines(b *testing.B) {
	const batches, batch = 60, 200
	for _, lines := range []int{2, 40} {
		b.Run(fmt.Sprintf("lines=%d", lines), func(b *testing.B) {
			at := setup(b)
			store, pool := at.store, at.pool
			_, err := store.EnsurePartitions(b.Context(), postgres.Day, 3, time.Now())
			if err != nil {
				b.Fatal(err)
			}
			_, err = store.EnsureOutbox(b.Context())
			if err != nil {
				b.Fatal(err)
			}
			var text []string
			for i := range lines {
				text = append(text, fmt.Sprintf("Tomates grappe bio %d g,%s%d,%d.99", 100*i, strings.Repeat("9", 6), 1000+i, i+1))
			}
			for range batches {
				var entries []*intake.Entry
				for range batch {
					entries = append(entries, entry(b, body("123456", text...)))
				}
				if err := trySave(b.Context(), store, entries...); err != nil {
					b.Fatal(err)
				}
			}
			filler := postgres.NewOrderLines(postgres.OrderLinesConfig{}, store)
			b.ReportAllocs()
			for b.Loop() {
				b.StopTimer()
				if _, err := pool.Exec(b.Context(), `TRUNCATE ticket_lines; UPDATE outbox_readers SET xid = '0'`); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				for more := true; more; {
					if more, err = filler.Round(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
			}
			var filled int
			if err := pool.QueryRow(b.Context(), `SELECT count(*) FROM ticket_lines`).Scan(&filled); err != nil {
				b.Fatal(err)
			}
			if filled != batches*batch {
				b.Fatalf("%d of %d tickets have lines", filled, batches*batch)
			}
			b.ReportMetric(float64(filled*b.N)/b.Elapsed().Seconds(), "tickets/s")
		})
	}
}
