package postgres_test

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/postgres"
)

// strayDay is a day without a partition.
var strayDay = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)

// addStrays fills the default partition: each a second after the one before. One in a thousand is TO_TREAT. Their ids have their
// times, as those of all tickets.
func addStrays(t *testing.T, b *testBundle, n int, from time.Time) {
	t.Helper()
	_, err := b.pool.Exec(t.Context(), `
		INSERT INTO tickets (id, received_at, source, body, status, next_attempt_at)
		SELECT (encode(substring(int8send((extract(epoch FROM at) * 1000)::bigint) FROM 3), 'hex')
		           || substr(replace(gen_random_uuid()::text, '-', ''), 13))::uuid, at, 'stray', 'stray', s,
		       CASE WHEN s = 'TO_TREAT' THEN now() - interval '1 h' END
		FROM generate_series(0, $1::int - 1) i, LATERAL (SELECT CASE WHEN i % 1000 = 7 THEN 'TO_TREAT' ELSE 'TREATED' END AS s,
		     $2::timestamptz + i * interval '1 s' AS at) x`,
		n, from)
	require.NoError(t, err)
}

func strayTables(t *testing.T, b *testBundle) int {
	t.Helper()
	return one[int](t, b, `SELECT count(*) FROM pg_class WHERE relname ~ '^tickets_strays_[0-9]+$' AND relkind = 'r'`)
}

func moveAll(t *testing.T, b *testBundle) (moved int) {
	t.Helper()
	for range 100 {
		n, more, err := b.store.MoveStrays(t.Context(), postgres.Day, 20*time.Second)
		require.NoError(t, err)
		moved += n
		if !more && strayTables(t, b) == 0 {
			return moved
		}
	}
	t.Fatal("there are still tickets that were set aside after 100 rounds")
	return 0
}

func TestEnsurePartitions_FullDefaultPartition_IsEmptiedInPiecesAndHoldsUpNoBatch(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const strays = 120_000 // of a day and a bit
	addStrays(t, b, strays, strayDay)
	repeated := one[uuid.UUID](t, b, `SELECT id FROM tickets ORDER BY received_at DESC LIMIT 1`)

	// Tickets come all the time: those of today have no partition either when it begins.
	var stopped atomic.Bool
	var live sync.WaitGroup
	var longest time.Duration
	var saved int
	var saveErr error
	live.Go(func() {
		for i := 0; !stopped.Load(); i++ {
			start := time.Now()
			if saveErr = trySave(t.Context(), b.store, entry(t, body(fmt.Sprint(i), "Café,a,2"))); saveErr != nil {
				return
			}
			longest = max(longest, time.Since(start))
			saved++
		}
	})
	made, err := b.store.EnsurePartitions(t.Context(), postgres.Day, 2, time.Now())
	require.NoError(t, err)
	assert.Len(t, made, 3, "today's partition does not wait until the default one is empty")
	assert.Equal(t, 1, strayTables(t, b))
	n, err := b.store.Strays(t.Context())
	require.NoError(t, err)
	assert.Equal(t, 100_000, n, "counted as far as that")

	// It is interrupted, and goes on where it was.
	cut, cancel := context.WithCancel(t.Context())
	var interrupted sync.WaitGroup
	interrupted.Go(func() { _, _, _ = b.store.MoveStrays(cut, postgres.Day, time.Minute) })
	require.Eventually(t, func() bool {
		return one[int](t, b, `SELECT count(*) FROM tickets WHERE source = 'stray'`) > 0
	}, 30*time.Second, 5*time.Millisecond)
	cancel()
	interrupted.Wait()
	before := one[int](t, b, `SELECT count(*) FROM tickets WHERE source = 'stray'`)
	assert.Less(t, before, strays, "the test came too late")
	// A ticket is delivered again while it is aside.
	_, err = b.pool.Exec(t.Context(), `INSERT INTO tickets (id, received_at, source, body, status)
		SELECT id, received_at, source, body, status FROM tickets_strays_1 WHERE id = $1`, repeated)
	require.NoError(t, err)
	// Meanwhile the table of tickets was changed by hand.
	exec(t, b, `ALTER TABLE tickets ADD COLUMN later text NOT NULL DEFAULT 'x'`)

	moved, more, err := b.store.MoveStrays(t.Context(), postgres.Day, 0)
	require.NoError(t, err)
	assert.Zero(t, moved, "it was given no time")
	assert.True(t, more)
	moved = moveAll(t, b)
	assert.Equal(t, strays-before, moved)
	stopped.Store(true)
	live.Wait()
	require.NoError(t, saveErr)
	assert.Positive(t, saved)
	t.Logf("%d tickets, the longest waited %s", saved, longest)
	assert.Less(t, longest, 5*time.Second, "a ticket waited for the move of others")

	assert.Equal(t, strays, one[int](t, b, `SELECT count(*) FROM tickets WHERE source = 'stray'`), "none lost, none doubled")
	assert.Equal(t, strays+saved, one[int](t, b, `SELECT count(DISTINCT id) FROM tickets`))
	assert.Equal(t, strays+saved, one[int](t, b, `SELECT count(*) FROM tickets`))
	_, err = b.store.EnsurePartitions(t.Context(), postgres.Day, 2, time.Now())
	require.NoError(t, err)
	assert.Zero(t, one[int](t, b, `SELECT count(*) FROM tickets_default`))
	assert.Equal(t, 86_400, one[int](t, b, `SELECT count(*) FROM tickets_20260301_20260302`))
	claims, err := b.store.Claim(t.Context(), 1000, time.Minute)
	require.NoError(t, err)
	assert.Len(t, claims, strays/1000, "what waits for treatment is treated once it was moved")
}

