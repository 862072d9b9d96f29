package jetstream_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"myticket/internal/events"
	"myticket/internal/events/eventstest"
)

// BenchmarkSend sends chunks of 1,000 events of 700 bytes to a server in a process of its own, whose stream is in files.
func BenchmarkSend(b *testing.B) {
	s := startServer(b, "")
	s.stream("tickets")
	for _, c := range []struct {
		name    string
		keys    []string
		options []string
	}{
		{name: "one source", keys: []string{"shop-1"}},
		{name: "100 sources", keys: hundred()},
		{name: "one source, strict", keys: []string{"shop-1"}, options: []string{"order", "strict"}},
		{name: "100 sources, strict", keys: hundred(), options: []string{"order", "strict"}},
	} {
		b.Run(c.name, func(b *testing.B) {
			target := open(b, eventstest.Address(b, "nats://"+s.addr+"/tickets"), c.options...)
			eventstest.RequireAll(b, target.Send(b.Context(), eventstest.Batch(1, 700, c.keys...))) // it connects
			batch := eventstest.Batch(b.N, 700, c.keys...)
			b.SetBytes(int64(len(batch[0].JSON)))
			b.ReportAllocs()
			b.ResetTimer()
			for chunk := range chunks(batch) {
				eventstest.RequireAll(b, target.Send(b.Context(), chunk))
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
			b.StopTimer()
			stream, err := s.jetStream().Stream(b.Context(), "TICKETS")
			require.NoError(b, err)
			require.EqualValues(b, b.N+1, stream.CachedInfo().State.Msgs)
			require.NoError(b, stream.Purge(b.Context()))
		})
	}
}

func hundred() []string {
	keys := make([]string, 100)
	for i := range keys {
		keys[i] = "shop-" + string(rune('a'+i/10)) + string(rune('a'+i%10))
	}
	return keys
}

func chunks(batch []events.Event) func(yield func([]events.Event) bool) {
	return func(yield func([]events.Event) bool) {
		for len(batch) > 0 {
			n := min(1000, len(batch))
			if !yield(batch[:n]) {
				return
			}
			batch = batch[n:]
		}
	}
}
