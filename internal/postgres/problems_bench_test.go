package postgres_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"myticket/internal/postgres"
)

// BenchmarkProblems groups ERROR tickets of 30 days, 20 sources and 50 groups: 100,000, or MYTICKET_BENCH_TICKETS. Fresh tickets have
// not seen a VACUUM. Of the growing ones a sixth has not, the newest: autovacuum comes when a table has grown by a fifth.
func BenchmarkProblems(b *testing.B) {
	tickets := benchTickets()
	for _, body := range []int{100, 1500} {
		at := setup(b)
		store, pool := at.store, at.pool
		first := time.Now().UTC().Truncate(24*time.Hour).AddDate(0, 0, -30)
		if _, err := store.EnsurePartitions(b.Context(), postgres.Day, 31, first); err != nil {
			b.Fatal(err)
		}
		// The body is random in hexadecimal digits, which lz4 does not make shorter.
		const insert = `
			INSERT INTO tickets (id, received_at, source, body, status, problem_group, problems)
			SELECT gen_random_uuid(), $1::timestamptz + i * (interval '30 days' / $2), 'shop-' || i % 20,
			       (SELECT string_agg(sha256((i || '-' || n)::text::bytea), '') FROM generate_series(1, $3::int / 32) n), 'ERROR',
			       hashint8(i % 50)::int8 << 32 | i % 50 + 1,
			       '[{"line": 6, "code": "amount_invalid", "message": "price \"2 EUR\": not an amount"}]'
			FROM generate_series($4::int, $5::int - 1) i`
		run := func(sql string, args ...any) {
			b.Helper()
			if _, err := pool.Exec(b.Context(), sql, args...); err != nil {
				b.Fatal(err)
			}
		}
		for _, state := range []string{"fresh", "growing", "vacuumed"} {
			switch state {
			case "fresh":
				run(insert, first, tickets, body, 0, tickets)
			case "growing":
				run(`DELETE FROM tickets WHERE received_at >= $1`, first.AddDate(0, 0, 25))
				run(`VACUUM ANALYZE tickets`)
				run(insert, first, tickets, body, (tickets*25+29)/30, tickets)
			case "vacuumed":
				run(`VACUUM ANALYZE tickets`)
			}
			b.Run(fmt.Sprintf("body=%d/%s", body, state), func(b *testing.B) {
				for b.Loop() {
					found, err := store.Problems(b.Context(), postgres.ProblemFilter{}, postgres.ByTickets, 20)
					if err != nil || found.Tickets != tickets {
						b.Fatal(found.Tickets, err)
					}
				}
				b.ReportMetric(float64(tickets*b.N)/b.Elapsed().Seconds(), "tickets/s")
				if testing.Verbose() {
					explainProblems(b, pool)
				}
			})
		}
	}
}

func explainProblems(b *testing.B, pool *pgxpool.Pool) {
	b.Helper()
	sql, args := postgres.ProblemsSQL(postgres.ProblemFilter{}, postgres.ByTickets, 20)
	rows, err := pool.Query(b.Context(), `EXPLAIN (ANALYZE, BUFFERS) `+sql, args...)
	if err != nil {
		b.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		b.Fatal(err)
	}
	for _, line := range lines {
		b.Log(line)
	}
}
