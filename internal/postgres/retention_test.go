package postgres_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

func TestOldPartitions_ByTheirRanges_WhateverTheirNamesAndTheRoleSettings(t *testing.T) {
	t.Parallel()
	b := setup(t)
	exec(t, b, `CREATE TABLE "the ""first""" PARTITION OF tickets FOR VALUES FROM (MINVALUE) TO ('2026-01-01 00:00:00+00')`)
	exec(t, b, `CREATE TABLE young PARTITION OF tickets FOR VALUES FROM ('2026-11-20 00:00:00+00') TO (MAXVALUE)`)
	exec(t, b, `CREATE TABLE tickets_20200101_20200102 PARTITION OF tickets
		FOR VALUES FROM ('2026-11-10 00:00:00+00') TO ('2026-11-20 00:00:00+00')`)
	exec(t, b, `CREATE TABLE old PARTITION OF tickets FOR VALUES FROM ('2026-02-03 04:05:06+00') TO ('2026-11-10 00:00:00+00')`)
	exec(t, b, `INSERT INTO tickets (id, received_at, source, body, status) SELECT gen_random_uuid(), at::timestamptz, 's', '', status
		FROM (VALUES ('2025-01-01', 'TREATED'), ('2026-01-15', 'TREATED'), ('2026-03-01', 'TREATED'), ('2026-03-01', 'TREATED'),
			('2026-03-02', 'ERROR'), ('2026-03-03', 'TO_TREAT'), ('2026-03-03', 'DISMISSED'), ('2026-11-21', 'ERROR')) v (at, status)`)
	// With these, Postgres writes the bound as 03/02/2026 12:05:06 CST, and takes CST for the one of Chicago.
	exec(t, b, `DO $$ BEGIN
		EXECUTE format('ALTER DATABASE %I SET DateStyle = ''SQL, DMY''', current_database());
		EXECUTE format('ALTER DATABASE %I SET TimeZone = ''Asia/Shanghai''', current_database());
	END $$`)
	store := open(t, b.url)

	before := time.Date(2026, 11, 10, 0, 0, 0, 0, time.UTC)
	found, err := store.OldPartitions(t.Context(), before)
	require.NoError(t, err)
	require.Len(t, found, 2)
	first, old := found[0], found[1]
	assert.Equal(t, `the "first"`, first.Name)
	assert.Nil(t, first.From)
	assert.Equal(t, time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), first.To)
	assert.Equal(t, map[ticket.Status]int64{"TO_TREAT": 0, "TREATED": 1, "ERROR": 0, "DISMISSED": 0}, first.Tickets)
	assert.Zero(t, first.Unfinished())
	assert.Equal(t, "old", old.Name)
	assert.Equal(t, time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC), *old.From)
	assert.Equal(t, before, old.To)
	assert.Equal(t, map[ticket.Status]int64{"TO_TREAT": 1, "TREATED": 2, "ERROR": 1, "DISMISSED": 1}, old.Tickets)
	assert.Equal(t, int64(2), old.Unfinished())
	assert.Positive(t, old.Bytes)

	found, err = store.OldPartitions(t.Context(), before.Add(-time.Microsecond))
	require.NoError(t, err)
	assert.Len(t, found, 1, "all of a partition must be older")
	require.NoError(t, store.DropPartition(t.Context(), tester, postgres.OldPartition{Name: first.Name}, postgres.DropEven{}))
	require.ErrorIs(t, store.DropPartition(t.Context(), tester, postgres.OldPartition{Name: old.Name}, postgres.DropEven{}), postgres.ErrUnfinished)
	assert.Equal(t, 7, one[int](t, b, `SELECT count(*) FROM tickets`))
}

func TestDropPartition_NothingElse(t *testing.T) {
	t.Parallel()
	b := setup(t)
	exec(t, b, `CREATE TABLE elsewhere (a int)`)
	for _, name := range []string{"tickets_default", "tickets", "products", "elsewhere", "no_such", `x"; DROP TABLE products; --`, ""} {
		for _, even := range []bool{false, true} {
			require.ErrorIs(t, b.store.DropPartition(t.Context(), tester, postgres.OldPartition{Name: name}, postgres.DropEven{Unfinished: even}), postgres.ErrNoPartition, name)
		}
	}
	assert.Equal(t, []string{"tickets_default"}, partitions(t, b))
	assert.Equal(t, 1, one[int](t, b, `SELECT count(*) FROM pg_class WHERE relname = 'elsewhere'`))
}

// oldDay makes a partition of long ago with one ticket in it, and returns its name.
func oldDay(t *testing.T, b *testBundle, day int, status ticket.Status) string {
	t.Helper()
	at := time.Date(2026, 1, 1+day, 12, 0, 0, 0, time.UTC)
	made, err := b.store.EnsurePartitions(t.Context(), postgres.Day, 0, at)
	require.NoError(t, err)
	_, err = b.pool.Exec(t.Context(), `INSERT INTO tickets (id, received_at, source, body, status) VALUES ($1, $2, 's', '', $3)`,
		uuid.New(), at, status)
	require.NoError(t, err)
	return made[0]
}

