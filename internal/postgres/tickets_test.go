package postgres_test

import (
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// firstDay is where the tickets of setupDays begin.
var firstDay = time.Date(2026, 11, 2, 0, 0, 0, 0, time.UTC)

func dayOf(n int) time.Time { return firstDay.AddDate(0, 0, n) }

// setupDays is a database with tickets of several days, each day in a partition of its own. Of a hundred tickets one is
// ERROR, one DISMISSED, one TO_TREAT and due, and the others are TREATED. Their order numbers are 1, 2, and so on.
func setupDays(t *testing.T, days, perDay int) *testBundle {
	t.Helper()
	b := setup(t)
	for day := range days {
		_, err := b.store.EnsurePartitions(t.Context(), postgres.Day, 0, dayOf(day))
		require.NoError(t, err)
	}
	exec(t, b, `CREATE FUNCTION uuid_at(timestamptz) RETURNS uuid LANGUAGE sql AS $$
		SELECT (lpad(to_hex(round(extract(epoch FROM $1) * 1000)::bigint), 12, '0') || '7' ||
			substr(md5(random()::text), 1, 3) || '8' || substr(md5(random()::text), 1, 15))::uuid $$`)
	_, err := b.pool.Exec(t.Context(), `
		INSERT INTO tickets (id, received_at, source, body, status, attempts, next_attempt_at, order_number, problems)
		SELECT uuid_at(at), at, 'shop-' || i % 2, 'x', status, 3, CASE WHEN status = 'TO_TREAT' THEN now() END, i::text,
		       CASE WHEN status IN ('ERROR', 'DISMISSED') THEN '[{"line": 2, "code": "fields_count", "message": "m"}]'::jsonb END
		FROM generate_series(1, $1::int * $2::int) i,
		     LATERAL (SELECT $3::timestamptz + (i - 1) / 2 * (interval '2 days' / $2) AS at, -- two at the same time
		                     coalesce((ARRAY['ERROR', 'DISMISSED', 'TO_TREAT'])[i % 100], 'TREATED') AS status) s`,
		days, perDay, firstDay)
	require.NoError(t, err)
	return b
}

// plan runs a statement as the store's connections would, and returns how Postgres did, without what it never got to.
func plan(t *testing.T, b *testBundle, generic bool, sql string, args ...any) string {
	t.Helper()
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = tx.Exec(t.Context(), `SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off`)
	require.NoError(t, err)
	if generic {
		_, err = tx.Exec(t.Context(), `SET LOCAL plan_cache_mode = force_generic_plan`)
		require.NoError(t, err)
	}
	rows, err := tx.Query(t.Context(), `EXPLAIN (ANALYZE, COSTS off, TIMING off, SUMMARY off) `+sql, args...)
	require.NoError(t, err, sql)
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err, sql)
	lines = slices.DeleteFunc(lines, func(line string) bool { return strings.Contains(line, "never executed") })
	return strings.Join(lines, "\n")
}

var scanned = regexp.MustCompile(`Scan .*on tickets_(\d{8})_`)

// partitionsIn returns the days whose partitions a plan has read.
func partitionsIn(plan string) []string {
	var days []string
	for _, match := range scanned.FindAllStringSubmatch(plan, -1) {
		days = append(days, match[1])
	}
	slices.Sort(days)
	return slices.Compact(days)
}

