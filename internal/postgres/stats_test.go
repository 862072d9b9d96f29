package postgres_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

const statsDays = 60

// fillDays puts tickets into a partition for each of 60 days, and returns when the first begins. A tenth of them is ERROR, with two
// kinds of problems.
func fillDays(tb testing.TB, store *postgres.Store, pool *pgxpool.Pool, tickets, body int) (first time.Time) {
	tb.Helper()
	first = time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, 1-statsDays)
	if _, err := store.EnsurePartitions(tb.Context(), postgres.Day, statsDays, first); err != nil {
		tb.Fatal(err)
	}
	// The body is random in hexadecimal digits, which lz4 does not make shorter.
	const insert = `
		INSERT INTO tickets (id, received_at, source, body, status, problems)
		SELECT gen_random_uuid(), $1::timestamptz + i * (interval '60 days' / $2), 'shop-' || i % 20,
		       (SELECT string_agg(sha256((i || '-' || n)::text::bytea), '') FROM generate_series(1, $3::int / 32) n),
		       CASE WHEN i % 10 = 0 THEN 'ERROR' ELSE 'TREATED' END,
		       CASE WHEN i % 10 = 0 THEN '[{"line": 6, "code": "amount_invalid", "message": "m"}, {"line": 7, "code": "amount_invalid", "message": "m"},
		           {"line": 0, "code": "order_missing", "message": "m"}]'::jsonb END
		FROM generate_series(0, $2::int - 1) i`
	if _, err := pool.Exec(tb.Context(), insert, first, tickets, body); err != nil {
		tb.Fatal(err)
	}
	if _, err := pool.Exec(tb.Context(), `VACUUM ANALYZE tickets`); err != nil {
		tb.Fatal(err)
	}
	return first
}

func statsQuery(since, until time.Time, by ...postgres.StatsKey) postgres.StatsQuery {
	query := postgres.StatsQuery{
		Filter: postgres.TicketFilter{Since: since, Until: until}, By: by, Limit: 1000, Timeout: time.Minute,
	}
	for start := since; start.Before(until); start = start.AddDate(0, 0, 1) {
		query.Starts = append(query.Starts, start)
	}
	return query
}

func TestStats_ReadsOnlyTheTimeThatIsAskedFor(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := fillDays(t, b.store, b.pool, 6000, 32)
	query := statsQuery(first, first.AddDate(0, 0, 7), postgres.StatsTime, postgres.StatsProblem)
	found, err := b.store.Stats(t.Context(), query)
	require.NoError(t, err)
	assert.Equal(t, postgres.Stats{Total: 21, Tickets: 700, Bytes: 700 * 32, Groups: found.Groups}, found)
	assert.Equal(t, []postgres.StatsGroup{
		{Start: first.AddDate(0, 0, 6), Tickets: 90, Bytes: 90 * 32},
		{Start: first.AddDate(0, 0, 6), Problem: "amount_invalid", Tickets: 10, Bytes: 320}, // once, though it is there twice
		{Start: first.AddDate(0, 0, 6), Problem: "order_missing", Tickets: 10, Bytes: 320},
	}, found.Groups[:3])

	sql, args := postgres.StatsSQL(query)
	rows, err := b.pool.Query(t.Context(), `EXPLAIN `+sql, args...)
	require.NoError(t, err)
	plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	partitions := map[string]bool{}
	for _, line := range plan {
		if _, name, ok := strings.Cut(line, " on tickets_"); ok {
			partitions[strings.Fields(name)[0]] = true
		}
	}
	assert.Len(t, partitions, 7, "seven days: %s", strings.Join(plan, "\n"))
}