func TestEnsurePartitions_FewStraysOfManyBytes_AreMovedInPieces(t *testing.T) {
	t.Parallel()
	b := setup(t)
	exec(t, b, `ALTER TABLE tickets_default ALTER COLUMN body SET STORAGE EXTERNAL`) // not compressed
	_, err := b.pool.Exec(t.Context(), `INSERT INTO tickets (id, received_at, source, body, status)
		SELECT gen_random_uuid(), $1::timestamptz + i * interval '1 s', 's', convert_to(repeat('x', 1 << 20), 'UTF8'), 'TREATED'
		FROM generate_series(1, 40) i`, strayDay)
	require.NoError(t, err)
	_, err = b.store.EnsurePartitions(t.Context(), postgres.Day, 0, time.Now())
	require.NoError(t, err)
	assert.Equal(t, 1, strayTables(t, b), "40 MiB are too much for one transaction")
	assert.Equal(t, 40, moveAll(t, b))
	assert.Equal(t, 40, one[int](t, b, `SELECT count(*) FROM tickets_20260301_20260302`))
	assert.GreaterOrEqual(t, one[int](t, b, `SELECT count(DISTINCT xmin::text) FROM tickets_20260301_20260302`), 3,
		"in transactions of bounded size")
}

func TestEnsurePartitions_TableOfTheSameName_IsLeftAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	exec(t, b, `CREATE TABLE tickets_20260301_20260302 (LIKE tickets)`) // as after DETACH PARTITION
	exec(t, b, `CREATE TABLE tickets_strays_1 (mine text)`)
	addStrays(t, b, 3, strayDay)
	made, err := b.store.EnsurePartitions(t.Context(), postgres.Day, 0, time.Now())
	require.NoError(t, err)
	assert.Contains(t, made, "tickets_20260301_20260302_1")
	assert.Equal(t, 3, one[int](t, b, `SELECT count(*) FROM tickets_20260301_20260302_1`))

	addStrays(t, b, 6000, strayDay.AddDate(0, 0, 7))
	_, err = b.store.EnsurePartitions(t.Context(), postgres.Day, 0, time.Now())
	require.NoError(t, err)
	assert.Equal(t, 6000, one[int](t, b, `SELECT count(*) FROM tickets_strays_2`))
	moved, more, err := b.store.MoveStrays(t.Context(), postgres.Day, time.Minute)
	require.NoError(t, err)
	assert.Equal(t, 6000, moved)
	assert.False(t, more)
	assert.Equal(t, 1, one[int](t, b, `SELECT count(*) FROM pg_class WHERE relname = 'tickets_strays_1'`), "it is none of ours")
}