func TestDropPartition_TicketThatIsBeingSentBack_IsNotLost(t *testing.T) {
	t.Parallel()
	b := setup(t)
	name := oldDay(t, b, 0, ticket.Dismissed)
	found, err := b.store.OldPartitions(t.Context(), time.Now())
	require.NoError(t, err)
	require.Zero(t, found[0].Unfinished())
	tx, err := b.pool.Begin(t.Context()) // a retry that is not committed when the drop begins
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = tx.Exec(t.Context(), `UPDATE tickets SET status = 'TO_TREAT', next_attempt_at = now()`)
	require.NoError(t, err)
	dropped := make(chan error, 1)
	go func() {
		dropped <- b.store.DropPartition(t.Context(), tester, postgres.OldPartition{Name: name}, postgres.DropEven{})
	}()
	awaitWaiting(t, b)
	require.NoError(t, tx.Commit(t.Context()))
	require.ErrorIs(t, <-dropped, postgres.ErrUnfinished)
	assert.Equal(t, 1, one[int](t, b, `SELECT count(*) FROM tickets WHERE status = 'TO_TREAT'`))
}

func TestDropPartition_BehindALongTransaction_LetsTicketsPassAndComesToItsTurn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	name := oldDay(t, b, 0, ticket.Treated)
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = tx.Exec(t.Context(), `SELECT count(*) FROM tickets`)
	require.NoError(t, err)
	dropped := make(chan error, 1)
	go func() {
		dropped <- b.store.DropPartition(t.Context(), tester, postgres.OldPartition{Name: name}, postgres.DropEven{})
	}()
	awaitWaiting(t, b)
	save(t, b, entry(t, body("1", "Café,a,2"))) // while the long transaction goes on: the drop has stepped back
	require.Empty(t, dropped)
	require.NoError(t, tx.Commit(t.Context()))
	require.NoError(t, <-dropped)
	assert.Equal(t, 1, one[int](t, b, `SELECT count(*) FROM tickets`))
}

func TestDropPartition_BesideTicketsAndNewPartitions_LosesNoTicket(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const days = 6
	var names []string
	for day := range days {
		names = append(names, oldDay(t, b, day, ticket.Treated))
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var maker, drops sync.WaitGroup
	maker.Go(func() {
		for day := 0; ctx.Err() == nil; day++ {
			_, err := b.store.EnsurePartitions(ctx, postgres.Day, 0, time.Now().AddDate(0, 0, day))
			assert.True(t, err == nil || ctx.Err() != nil, err)
		}
	})
	for range 2 { // two runs of retention at once
		drops.Go(func() {
			for _, name := range names {
				if err := b.store.DropPartition(t.Context(), tester, postgres.OldPartition{Name: name}, postgres.DropEven{}); err != nil {
					assert.ErrorIs(t, err, postgres.ErrNoPartition, "the other one was faster")
				}
			}
		})
	}
	dropped := make(chan struct{})
	go func() { drops.Wait(); close(dropped) }()
	saved := 0
	for done := false; !done; saved++ { // tickets of now; they begin in the default partition
		save(t, b, entry(t, body(fmt.Sprint(saved), "Café,a,2")))
		select {
		case <-dropped:
			done = true
		default:
		}
	}
	cancel()
	maker.Wait()
	assert.Equal(t, saved, one[int](t, b, `SELECT count(*) FROM tickets`))
	for _, name := range names {
		assert.NotContains(t, partitions(t, b), name)
	}
}

func TestDeleteExpiredKeys_AllThatExpired_AndNoneThatIsBeingTakenOver(t *testing.T) {
	t.Parallel()
	b := setup(t)
	exec(t, b, `INSERT INTO deliveries SELECT 's', i::text, '', gen_random_uuid(), now(), now() - interval '1 s'
		FROM generate_series(1, 25000) i`)
	exec(t, b, `INSERT INTO deliveries SELECT 's', 'live' || i, '', gen_random_uuid(), now(), now() + interval '1 hour'
		FROM generate_series(1, 10) i`)
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = tx.Exec(t.Context(), `UPDATE deliveries SET expires_at = now() + interval '1 hour' WHERE key = '7'`)
	require.NoError(t, err)

	n, err := b.store.ExpiredKeys(t.Context())
	require.NoError(t, err)
	assert.Equal(t, int64(25_000), n)
	n, err = b.store.DeleteExpiredKeys(t.Context(), tester)
	require.NoError(t, err)
	assert.Equal(t, int64(24_999), n)
	require.NoError(t, tx.Commit(t.Context()))
	assert.Equal(t, 11, one[int](t, b, `SELECT count(*) FROM deliveries`))
}
