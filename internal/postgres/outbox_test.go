package postgres_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/postgres"
)

// partitionsOf returns the names of a table's partitions.
func partitionsOf(t *testing.T, b *testBundle, table string) []string {
	t.Helper()
	rows, err := b.pool.Query(t.Context(), `SELECT c.relname::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
		WHERE i.inhparent = $1::text::regclass ORDER BY 1`, table)
	require.NoError(t, err)
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return names
}

// outboxDay makes a partition of the outbox for a day some days ago, with rows of earlier transactions.
func outboxDay(t *testing.T, b *testBundle, daysAgo, rows int) (name string) {
	t.Helper()
	day := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -daysAgo)
	name = "outbox_" + day.Format("20060102")
	exec(t, b, fmt.Sprintf(`CREATE TABLE %s PARTITION OF outbox FOR VALUES FROM ('%s') TO ('%s')`,
		name, day.Format(time.RFC3339), day.AddDate(0, 0, 1).Format(time.RFC3339)))
	for range rows {
		exec(t, b, fmt.Sprintf(`INSERT INTO outbox (at, kind, tickets) VALUES ('%s', 'stored', uuid_send(gen_random_uuid()))`,
			day.Add(time.Hour).Format(time.RFC3339)))
	}
	return name
}

func outboxName(days int) string {
	day := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, days)
	return fmt.Sprintf("outbox_%s_%s", day.Format("20060102"), day.AddDate(0, 0, 1).Format("20060102"))
}

func TestEnsureOutbox_MakesItsDaysAheadOfTime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	made, err := b.store.EnsureOutbox(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []string{outboxName(0), outboxName(1)}, made)
	made, err = b.store.EnsureOutbox(t.Context())
	require.NoError(t, err)
	assert.Empty(t, made)
	save(t, b, entry(t, body("1", "Café,a,2")))
	assert.Equal(t, outboxName(0), one[string](t, b, `SELECT tableoid::regclass::text FROM outbox`))
}

// TestEnsureOutbox_RowsOfADayThatHasNoPartition: no ticket is refused, none is moved, and the next days are not held up.
func TestEnsureOutbox_RowsOfADayThatHasNoPartition_AreReadAndDeletedWhereTheyAre(t *testing.T) {
	t.Parallel()
	b := setup(t)
	save(t, b, entry(t, body("1", "Café,a,2")))
	made, err := b.store.EnsureOutbox(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []string{outboxName(1)}, made)
	_, err = b.store.CleanOutbox(t.Context(), true)
	require.NoError(t, err)
	require.Equal(t, 1, one[int](t, b, `SELECT count(*) FROM outbox_default`), "it is not read yet")
	fill(t, b)
	assert.Equal(t, []string{"1/1 a Café 2"}, lineTexts(t, b))
	_, err = b.store.CleanOutbox(t.Context(), true)
	require.NoError(t, err)
	require.Zero(t, one[int](t, b, `SELECT count(*) FROM outbox_default`))
	made, err = b.store.EnsureOutbox(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []string{outboxName(0)}, made)
}

func TestEnsureOutbox_BesideAnOpenTransaction_HoldsUpNoTicketForLong(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = tx.Exec(t.Context(), `SELECT count(*) FROM outbox`)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { _, err := b.store.EnsureOutbox(t.Context()); done <- err }()
	var longest time.Duration
	for ended := false; !ended; {
		start := time.Now()
		save(t, b, entry(t, body("1", "Café,a,2")))
		longest = max(longest, time.Since(start))
		select {
		case <-done: // it gives way, and tries again the next time
			ended = true
		default:
		}
	}
	t.Logf("the longest waited %s", longest)
	assert.Less(t, longest, 5*time.Second)
	require.NoError(t, tx.Rollback(t.Context()))
	_, err = b.store.EnsureOutbox(t.Context())
	require.NoError(t, err)
}