func TestEnsurePartitions_WhatCannotBeMoved_StopsNothingElse(t *testing.T) {
	t.Parallel()
	for name, strays := range map[string]int{"few": 10, "many": 6000} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			exec(t, b, `CREATE TYPE tickets_20260301_20260302 AS ENUM ('in the way')`) // a table would need a type of that name
			addStrays(t, b, 10, strayDay)
			addStrays(t, b, strays, strayDay.AddDate(0, 0, 1))
			made, err := b.store.EnsurePartitions(t.Context(), postgres.Day, 2, time.Now())
			assert.GreaterOrEqual(t, len(made), 3, "the partitions of the next days come first")
			if name == "few" {
				require.ErrorContains(t, err, "tickets_20260301_20260302")
			} else {
				require.NoError(t, err)
				_, _, err = b.store.MoveStrays(t.Context(), postgres.Day, time.Minute)
				require.ErrorContains(t, err, "tickets_20260301_20260302")
			}
			assert.Equal(t, strays, one[int](t, b, `SELECT count(*) FROM tickets_20260302_20260303`))

			exec(t, b, `DROP TYPE tickets_20260301_20260302`)
			_, err = b.store.EnsurePartitions(t.Context(), postgres.Day, 2, time.Now())
			require.NoError(t, err)
			moveAll(t, b)
			assert.Equal(t, strays+10, one[int](t, b, `SELECT count(*) FROM tickets`))
			assert.Equal(t, 10, one[int](t, b, `SELECT count(*) FROM tickets_20260301_20260302`))
		})
	}
}

func TestEnsurePartitions_LongReader_InsertsDoNotWaitBehindIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	addStrays(t, b, 6000, strayDay)
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = tx.Exec(t.Context(), `SELECT count(*) FROM tickets`) // a report that takes its time
	require.NoError(t, err)

	done := make(chan error, 1)
	go func() { _, err := b.store.EnsurePartitions(t.Context(), postgres.Day, 0, time.Now()); done <- err }()
	var longest time.Duration
	for ended := false; !ended; {
		start := time.Now()
		save(t, b, entry(t, body("1", "Café,a,2")))
		longest = max(longest, time.Since(start))
		select {
		case err = <-done:
			ended = true
		default:
		}
	}
	t.Logf("the longest waited %s", longest)
	require.Error(t, err, "it gives way, and tries again the next time")
	assert.Less(t, longest, 5*time.Second)
	require.NoError(t, tx.Rollback(t.Context()))
	_, err = b.store.EnsurePartitions(t.Context(), postgres.Day, 0, time.Now())
	require.NoError(t, err)
	moveAll(t, b)
	assert.Equal(t, 6000, one[int](t, b, `SELECT count(*) FROM tickets_20260301_20260302`))
}

// setAllAside sets all tickets aside, as EnsurePartitions does with a full default partition.
func setAllAside(t *testing.T, b *testBundle) {
	t.Helper()
	addStrays(t, b, 5001, strayDay)
	_, err := b.store.EnsurePartitions(t.Context(), postgres.Day, 0, time.Now())
	require.NoError(t, err)
	require.Equal(t, 1, strayTables(t, b))
	require.Zero(t, one[int](t, b, `SELECT count(*) FROM tickets`))
}

func TestSettleProducts_TicketsThatAreSetAside_CountInTheEnd(t *testing.T) {
	t.Parallel()
	b := setup(t)
	at := func(s int, body string) *intake.Entry {
		return entryAt(t, strayDay.Add(time.Duration(s)*time.Second), body)
	}
	save(t, b, at(0, body("1", "Café,a,2")))
	save(t, b, at(20, body("3", "Café,a,2"))) // finds nothing new, and so writes nothing
	save(t, b, at(10, body("2", "Café,a,3"))) // by another server that drains its spool
	setAllAside(t, b)
	settleOnce(t, b)
	moveAll(t, b)
	settle(t, b)
	assert.Equal(t, "2", one[string](t, b, `SELECT price::text FROM products WHERE product_id = 'a'`))
}

// settleOnce settles what can be settled now.
func settleOnce(t *testing.T, b *testBundle) {
	t.Helper()
	_, err := b.store.SettleProducts(t.Context(), 0, 1000)
	require.NoError(t, err)
}

func TestPruneProducts_ProductThatATicketNamesWhichIsSetAside_Stays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	save(t, b, from(t, "junk", body("1", "x,a,1")))
	save(t, b, from(t, "shop", body("2", "x,a,1")))
	rest(t, b)
	exec(t, b, `CREATE TABLE tickets_strays_1 (LIKE tickets INCLUDING ALL);
		WITH m AS (DELETE FROM tickets WHERE source = 'shop' RETURNING *) INSERT INTO tickets_strays_1 SELECT * FROM m`)
	_, err := b.store.PruneProducts(t.Context(), tester, postgres.PruneSelection{Filter: postgres.TicketFilter{Sources: []string{"junk"}}}, 1000, false)
	require.ErrorContains(t, err, "set aside")
	moveAll(t, b)
	assert.Equal(t, 2, one[int](t, b, `SELECT count(*) FROM tickets`))
	assert.Equal(t, "a", products(t, b))
}
