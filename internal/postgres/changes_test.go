package postgres_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// records returns the whole audit, the newest change first.
func records(t *testing.T, b *testBundle) []postgres.AuditRecord {
	t.Helper()
	found, err := b.store.Audit(t.Context(), postgres.AuditFilter{}, 0, 1000)
	require.NoError(t, err)
	return found
}

func TestRetry_LeavesDismissedTicketsAlone_UnlessTheyAreNamed(t *testing.T) {
	t.Parallel()
	b := setupDays(t, 1, 1000)
	done, err := b.store.ChangeTickets(t.Context(), tester, postgres.Retry, postgres.Bulk{})
	require.NoError(t, err)
	assert.Equal(t, 10, done.Tickets)
	assert.Equal(t, 10, one[int](t, b, `SELECT count(*) FROM tickets WHERE status = 'DISMISSED'`))
	for _, ch := range []postgres.Change{postgres.Dismiss, postgres.Retry} { // Dismiss never applies to them
		named := postgres.Bulk{Filter: postgres.TicketFilter{Statuses: []ticket.Status{ticket.Dismissed}}}
		done, err = b.store.ChangeTickets(t.Context(), tester, ch, named)
		require.NoError(t, err)
	}
	assert.Equal(t, 10, done.Tickets)
	assert.Zero(t, one[int](t, b, `SELECT count(*) FROM tickets WHERE status = 'DISMISSED'`))
}

func TestReopen_UndoesADismissal(t *testing.T) {
	t.Parallel()
	b := setupDays(t, 1, 1000)
	exec(t, b, `UPDATE tickets SET problems = NULL WHERE order_number = '101'`)
	const all = `SELECT string_agg(concat_ws(' ', order_number, status, problems), ',' ORDER BY id) FROM tickets`
	before := one[string](t, b, all)
	failed := postgres.Bulk{Filter: postgres.TicketFilter{Since: dayOf(0)}}
	done, err := b.store.ChangeTickets(t.Context(), postgres.Person{Who: "a", Why: "test till"}, postgres.Dismiss, failed)
	require.NoError(t, err)
	require.Equal(t, 10, done.Tickets)
	require.Equal(t, 10, one[int](t, b, `SELECT count(*) FROM tickets WHERE problems -> -1 ->> 'message' = 'test till'`))
	dismissed := postgres.Bulk{Filter: postgres.TicketFilter{Problems: []string{"dismissed"}}} // those of setupDays have no such problem
	done, err = b.store.ChangeTickets(t.Context(), tester, postgres.Reopen, dismissed)
	require.NoError(t, err)
	assert.Equal(t, 10, done.Tickets)
	assert.Equal(t, before, one[string](t, b, all), "as if nothing had happened")
	id := one[uuid.UUID](t, b, `SELECT id FROM tickets WHERE order_number = '101'`)
	require.ErrorContains(t, b.store.ChangeTicket(t.Context(), tester, postgres.Reopen, id), "is ERROR")
	found := records(t, b)
	require.Len(t, found, 2)
	assert.Equal(t, "tickets.reopen", found[0].Action)
	assert.Equal(t, []any{"tickets.dismiss", "a", "test till", int64(10)}, []any{found[1].Action, found[1].Who, found[1].Why, found[1].Tickets})
	assert.JSONEq(t, `{"since": "2026-11-02T00:00:00Z"}`, string(found[1].Filter))
}

func TestPreviewChange_SaysWhatTheRunThenChanges_AndNothingThatComesLater(t *testing.T) {
	t.Parallel()
	b := setupDays(t, 2, 3000)
	exec(t, b, `UPDATE tickets SET problems = '[{"line": 0, "code": "vat_missing", "message": "m"}]' WHERE order_number = '201'`)
	preview, err := b.store.PreviewChange(t.Context(), postgres.Retry, postgres.Bulk{})
	require.NoError(t, err)
	assert.Equal(t, 60, preview.Tickets)
	assert.Equal(t, []postgres.TicketGroup{
		{Source: "shop-1", Status: ticket.Error, Problem: "fields_count", Tickets: 59},
		{Source: "shop-1", Status: ticket.Error, Problem: "vat_missing", Tickets: 1},
	}, preview.Groups)
	exec(t, b, `INSERT INTO tickets (id, received_at, source, body, status) SELECT uuid_at(at), at, 's', '', 'ERROR'
		FROM (SELECT date_trunc('milliseconds', now()) AS at) a`)
	done, err := b.store.ChangeTickets(t.Context(), tester, postgres.Retry, postgres.Bulk{Newest: preview.Newest})
	require.NoError(t, err)
	assert.Equal(t, 60, done.Tickets)
	assert.True(t, done.Ended)
	exec(t, b, `UPDATE tickets SET status = 'ERROR', source = id::text WHERE status = 'TO_TREAT'`)
	preview, err = b.store.PreviewChange(t.Context(), postgres.Retry, postgres.Bulk{})
	require.NoError(t, err)
	assert.Len(t, preview.Groups, 20, "senders name sources, so there may be any number")
	assert.Equal(t, preview.Tickets-20, preview.Others)
	empty, err := setup(t).store.PreviewChange(t.Context(), postgres.Retry, postgres.Bulk{})
	require.NoError(t, err)
	assert.Zero(t, empty.Tickets)
}