func TestStats_KeepsNoListOfProblemsForEachTicket(t *testing.T) {
	t.Parallel()
	b := setup(t)
	// Each ticket has the same four codes 25 times, in an order of its own.
	_, err := b.pool.Exec(t.Context(), `
		INSERT INTO tickets (id, received_at, source, body, status, problems)
		SELECT gen_random_uuid(), now(), 's', 'x', 'ERROR', (SELECT jsonb_agg(
			jsonb_build_object('line', n, 'code', 'c' || n % 4, 'message', 'm') ORDER BY md5(i || '-' || n)) FROM generate_series(1, 100) n)
		FROM generate_series(1, 500) i`)
	require.NoError(t, err)
	query := statsQuery(time.Now().Add(-time.Hour), time.Now().Add(time.Hour), postgres.StatsProblem)
	found, err := b.store.Stats(t.Context(), query)
	require.NoError(t, err)
	require.Len(t, found.Groups, 4)
	assert.Equal(t, postgres.StatsGroup{Problem: "c0", Tickets: 500, Bytes: 500}, found.Groups[0])

	sql, args := postgres.StatsSQL(query)
	rows, err := b.pool.Query(t.Context(), `EXPLAIN (ANALYZE, COSTS off, TIMING off) `+sql, args...)
	require.NoError(t, err)
	plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	counted := slices.IndexFunc(plan, func(line string) bool { return strings.Contains(line, "CTE counted") })
	require.GreaterOrEqual(t, counted, 0)
	assert.Regexp(t, `rows=1(\.00)? `, plan[counted+1], "%s", strings.Join(plan, "\n"))
}

func TestStats_IsStoppedInTime(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := fillDays(t, b.store, b.pool, 6000, 32)
	query := statsQuery(first, first.AddDate(0, 0, statsDays), postgres.StatsTime)
	query.Timeout = time.Millisecond
	_, err := b.store.Stats(t.Context(), query)
	require.ErrorIs(t, err, ticket.ErrUnavailable)
	require.ErrorContains(t, err, "counting took longer than 1ms and was stopped: count tickets of a shorter time")
	query.Timeout = time.Minute
	found, err := b.store.Stats(t.Context(), query)
	require.NoError(t, err, "the limit is that of one statement")
	require.EqualValues(t, 6000, found.Tickets)
}

// BenchmarkStats counts tickets of 60 partitions, 100,000 or MYTICKET_BENCH_TICKETS.
func BenchmarkStats(b *testing.B) {
	tickets := benchTickets()
	at := setup(b)
	store, pool := at.store, at.pool
	first := fillDays(b, store, pool, tickets, 640)
	for _, days := range []int{7, statsDays} {
		until := first.AddDate(0, 0, statsDays)
		for _, by := range [][]postgres.StatsKey{
			{postgres.StatsTime, postgres.StatsStatus},
			{postgres.StatsTime, postgres.StatsSource, postgres.StatsStatus, postgres.StatsProblem},
		} {
			query := statsQuery(until.AddDate(0, 0, -days), until, by...)
			b.Run(fmt.Sprintf("days=%d/keys=%d", days, len(by)), func(b *testing.B) {
				counted := int64(0)
				for b.Loop() {
					found, err := store.Stats(b.Context(), query)
					if err != nil {
						b.Fatal(err)
					}
					counted += found.Tickets
				}
				b.ReportMetric(float64(counted)/b.Elapsed().Seconds(), "tickets/s")
				if testing.Verbose() {
					explainStats(b, pool, query)
				}
			})
		}
	}
}

func explainStats(b *testing.B, pool *pgxpool.Pool, query postgres.StatsQuery) {
	b.Helper()
	conn, err := pool.Acquire(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(b.Context(), "BEGIN; SET LOCAL jit = off; "+postgres.CountByHash); err != nil {
		b.Fatal(err)
	}
	sql, args := postgres.StatsSQL(query)
	rows, err := conn.Query(b.Context(), `EXPLAIN (ANALYZE, BUFFERS) `+sql, args...)
	if err != nil {
		b.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		b.Fatal(err)
	}
	if _, err := conn.Exec(b.Context(), "ROLLBACK"); err != nil {
		b.Fatal(err)
	}
	b.Log(strings.Join(lines, "\n"))
}
