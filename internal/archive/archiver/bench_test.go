package archiver_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"myticket/internal/archive"
	"myticket/internal/archive/archiver"
	"myticket/internal/archive/archivetest"
	"myticket/internal/archive/bucket"
	"myticket/internal/devdb/pgtest"
	"myticket/internal/postgres"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// again is a Source whose part stays as it is, so it can be written again.
type again struct{ *postgres.Store }

func (again) PartVerified(context.Context, uuid.UUID, archive.Part, archive.Manifest, []byte, int64) error {
	return nil
}

// BenchmarkArchive archives a partition of 60,000 tickets, or MYTICKET_BENCH_TICKETS, into a folder: it reads them from Postgres, writes
// and uploads the files, and reads them back. It reports the processor time of this process alone, without that of Postgres.
func BenchmarkArchive(b *testing.B) {
	n := 60_000
	if given, err := strconv.Atoi(os.Getenv("MYTICKET_BENCH_TICKETS")); err == nil {
		n = given
	}
	for _, lines := range []int{2, 12, 40} {
		b.Run(fmt.Sprintf("lines=%d", lines), func(b *testing.B) { benchmarkArchive(b, n, lines) })
	}
}

func benchmarkArchive(b *testing.B, n, lines int) {
	b.Helper()
	ctx := b.Context()
	url := pgtest.New(b)
	store, err := postgres.Open(ctx, postgres.Config{URL: url, MaxConns: 4})
	require.NoError(b, err)
	b.Cleanup(store.Close)
	fill(b, url, n, lines)

	holder := uuid.New()
	require.NoError(b, store.HoldArchive(ctx, postgres.ArchiveRun{URL: "file:///", Keep: time.Hour, Holder: holder}, true))
	old, err := store.OldPartitions(ctx, time.Date(2026, 8, 2, 0, 0, 0, 0, time.UTC))
	require.NoError(b, err)
	require.Len(b, old, 1)
	detached, err := store.DetachPartition(ctx, postgres.Person{Who: "benchmark"}, holder, old[0], postgres.DropEven{Unfinished: true})
	require.NoError(b, err)
	opened, err := bucket.Open(ctx, "file://"+b.TempDir())
	require.NoError(b, err)
	b.Cleanup(func() { _ = opened.Close() })
	files := archiver.New(archiver.Config{Bucket: opened, Source: again{store}, Holder: holder, Tmp: b.TempDir()})

	var all, reading []float64
	var size int64
	for b.Loop() {
		part, err := store.ArchivePart(ctx, detached.Part.Name)
		require.NoError(b, err)
		require.NoError(b, store.HoldArchive(ctx, postgres.ArchiveRun{URL: "file:///", Keep: time.Hour, Holder: holder}, false))
		require.NoError(b, files.Delete(ctx, part)) // otherwise its files are only checked
		before := processorTime(b)
		manifest, err := files.Write(ctx, part)
		require.NoError(b, err)
		require.EqualValues(b, n, manifest.Tickets)
		between := processorTime(b)
		require.NoError(b, store.ReadPart(ctx, part, func(*archive.Ticket) error { return nil }))
		all = append(all, float64((between-before).Nanoseconds())/float64(n))
		reading = append(reading, float64((processorTime(b)-between).Nanoseconds())/float64(n))
		size = 0
		for _, f := range manifest.Files {
			size += f.Bytes
		}
	}
	used := median(all)
	b.ReportMetric(1e9/used, "tickets/s/core")
	b.ReportMetric(used, "all-ns/ticket")
	b.ReportMetric(median(reading), "read-ns/ticket")
	b.ReportMetric(float64(size)/float64(n), "B/ticket")
	b.ReportMetric(float64(old[0].Bytes)/float64(n), "postgres-B/ticket")
	var usage unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &usage))
	b.ReportMetric(float64(usage.Maxrss)/1024, "max-MiB")
}

// fill stores the tickets of a day, as the server would.
func fill(b *testing.B, url string, n, lines int) {
	b.Helper()
	db, err := pgx.Connect(b.Context(), url)
	require.NoError(b, err)
	defer db.Close(context.WithoutCancel(b.Context()))
	_, err = db.Exec(b.Context(),
		`CREATE TABLE tickets_20260801_20260802 PARTITION OF tickets FOR VALUES FROM ('2026-08-01') TO ('2026-08-02')`)
	require.NoError(b, err)
	day := time.Date(2026, 8, 1, 0, 0, 0, 0, time.UTC)
	shop := archivetest.NewShop(lines, day, 24*time.Hour/time.Duration(n))
	i := 0
	_, err = db.CopyFrom(b.Context(), pgx.Identifier{"tickets"}, archivetest.Columns(), pgx.CopyFromFunc(func() ([]any, error) {
		if i++; i > n {
			return nil, nil
		}
		t := shop.Next()
		return archivetest.Row(&t), nil
	}))
	require.NoError(b, err)
	_, err = db.Exec(b.Context(), `VACUUM ANALYZE tickets_20260801_20260802`)
	require.NoError(b, err)
}

func median(values []float64) float64 {
	slices.Sort(values)
	return values[len(values)/2]
}

// processorTime returns what this process has used, in all its threads.
func processorTime(tb testing.TB) time.Duration {
	tb.Helper()
	var used unix.Rusage
	require.NoError(tb, unix.Getrusage(unix.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