func TestChangeTickets_IsCanceled_EndsAfterTheBatch_AndIsTakenUpAgain(t *testing.T) {
	t.Parallel()
	b := setupDays(t, 3, 2000)
	exec(t, b, `UPDATE tickets SET status = 'ERROR', next_attempt_at = NULL`)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// The signal comes in the middle of a batch: when it is over, the run is.
	exec(t, b, `CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.2); RETURN NULL; END $$`)
	exec(t, b, `CREATE TRIGGER slow AFTER INSERT ON audit EXECUTE FUNCTION slow()`)
	time.AfterFunc(300*time.Millisecond, cancel)
	done, err := b.store.ChangeTickets(ctx, tester, postgres.Retry, postgres.Bulk{})
	require.ErrorIs(t, err, context.Canceled)
	assert.Equal(t, done.Tickets, one[int](t, b, `SELECT count(*) FROM tickets WHERE status = 'TO_TREAT'`))
	require.Positive(t, done.Tickets)
	require.Less(t, done.Tickets, 6000)
	assert.False(t, done.Ended)
	assert.Equal(t, int64(done.Tickets), records(t, b)[0].Tickets)
	assert.Contains(t, string(records(t, b)[0].Details), done.Last.String(), "also who only has the audit knows where it ended")

	exec(t, b, `UPDATE tickets SET status = 'ERROR' WHERE status = 'TO_TREAT'`) // read in vain
	rest, err := b.store.ChangeTickets(t.Context(), tester, postgres.Retry, postgres.Bulk{After: done.Last})
	require.NoError(t, err)
	assert.Equal(t, 6000, done.Tickets+rest.Tickets, "those that are ERROR again are not picked twice")
}

func TestChangeTickets_TransactionsAreBoundedInBytes(t *testing.T) {
	t.Parallel()
	b := setupDays(t, 1, 1000)
	exec(t, b, `UPDATE tickets SET status = 'ERROR', next_attempt_at = NULL, problems = jsonb_build_array(jsonb_build_object(
		'line', 0, 'code', 'x', 'message', (SELECT string_agg(md5(i::text || id::text), '') FROM generate_series(1, 1000) i)))`)
	done, err := b.store.ChangeTickets(t.Context(), postgres.Person{Who: "a", Why: "x"}, postgres.Dismiss, postgres.Bulk{})
	require.NoError(t, err)
	assert.Equal(t, 1000, done.Tickets)
	assert.LessOrEqual(t, one[int](t, b, `SELECT max(tickets)::int FROM audit`), 140, "32 kB of problems each, 4 MiB a transaction")
	assert.Equal(t, 1000, one[int](t, b, `SELECT sum(tickets)::int FROM audit`))
	assert.EqualValues(t, 1000, records(t, b)[0].Tickets)
	assert.EqualValues(t, one[int](t, b, `SELECT count(*) FROM audit`), records(t, b)[0].Transactions)
}

func TestChangeTickets_TakesItsShareOfTheTime(t *testing.T) {
	t.Parallel()
	b := setupDays(t, 3, 1000)
	exec(t, b, `UPDATE tickets SET status = 'ERROR', next_attempt_at = NULL`)
	exec(t, b, `CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.1); RETURN NULL; END $$`)
	exec(t, b, `CREATE TRIGGER slow AFTER INSERT ON audit EXECUTE FUNCTION slow()`)
	start := time.Now()
	_, err := b.store.ChangeTickets(t.Context(), tester, postgres.Retry, postgres.Bulk{Share: 0.25})
	require.NoError(t, err)
	assert.GreaterOrEqual(t, time.Since(start), 1200*time.Millisecond, "three batches of 0.1 s, each with a pause of 0.3 s")
}