func TestTickets_ReadsOnlyWhatItMust(t *testing.T) {
	t.Parallel()
	b := setupDays(t, 8, 2000)
	onDay3 := one[uuid.UUID](t, b, `SELECT id FROM tickets WHERE order_number = '4001'`) // the first of 2026-11-04
	few := postgres.TicketFilter{
		Statuses: []ticket.Status{ticket.Error, ticket.ToTreat, ticket.Error}, Since: dayOf(3), Until: dayOf(4),
	}
	for _, analyzed := range []bool{false, true} {
		if analyzed {
			exec(t, b, `ANALYZE tickets`)
		}
		for _, test := range []struct {
			name         string
			filter       postgres.TicketFilter
			after        uuid.UUID
			days         []string // partitions that may be read; nil for all
			index, never string
		}{
			{name: "between two times", filter: postgres.TicketFilter{Since: dayOf(2), Until: dayOf(3)}, days: []string{"20261104"}},
			{name: "behind a ticket", after: onDay3, days: []string{"20261102", "20261103", "20261104"}},
			{name: "order number", filter: postgres.TicketFilter{Order: "77"}, index: "order_number_idx", never: "pkey on tickets_2026"},
			{
				name: "ERROR", filter: postgres.TicketFilter{Statuses: []ticket.Status{ticket.Error}},
				index: "received_at_id_idx", never: "pkey on tickets_2026",
			},
			{name: "ERROR and TO_TREAT on a day", filter: few, days: []string{"20261105"}, index: "received_at_id_idx"},
		} {
			sql, args := postgres.PageSQL(test.filter, test.after, 50)
			p := plan(t, b, false, sql, args...)
			if test.days != nil {
				assert.Subset(t, test.days, partitionsIn(p), "%s, analyzed: %t\n%s", test.name, analyzed, p)
			}
			assert.Contains(t, p, test.index, "%s, analyzed: %t", test.name, analyzed)
			if test.never != "" {
				assert.NotContains(t, p, test.never, "%s, analyzed: %t", test.name, analyzed)
			}
		}
	}
	// That few tickets are TO_TREAT is something that the planner must know from ANALYZE.
	sql, args := postgres.PageSQL(few, uuid.Nil, 50)
	p := plan(t, b, false, sql, args...)
	assert.Contains(t, p, "next_attempt_at_idx")
	assert.NotContains(t, p, "pkey on tickets_2026")
}

func TestRetryTickets_EachBatchByTheIndex_WhateverThePlanKnows(t *testing.T) {
	t.Parallel()
	b := setupDays(t, 6, 1000)
	since := one[uuid.UUID](t, b, `SELECT id FROM tickets WHERE order_number = '4101'`)
	for _, generic := range []bool{false, true} {
		sql, args := postgres.RetrySQL(postgres.TicketFilter{Sources: []string{"shop-1"}}, ticket.Error, since)
		p := plan(t, b, generic, sql, args...)
		assert.Subset(t, []string{"20261106", "20261107"}, partitionsIn(p), p)
		_, rest, found := strings.Cut(p, "CTE picked")
		require.True(t, found, p)
		picked, changed, found := strings.Cut(rest, "CTE changed")
		require.True(t, found, p)
		assert.Contains(t, picked, "received_at_id_idx on tickets_20261107", p)
		assert.NotContains(t, picked, "pkey on tickets_2026", p)
		assert.Contains(t, changed, "pkey on tickets_20261107", p)
		assert.NotContains(t, changed, "Rows Removed", p)
	}
}