func TestCleanOutbox_DropsDaysThatAreOldAndRead(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old, read, recent := outboxDay(t, b, 5, 3), outboxDay(t, b, 4, 3), outboxDay(t, b, 2, 3)
	dropped, err := b.store.CleanOutbox(t.Context(), true)
	require.NoError(t, err)
	require.Empty(t, dropped, "no reader has begun")

	fill(t, b)
	exec(t, b, `UPDATE outbox_readers SET xid = (SELECT xid FROM `+old+` ORDER BY xid DESC LIMIT 1)`)
	dropped, err = b.store.CleanOutbox(t.Context(), true)
	require.NoError(t, err)
	require.Equal(t, []string{old}, dropped)
	exec(t, b, `INSERT INTO outbox_readers (name, system_identifier, xid, at) SELECT 'other', system_identifier, xid, at FROM outbox_readers`)
	fill(t, b)
	dropped, err = b.store.CleanOutbox(t.Context(), true)
	require.NoError(t, err)
	require.Empty(t, dropped, "another reader has not read it")
	exec(t, b, `UPDATE outbox_readers SET xid = (SELECT max(xid::text::bigint) FROM outbox)::text::xid8, system_identifier = 1 WHERE name = 'other'`)
	dropped, err = b.store.CleanOutbox(t.Context(), true)
	require.NoError(t, err)
	require.Empty(t, dropped, "its place is one in another cluster")
	exec(t, b, `DELETE FROM outbox_readers WHERE name = 'other'`)
	dropped, err = b.store.CleanOutbox(t.Context(), true)
	require.NoError(t, err)
	require.Equal(t, []string{read}, dropped)
	assert.Equal(t, []string{recent, "outbox_default"}, partitionsOf(t, b, "outbox"))
}

// TestCleanOutbox_WhileAllTablesArePublished: Postgres refuses to delete rows that a subscriber could not identify.
func TestCleanOutbox_WhileAllTablesArePublished_DeletesWhatWasRead(t *testing.T) {
	t.Parallel()
	b := setup(t)
	exec(t, b, `CREATE PUBLICATION everything FOR ALL TABLES`)
	save(t, b, entry(t, body("1", "Café,a,2")))
	_, err := b.store.EnsureOutbox(t.Context())
	require.NoError(t, err)
	fill(t, b)
	_, err = b.store.CleanOutbox(t.Context(), true)
	require.NoError(t, err)
	assert.Zero(t, one[int](t, b, `SELECT count(*) FROM outbox`))
	exec(t, b, `UPDATE outbox SET xid = xid`)
}

func TestCleanOutbox_WithoutOrderLines_TheirReaderHoldsUpNothing(t *testing.T) {
	t.Parallel()
	for name, begun := range map[string]bool{"never switched on": false, "switched off": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			if begun {
				save(t, b, entry(t, body("1", "Café,a,2")))
				fill(t, b)
			}
			old := outboxDay(t, b, 5, 3)
			save(t, b, entry(t, body("2", "Café,a,2")))
			exec(t, b, `UPDATE outbox_default SET at = now() - interval '3 days' WHERE xid = (SELECT max(xid::text::bigint) FROM outbox)::text::xid8`)
			save(t, b, entry(t, body("3", "Café,a,2")))
			dropped, err := b.store.CleanOutbox(t.Context(), false)
			require.NoError(t, err)
			assert.Equal(t, []string{old}, dropped)
			assert.Positive(t, one[int](t, b, `SELECT count(*) FROM outbox`), "rows of today stay")
			assert.Zero(t, one[int](t, b, `SELECT count(*) FROM outbox WHERE at < now() - interval '2 days'`))
		})
	}
}

