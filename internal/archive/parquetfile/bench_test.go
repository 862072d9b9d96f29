package parquetfile

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/compress"
	"golang.org/x/sys/unix"

	"myticket/internal/archive"
	"myticket/internal/archive/archivetest"
)

// BenchmarkTickets writes a file of tickets, and reads back what its check reads. It reports processor time for each ticket.
func BenchmarkTickets(b *testing.B) {
	codecs := []struct {
		name  string
		codec compress.Codec
	}{{"zstd", codec}, {"snappy", &parquet.Snappy}}
	for _, lines := range []int{2, 12, 40} {
		shop := archivetest.NewShop(lines, time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC), time.Millisecond)
		tickets := make([]archive.Ticket, 40_000)
		for i := range tickets {
			tickets[i] = shop.Next()
		}
		for _, c := range codecs {
			b.Run(fmt.Sprintf("lines=%d/%s", lines, c.name), func(b *testing.B) {
				var file bytes.Buffer
				var write, read []float64
				b.ReportAllocs()
				for b.Loop() {
					file.Reset()
					before := processorTime(b)
					w := newTicketWriter(&file, 0, c.codec)
					for i := range tickets {
						if err := w.Add(&tickets[i]); err != nil {
							b.Fatal(err)
						}
					}
					written, err := w.Close()
					if err != nil {
						b.Fatal(err)
					}
					between := processorTime(b)
					back, err := Summarize(bytes.NewReader(file.Bytes()), int64(file.Len()))
					if err != nil || back != written {
						b.Fatal(err, "it is not what was written")
					}
					write = append(write, float64((between-before).Nanoseconds())/float64(len(tickets)))
					read = append(read, float64((processorTime(b)-between).Nanoseconds())/float64(len(tickets)))
				}
				b.ReportMetric(median(write), "write-ns/ticket")
				b.ReportMetric(median(read), "check-ns/ticket")
				b.ReportMetric(float64(file.Len())/float64(len(tickets)), "B/ticket")
			})
		}
	}
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// processorTime returns what this process has used, in all its threads.
func processorTime(tb testing.TB) time.Duration {
	tb.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