func TestTickets_PageByPage_EachOnceAndTheNewestFirst(t *testing.T) {
	t.Parallel()
	b := setupDays(t, 3, 400)
	all := []ticket.Status{ticket.Dismissed, ticket.Error, ticket.ToTreat, ticket.Treated}
	for where, filter := range map[string]postgres.TicketFilter{
		`true`: {},
		`received_at >= '2026-11-02 12:00:00Z' AND received_at < '2026-11-04 23:00:00Z'`: {
			Statuses: all, Since: firstDay.Add(12 * time.Hour), Until: dayOf(3).Add(-time.Hour),
		},
		`status <> 'TREATED'`:                        {Statuses: all[:3]},
		`status = 'ERROR' AND source = 'shop-1'`:     {Statuses: all[1:2], Problems: []string{"fields_count"}, Sources: []string{"shop-1"}},
		`problems IS NOT NULL AND status <> 'ERROR'`: {Statuses: all[:1], Problems: []string{"fields_count"}},
	} {
		want := one[int](t, b, `SELECT count(*) FROM tickets WHERE `+where)
		require.NotZero(t, want, where)
		var seen []uuid.UUID
		var after uuid.UUID
		for {
			page, err := b.store.Tickets(t.Context(), filter, after, 7)
			require.NoError(t, err)
			if len(page) == 0 {
				break
			}
			for _, found := range page {
				seen = append(seen, found.ID)
			}
			after = seen[len(seen)-1]
		}
		assert.Len(t, seen, want, where)
		assert.True(t, slices.IsSortedFunc(seen, func(x, y uuid.UUID) int { return strings.Compare(y.String(), x.String()) }))
		slices.SortFunc(seen, func(x, y uuid.UUID) int { return strings.Compare(x.String(), y.String()) })
		assert.Len(t, slices.Compact(seen), want, "each once: %s", where)
	}
}

func TestTickets_ByOrderNumber(t *testing.T) {
	t.Parallel()
	b := setupDays(t, 2, 200)
	for statuses, want := range map[ticket.Status]int{ticket.Error: 1, ticket.Treated: 0} {
		found, err := b.store.Tickets(t.Context(), postgres.TicketFilter{Order: "101", Statuses: []ticket.Status{statuses}}, uuid.Nil, 9)
		require.NoError(t, err)
		assert.Len(t, found, want, statuses)
	}
}

func TestTicket_AmountsAsStored_AndNoneForWhatWasNotRead(t *testing.T) {
	t.Parallel()
	b := setupDays(t, 1, 2)
	exec(t, b, `UPDATE tickets SET total = 12345678901234567890.10, lines =
		'[{"product": "a", "product_id": "b", "price": 2.00}, {"product": "c", "product_id": "d", "price": null}]'`)
	found, err := b.store.Ticket(t.Context(), one[uuid.UUID](t, b, `SELECT id FROM tickets LIMIT 1`))
	require.NoError(t, err)
	assert.Equal(t, "12345678901234567890.10", found.Total.String())
	assert.Equal(t, "2.00", found.Lines[0].Price.String())
	assert.Empty(t, found.Lines[1].Price)
	assert.Empty(t, found.VAT)
}

func TestRetryTickets_LeavesTreatedAndClaimedTicketsAlone(t *testing.T) {
	t.Parallel()
	b := setupDays(t, 3, 1000)
	const others = `SELECT md5(string_agg(t::text, '' ORDER BY id)) FROM tickets t WHERE status IN ('TO_TREAT', 'TREATED') AND attempts = 3`
	exec(t, b, `UPDATE tickets SET next_attempt_at = now() + interval '1 minute' WHERE status = 'TO_TREAT'`) // leases
	before := one[string](t, b, others)
	both := postgres.Bulk{Filter: postgres.TicketFilter{Statuses: []ticket.Status{ticket.Error, ticket.Dismissed}}}
	preview, err := b.store.PreviewChange(t.Context(), postgres.Retry, both)
	require.NoError(t, err)
	assert.Equal(t, 60, preview.Tickets)
	n, err := b.store.ChangeTickets(t.Context(), tester, postgres.Retry, both)
	require.NoError(t, err)
	assert.Equal(t, 60, n.Tickets)
	assert.Equal(t, before, one[string](t, b, others))
	assert.Equal(t, 60, one[int](t, b, `SELECT count(*) FROM tickets
		WHERE status = 'TO_TREAT' AND attempts = 0 AND next_attempt_at <= now() AND problems IS NOT NULL`))
	n, err = b.store.ChangeTickets(t.Context(), tester, postgres.Dismiss, postgres.Bulk{})
	require.NoError(t, err)
	assert.Zero(t, n.Tickets, "what is TO_TREAT is not dismissed")

	claimed := one[uuid.UUID](t, b, `SELECT id FROM tickets WHERE status = 'TO_TREAT' AND attempts = 3 LIMIT 1`)
	require.ErrorContains(t, b.store.ChangeTicket(t.Context(), tester, postgres.Retry, claimed), "is TO_TREAT")
	require.ErrorContains(t, b.store.ChangeTicket(t.Context(), tester, postgres.Dismiss, claimed), "is TO_TREAT")
	assert.Equal(t, before, one[string](t, b, others))
}