func TestDropOldLines_WithTheirTickets_AndNotBefore(t *testing.T) {
	t.Parallel()
	b := setup(t)
	at := time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)
	_, err := b.store.EnsurePartitions(t.Context(), postgres.Month, 0, at)
	require.NoError(t, err)
	_, err = b.store.EnsurePartitions(t.Context(), postgres.Day, 0, at.AddDate(0, 2, 0))
	require.NoError(t, err)
	save(t, b, entryAt(t, at, body("1", "Café,a,2")), entryAt(t, at.AddDate(0, 0, 20), body("2", "Café,a,2")),
		entryAt(t, at.AddDate(0, 2, 0), body("3", "Café,a,2")), entryAt(t, at.AddDate(0, 4, 0), body("4", "Café,a,2")), // in the default one
		entry(t, body("5", "Café,a,2")))
	fill(t, b)
	require.Len(t, lineTexts(t, b), 5)
	today := time.Now().UTC()
	assert.Equal(t, []string{
		"ticket_lines_20260101_20260201", "ticket_lines_20260305_20260306", "ticket_lines_20260505_20260506",
		"ticket_lines_" + today.Format("20060102") + "_" + today.AddDate(0, 0, 1).Format("20060102"),
	}, partitionsOf(t, b, "ticket_lines"), "the same ranges as those of tickets, whatever the period is now")

	dropped, err := b.store.DropOldLines(t.Context())
	require.NoError(t, err)
	require.Empty(t, dropped)
	require.NoError(t, b.store.DropPartition(t.Context(), tester, postgres.OldPartition{Name: "tickets_20260101_20260201"}, postgres.DropEven{}))
	dropped, err = b.store.DropOldLines(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []string{"ticket_lines_20260101_20260201"}, dropped)
	assert.Equal(t, []string{"3/1 a Café 2", "4/1 a Café 2", "5/1 a Café 2"}, lineTexts(t, b))

	// A reader that is behind does not bring them back, and is not held up by them.
	exec(t, b, `UPDATE outbox_readers SET xid = '0'`)
	fill(t, b)
	assert.Len(t, lineTexts(t, b), 3)
}

func TestDropOldLines_WhileAQueryReadsThem_WaitsForItsTurn(t *testing.T) {
	t.Parallel()
	b := setup(t)
	at := time.Date(2026, 1, 5, 12, 0, 0, 0, time.UTC)
	made, err := b.store.EnsurePartitions(t.Context(), postgres.Day, 0, at)
	require.NoError(t, err)
	save(t, b, entryAt(t, at, body("1", "Café,a,2")))
	fill(t, b)
	require.NoError(t, b.store.DropPartition(t.Context(), tester, postgres.OldPartition{Name: made[0]}, postgres.DropEven{}))
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = tx.Exec(t.Context(), `SELECT count(*) FROM order_lines`)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { _, err := b.store.DropOldLines(t.Context()); done <- err }()
	select {
	case err := <-done:
		require.FailNow(t, "it did not wait", "%v", err)
	case <-time.After(time.Second):
	}
	save(t, b, entry(t, body("2", "Café,a,2")))
	require.NoError(t, tx.Commit(t.Context()))
	require.NoError(t, <-done)
	assert.Empty(t, lineTexts(t, b))
}

// TestOutbox_BesideMaintenance: partitions come and go while tickets come in, and no line is lost.
func TestOutbox_BesideMaintenance_LosesNoLine(t *testing.T) {
	t.Parallel()
	b := setup(t)
	lines := postgres.NewOrderLines(postgres.OrderLinesConfig{}, b.store)
	const batches = 60
	for i := range batches {
		save(t, b, entry(t, body(fmt.Sprint(1000+i), "Café,a,2")))
		switch rand.N(4) {
		case 0:
			fillLines(t, lines)
		case 1:
			_, err := b.store.CleanOutbox(t.Context(), true)
			require.NoError(t, err)
		case 2:
			_, err := b.store.EnsureOutbox(t.Context())
			require.NoError(t, err)
		case 3:
			_, err := b.store.DropOldLines(t.Context())
			require.NoError(t, err)
		}
	}
	fillAll(t, b, lines)
	assert.Len(t, lineTexts(t, b), batches)
}