// A change without its row in the audit must not be made.
func TestAudit_ThatCannotBeWritten_UndoesTheChange(t *testing.T) {
	t.Parallel()
	b := setupDays(t, 2, 1000)
	save(t, b, entry(t, body("1", "Café,a,2")))
	exec(t, b, `UPDATE products SET first_seen_at = now() - interval '1 day', last_seen_at = now() - interval '1 day', unsettled_from = NULL`)
	exec(t, b, `INSERT INTO deliveries VALUES ('s', 'k', '', gen_random_uuid(), now(), now() - interval '1 s')`)
	exec(t, b, `ALTER TABLE audit ADD CONSTRAINT full_disk CHECK (false)`)
	const everything = `SELECT md5(string_agg(t::text, '' ORDER BY id)) || (SELECT count(*) FROM products) || (SELECT count(*) FROM deliveries)
		FROM tickets t`
	before := one[string](t, b, everything)
	for name, change := range map[string]func() error{
		"one": func() error {
			id := one[uuid.UUID](t, b, `SELECT id FROM tickets WHERE order_number = '101'`)
			return b.store.ChangeTicket(t.Context(), tester, postgres.Retry, id)
		},
		"many": func() error {
			_, err := b.store.ChangeTickets(t.Context(), tester, postgres.Dismiss, postgres.Bulk{})
			return err
		},
		"keys": func() error { _, err := b.store.DeleteExpiredKeys(t.Context(), tester); return err },
		"partition": func() error {
			return b.store.DropPartition(t.Context(), tester, postgres.OldPartition{Name: "tickets_20261102_20261103"}, postgres.DropEven{Unfinished: true})
		},
	} {
		require.ErrorContains(t, change(), "full_disk", name)
		assert.Equal(t, before, one[string](t, b, everything), name)
	}
	exec(t, b, `ALTER TABLE audit DROP CONSTRAINT full_disk`)
	_, err := b.store.ChangeTickets(t.Context(), postgres.Person{Who: " "}, postgres.Retry, postgres.Bulk{})
	require.ErrorContains(t, err, "who")
	assert.Equal(t, before, one[string](t, b, everything), "nobody changes nothing")
}

func TestAudit_FiltersAndPages_AndARunIsOneChange(t *testing.T) {
	t.Parallel()
	b := setupDays(t, 3, 1000)
	exec(t, b, `UPDATE tickets SET status = 'ERROR', next_attempt_at = NULL`)
	var ids []uuid.UUID
	page, err := b.store.Tickets(t.Context(), postgres.TicketFilter{}, uuid.Nil, 3)
	require.NoError(t, err)
	for _, found := range page {
		ids = append(ids, found.ID)
		require.NoError(t, b.store.ChangeTicket(t.Context(), postgres.Person{Who: "a@b", Why: "because"}, postgres.Retry, found.ID))
	}
	_, err = b.store.ChangeTickets(t.Context(), tester, postgres.Dismiss, postgres.Bulk{})
	require.NoError(t, err)
	require.Equal(t, 6, one[int](t, b, `SELECT count(*) FROM audit`), "three tickets, and three batches")

	var seen []postgres.AuditRecord
	for after := int64(0); ; {
		page, err := b.store.Audit(t.Context(), postgres.AuditFilter{}, after, 1)
		require.NoError(t, err)
		if len(page) == 0 {
			break
		}
		seen, after = append(seen, page...), page[0].ID
	}
	require.Len(t, seen, 4)
	assert.Equal(t, []int64{2997, 1, 1, 1}, []int64{seen[0].Tickets, seen[1].Tickets, seen[2].Tickets, seen[3].Tickets})
	assert.EqualValues(t, 3, seen[0].Transactions)
	assert.True(t, seen[0].Until.After(seen[0].At))
	assert.NotContains(t, string(seen[0].Details), "run")
	assert.JSONEq(t, `{"id": "`+ids[2].String()+`"}`, string(seen[1].Filter))
	for want, filter := range map[int]postgres.AuditFilter{
		3: {Who: "a@b"}, 1: {Action: "tickets.dismiss"}, 4: {Action: "tickets"}, 0: {Since: time.Now().Add(time.Hour)},
	} {
		found, err := b.store.Audit(t.Context(), filter, 0, 10)
		require.NoError(t, err)
		assert.Len(t, found, want, "%+v", filter)
	}
	found, err := b.store.Audit(t.Context(), postgres.AuditFilter{Until: time.Now().Add(-time.Hour)}, 0, 10)
	require.NoError(t, err)
	assert.Empty(t, found)
	for _, sql := range []string{`UPDATE audit SET who = 'x'`, `DELETE FROM audit`, `TRUNCATE audit`} {
		_, err := b.pool.Exec(t.Context(), sql)
		require.ErrorContains(t, err, "only added", sql)
	}
}

