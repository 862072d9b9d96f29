package postgres_test

import (
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

func partitions(t *testing.T, b *testBundle) []string {
	t.Helper()
	rows, err := b.pool.Query(t.Context(), `SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
		WHERE i.inhparent = 'tickets'::regclass ORDER BY 1`)
	require.NoError(t, err)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return names
}

func TestEnsurePartitions_MakesThemAheadOfTime(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 12, 30, 23, 59, 59, 0, time.UTC) // a Wednesday
	for period, want := range map[postgres.Period][]string{
		postgres.Day: {
			"tickets_20261230_20261231", "tickets_20261231_20270101", "tickets_20270101_20270102", "tickets_default",
		},
		postgres.Week: {
			"tickets_20261228_20270104", "tickets_20270104_20270111", "tickets_20270111_20270118", "tickets_default",
		},
		postgres.Month: {
			"tickets_20261201_20270101", "tickets_20270101_20270201", "tickets_20270201_20270301", "tickets_default",
		},
	} {
		t.Run(string(period), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			for range 2 {
				_, err := b.store.EnsurePartitions(t.Context(), period, 2, now)
				require.NoError(t, err)
				assert.Equal(t, want, partitions(t, b))
			}
		})
	}
}

func TestEnsurePartitions_PeriodChangesInTheMiddle_FillsWhatIsLeft(t *testing.T) {
	t.Parallel()
	b := setup(t)
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	_, err := b.store.EnsurePartitions(t.Context(), postgres.Day, 1, now)
	require.NoError(t, err)
	made, err := b.store.EnsurePartitions(t.Context(), postgres.Month, 1, now)
	require.NoError(t, err)
	assert.Equal(t, []string{"tickets_20261101_20261123", "tickets_20261125_20261201", "tickets_20261201_20270101"}, made)
}

func TestEnsurePartitions_MovesWhatFellIntoTheDefaultPartition(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var entries []*intake.Entry
	for range 10 {
		entries = append(entries, entry(t, body("1", "Café,a,2")), entry(t, "no ticket"))
	}
	save(t, b, entries...)
	require.Equal(t, 20, one[int](t, b, `SELECT count(*) FROM tickets_default`))

	// Several servers at once, and one ticket after the other while they are at it.
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			_, err := b.store.EnsurePartitions(t.Context(), postgres.Day, 2, time.Now())
			assert.NoError(t, err)
		})
	}
	for range 20 {
		save(t, b, entry(t, body("2", "Café,a,2")))
	}
	group.Wait()
	_, err := b.store.EnsurePartitions(t.Context(), postgres.Day, 2, time.Now())
	require.NoError(t, err)

	assert.Zero(t, one[int](t, b, `SELECT count(*) FROM tickets_default`))
	assert.Equal(t, 40, one[int](t, b, `SELECT count(*) FROM tickets`))
	assert.Equal(t, 10, one[int](t, b, `SELECT count(*) FROM tickets WHERE status = 'ERROR'`))
	assert.True(t, one[bool](t, b, `SELECT bool_and(indisvalid) FROM pg_index WHERE indrelid::regclass::text LIKE 'tickets%'`))
}

func TestEnsurePartitions_OldStray_GetsAPartitionOfItsOwn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := entry(t, body("1", "Café,a,2"))
	ms := time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC).UnixMilli()
	for i := range 6 {
		e.Ticket.ID[i] = byte(ms >> (40 - 8*i))
	}
	e.Ticket.ReceivedAt = ticket.IDTime(e.Ticket.ID)
	save(t, b, e)
	_, err := b.store.EnsurePartitions(t.Context(), postgres.Week, 1, time.Now())
	require.NoError(t, err)
	assert.Equal(t, 1, one[int](t, b, `SELECT count(*) FROM tickets_20260202_20260209`))
}

func TestEnsurePartitions_PartitionMadeByHandWithoutALowerBound_IsLeftAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	exec(t, b, `CREATE TABLE tickets_before PARTITION OF tickets FOR VALUES FROM (MINVALUE) TO ('2026-11-20 00:00:00+00')`)
	exec(t, b, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET DateStyle = ''German, DMY''', current_database()); END $$`)
	b.store = open(t, b.url)
	made, err := b.store.EnsurePartitions(t.Context(), postgres.Month, 0, time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC))
	require.NoError(t, err)
	assert.Equal(t, []string{"tickets_20261120_20261201"}, made)
}