func TestRetryTickets_TicketThatChangesMeanwhile_IsLeftAlone(t *testing.T) {
	t.Parallel()
	b := setupDays(t, 1, 1000)
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = tx.Exec(t.Context(), `UPDATE tickets SET status = 'TREATED' WHERE order_number = '501'`)
	require.NoError(t, err)
	var n postgres.Done
	var retryErr error
	var group sync.WaitGroup
	group.Go(func() {
		n, retryErr = b.store.ChangeTickets(t.Context(), tester, postgres.Retry,
			postgres.Bulk{Filter: postgres.TicketFilter{Statuses: []ticket.Status{ticket.Error}}})
	})
	awaitWaiting(t, b)
	require.NoError(t, tx.Commit(t.Context()))
	group.Wait()
	require.NoError(t, retryErr)
	assert.Equal(t, 9, n.Tickets)
	assert.Equal(t, "TREATED", one[string](t, b, `SELECT status FROM tickets WHERE order_number = '501'`))
}

// awaitWaiting returns when a session waits for a lock in the test's database.
func awaitWaiting(t *testing.T, b *testBundle) {
	t.Helper()
	require.Eventually(t, func() bool {
		var waiting bool
		err := b.pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock')`).Scan(&waiting)
		return err == nil && waiting
	}, 20*time.Second, 5*time.Millisecond)
}

func TestRetryTickets_SeveralAtOnce_SendEachBackOnce(t *testing.T) {
	t.Parallel()
	b := setupDays(t, 3, 2000)
	exec(t, b, `UPDATE tickets SET status = 'ERROR', next_attempt_at = NULL`)
	var group sync.WaitGroup
	var total [3]int
	for i := range total {
		group.Go(func() {
			done, err := b.store.ChangeTickets(t.Context(), tester, postgres.Retry, postgres.Bulk{})
			assert.NoError(t, err)
			total[i] = done.Tickets
		})
	}
	group.Wait()
	assert.Equal(t, 6000, total[0]+total[1]+total[2], total)
	assert.Equal(t, 6000, one[int](t, b, `SELECT count(*) FROM tickets WHERE status = 'TO_TREAT'`))
	assert.GreaterOrEqual(t, one[int](t, b, `SELECT count(DISTINCT xmin::text) FROM tickets`), 6, "in transactions of bounded size")
}

func TestRetryTickets_EndsThoughTicketsThatFailArriveFaster(t *testing.T) {
	t.Parallel()
	b := setupDays(t, 1, 1000)
	// Each that is sent back makes a newer one, which is an ERROR again.
	exec(t, b, `CREATE FUNCTION arrive() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		INSERT INTO tickets (id, received_at, source, body, status) SELECT uuid_at(at), at, 's', '', 'ERROR'
		FROM (SELECT date_trunc('milliseconds', clock_timestamp()) AS at) a;
		RETURN NEW; END $$`)
	exec(t, b, `CREATE TRIGGER arrive AFTER UPDATE ON tickets FOR EACH ROW EXECUTE FUNCTION arrive()`)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	n, err := b.store.ChangeTickets(ctx, tester, postgres.Retry, postgres.Bulk{})
	require.NoError(t, err)
	assert.Equal(t, 10, n.Tickets)
	assert.Equal(t, 10, one[int](t, b, `SELECT count(*) FROM tickets WHERE status = 'ERROR'`))
}

