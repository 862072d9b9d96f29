package events_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"myticket/internal/events"
	"myticket/internal/intake"
)

// discard takes everything.
type discard struct {
	took *atomic.Int64
	want int64
	all  chan struct{}
}

func (d discard) Send(_ context.Context, batch []events.Event) []error {
	if d.took.Add(int64(len(batch))) == d.want {
		close(d.all)
	}
	return make([]error, len(batch))
}

func (d discard) Close() {}

// BenchmarkSender reads what waits for one subscription, makes events of it, and notes that they were sent. Postgres works on the
// same machine. MYTICKET_BENCH_TICKETS says how many tickets there are.
func BenchmarkSender(b *testing.B) {
	tickets := 50_000
	if n, err := strconv.Atoi(os.Getenv("MYTICKET_BENCH_TICKETS")); err == nil {
		tickets = n
	}
	for _, lines := range []int{2, 40} {
		b.Run(fmt.Sprintf("lines=%d", lines), func(b *testing.B) {
			bundle := setup(b)
			require.NoError(b, bundle.store.CreateSubscription(b.Context(), tester, events.Subscription{Name: "erp", Target: "https://erp.example/"}))
			var text []string
			for i := range lines {
				text = append(text, fmt.Sprintf("Product %d,id%d,%d.50", i, i, i+1))
			}
			for stored := 0; stored < tickets; stored += 100 {
				entries := make([]*intake.Entry, 100)
				for i := range entries {
					entries[i] = entry(b, fmt.Sprintf("till-%d", i%10), body(strconv.Itoa(stored+i), text...))
				}
				_, err := bundle.store.Save(b.Context(), intake.Batch{Entries: entries})
				require.NoError(b, err)
			}
			require.NoError(b, bundle.store.PauseSubscription(b.Context(), tester, "erp"))
			for b.Loop() {
				b.StopTimer()
				_, err := bundle.pool.Exec(b.Context(), `UPDATE outbox_readers SET xid = '0', own_xid = NULL, held_until = '-infinity'`)
				require.NoError(b, err)
				require.NoError(b, bundle.store.ResumeSubscription(b.Context(), tester, "erp"))
				d := discard{took: &atomic.Int64{}, want: int64(tickets + lines), all: make(chan struct{})}
				ctx, cancel := context.WithCancel(b.Context())
				done := make(chan struct{})
				b.StartTimer()
				start := time.Now()
				go func() {
					defer close(done)
					events.NewSender(events.SenderConfig{
						Store: bundle.store,
						Open:  func(context.Context, events.Subscription) (events.Target, error) { return d, nil },
					}).Run(ctx)
				}()
				<-d.all
				b.ReportMetric(float64(tickets+lines)/time.Since(start).Seconds(), "events/s")
				cancel()
				<-done
				require.NoError(b, bundle.store.PauseSubscription(b.Context(), tester, "erp"))
			}
		})
	}
}