// The rows of a run are found by their index, however many other rows there are.
func TestAudit_OfManyLongRuns_IsReadInAMoment(t *testing.T) {
	t.Parallel()
	b := setup(t)
	exec(t, b, `INSERT INTO audit (who, action, tickets, details) OVERRIDING SYSTEM VALUE
		SELECT 'x', 'tickets.retry', 1000, CASE WHEN i % 200 = 1 THEN '{}'::jsonb
			ELSE jsonb_build_object('run', i - (i + 199) % 200) END FROM generate_series(1, 100000) i`)
	rows := one[int](t, b, `SELECT count(*) FROM audit WHERE details ->> 'run' = '1'`)
	require.Equal(t, 199, rows)
	sql, args := postgres.AuditSQL(50)
	assert.Contains(t, plan(t, b, false, sql, args...), "audit_run")
	found, err := b.store.Audit(t.Context(), postgres.AuditFilter{}, 0, 50)
	require.NoError(t, err)
	require.Len(t, found, 50)
	assert.EqualValues(t, 200_000, found[0].Tickets)
}

func TestFollow_ReturnsEachTicketOnce_AlsoIfItIsCommittedLate(t *testing.T) {
	t.Parallel()
	b := setup(t)
	save(t, b, entry(t, body("before", "Café,a,2")))
	f := b.store.Follow(postgres.TicketFilter{Statuses: []ticket.Status{ticket.Treated}})
	var seen []string
	next := func() {
		require.NoError(t, f.Next(t.Context(), func(tickets []postgres.StoredTicket) error {
			for _, found := range tickets {
				seen = append(seen, found.OrderNumber)
			}
			return nil
		}))
	}
	next()
	assert.Empty(t, seen, "it begins")
	late := entry(t, body("late", "Café,a,2"))
	tx, err := b.pool.Begin(t.Context()) // its transaction began before those of others, and its ticket is older
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = tx.Exec(t.Context(), `INSERT INTO tickets (id, received_at, source, body, status, order_number, parser_version)
		VALUES ($1, $2, 's', $3, 'TREATED', 'late', 1)`, late.Ticket.ID, late.Ticket.ReceivedAt, late.Ticket.Body)
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `INSERT INTO outbox (kind, tickets) VALUES ('stored', uuid_send($1::uuid))`, late.Ticket.ID)
	require.NoError(t, err)
	save(t, b, entry(t, body("1", "Café,a,2")), entry(t, body("2", "Café,a,2")), entry(t, "no ticket"))
	next()
	assert.Equal(t, []string{"1", "2"}, seen)
	save(t, b, entry(t, body("3", "Café,a,2")))
	next()
	require.NoError(t, tx.Commit(t.Context()))
	next()
	next()
	assert.Equal(t, []string{"1", "2", "3", "late"}, seen)

	// A piece that could not be handed over is handed over again.
	save(t, b, entry(t, body("4", "Café,a,2")))
	require.Error(t, f.Next(t.Context(), func([]postgres.StoredTicket) error { return context.Canceled }))
	next()
	assert.Equal(t, []string{"1", "2", "3", "late", "4"}, seen)
}

func TestTickets_ByProductAndAmount(t *testing.T) {
	t.Parallel()
	b := setup(t)
	save(t, b, entry(t, body("1", "Café,a,2", `Thé,"a	b\c",3`)), entry(t, body("2", "Café,ab,2")), entry(t, body("3", "a,c,2")))
	exec(t, b, `UPDATE tickets SET total = order_number::numeric + 0.50`)
	fill(t, b)
	exec(t, b, `INSERT INTO tickets (id, received_at, source, body, status, order_number, lines) VALUES ('01a20763-46ee-7c43-b4d2-48ea8de705fe',
		now() - interval '1 hour', 's', '', 'TREATED', 'old', '[{"product": "x", "product_id": "old", "price": 1}]')`)
	for product, want := range map[string]string{"a": "1", "ab": "2", "c": "3", "a\tb\\c": "1", "2": "", "Café": "", "old": "old"} {
		assert.Equal(t, want, orders(t, b, postgres.TicketFilter{Product: product}), product)
	}
	assert.Equal(t, "1", orders(t, b, postgres.TicketFilter{Product: "a", Order: "1", Statuses: []ticket.Status{ticket.Treated}}))
	assert.Equal(t, "2", orders(t, b, postgres.TicketFilter{MinTotal: "2.5", MaxTotal: "2.50"}))
	assert.Equal(t, "3 2", orders(t, b, postgres.TicketFilter{MinTotal: "2"}))
	assert.Equal(t, "2 1", orders(t, b, postgres.TicketFilter{MaxTotal: "2.500"}))
}

// orders returns the order numbers of the tickets that a filter selects.
func orders(t *testing.T, b *testBundle, filter postgres.TicketFilter) string {
	t.Helper()
	found, err := b.store.Tickets(t.Context(), filter, uuid.Nil, 10)
	require.NoError(t, err)
	var numbers []string
	for _, f := range found {
		numbers = append(numbers, f.OrderNumber)
	}
	return strings.Join(numbers, " ")
}