func TestDismissTicket_KeepsWhatWasWrongAndTheReason(t *testing.T) {
	t.Parallel()
	b := setupDays(t, 1, 100)
	id := one[uuid.UUID](t, b, `SELECT id FROM tickets WHERE status = 'ERROR'`)
	why := postgres.Person{Who: "tester", Why: "test till \x00\xff" + strings.Repeat("é", postgres.MaxReason)}
	require.NoError(t, b.store.ChangeTicket(t.Context(), why, postgres.Dismiss, id))
	found, err := b.store.Ticket(t.Context(), id)
	require.NoError(t, err)
	require.Len(t, found.Problems, 2)
	assert.Equal(t, ticket.Problem{Line: 2, Code: "fields_count", Message: "m"}, found.Problems[0])
	assert.Equal(t, "dismissed", found.Problems[1].Code)
	assert.True(t, strings.HasPrefix(found.Problems[1].Message, "test till \uFFFD"), found.Problems[1].Message)
	require.ErrorContains(t, b.store.ChangeTicket(t.Context(), why, postgres.Dismiss, id), "is DISMISSED")
	require.NoError(t, b.store.ChangeTicket(t.Context(), tester, postgres.Retry, id))
	_, err = b.store.Ticket(t.Context(), uuid.Must(uuid.NewV7()))
	require.ErrorIs(t, err, ticket.ErrNotFound)
}

func TestProducts_PageByPage_EachOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	exec(t, b, `INSERT INTO products (product_id, name, price, first_seen_at, last_seen_at, changed_at, ticket_id)
		SELECT chr(32 + i % 90) || i, 'Café', 2.50, now(), now(), now(), gen_random_uuid() FROM generate_series(1, 200) i`)
	var seen []string
	after := ""
	for {
		page, err := b.store.Products(t.Context(), postgres.ProductFilter{Name: "CAFÉ"}, after, 30)
		require.NoError(t, err)
		if len(page) == 0 {
			break
		}
		for _, p := range page {
			seen = append(seen, p.ProductID)
		}
		after = seen[len(seen)-1]
	}
	assert.Len(t, seen, 200)
	assert.True(t, slices.IsSorted(seen), fmt.Sprint(seen))
}

func TestTicket_ShowsUnknownColumnsFromTheBody(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := entry(t, "Order: 7\nVAT: 3.10\nTotal: 16.90\n\nproduct,product_id,price,qty,note\nCafé,a,2,1,hot\nThé,b,3,2,\n")
	save(t, b, e)
	shown, err := b.store.Ticket(t.Context(), e.Ticket.ID)
	require.NoError(t, err)
	want := []postgres.StoredLine{
		{Product: "Café", ProductID: "a", Price: "2", Extra: []postgres.StoredField{{Name: "qty", Value: "1"}, {Name: "note", Value: "hot"}}},
		{Product: "Thé", ProductID: "b", Price: "3", Extra: []postgres.StoredField{{Name: "qty", Value: "2"}, {Name: "note"}}},
	}
	assert.Equal(t, want, shown.Lines)
	listed, err := b.store.Tickets(t.Context(), postgres.TicketFilter{}, uuid.Nil, 1)
	require.NoError(t, err)
	assert.Equal(t, want, listed[0].Lines)
	assert.Empty(t, listed[0].Body)

	// A row of an older version has lines, and perhaps these columns beside them. It is shown as it is.
	exec(t, b, `UPDATE tickets SET lines = '[{"product": "Café", "product_id": "a", "price": 2, "extra": [{"name": "qty", "value": "9"}]},
		{"product": "Thé", "product_id": "b", "price": 3}]'`)
	shown, err = b.store.Ticket(t.Context(), e.Ticket.ID)
	require.NoError(t, err)
	assert.Equal(t, []postgres.StoredField{{Name: "qty", Value: "9"}}, shown.Lines[0].Extra)
	assert.Equal(t, want[1], shown.Lines[1])
}
