package postgres_test

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/intake"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// fillLines fills order lines once, as far as that is possible now.
func fillLines(t *testing.T, lines *postgres.OrderLines) {
	t.Helper()
	for more := true; more; {
		var err error
		more, err = lines.Round(t.Context())
		require.NoError(t, err)
	}
}

// fill fills all order lines, by a server that follows on all others. Transactions of other tests hold it up for a moment,
// because transactions are those of a whole cluster.
func fill(t *testing.T, b *testBundle) {
	t.Helper()
	exec(t, b, `UPDATE outbox_readers SET held_until = '-infinity'`)
	fillAll(t, b, postgres.NewOrderLines(postgres.OrderLinesConfig{}, b.store))
}

func fillAll(t *testing.T, b *testBundle, lines *postgres.OrderLines) {
	t.Helper()
	require.Eventually(t, func() bool {
		fillLines(t, lines)
		return waiting(t, b) == 0
	}, time.Minute, 10*time.Millisecond)
}

// A plan that is forbidden, and has to be used all the same, has an enormous cost, but little work.
func TestStore_PlanThatIsForbidden_IsNotCompiled(t *testing.T) {
	t.Parallel()
	plan, err := setup(t).store.ExplainSteady(t.Context(), `SELECT id, claims + 1 FROM tickets ORDER BY claims`)
	require.NoError(t, err)
	assert.Contains(t, plan, "Sort")
	assert.NotContains(t, plan, "JIT")
}

// awaitReadable waits until no transaction is open any more that began before the newest row of the outbox.
func awaitReadable(t *testing.T, b *testBundle) {
	t.Helper()
	require.Eventually(t, func() bool {
		return one[bool](t, b, `SELECT bool_and(xid < pg_snapshot_xmin(pg_current_snapshot())) FROM outbox`)
	}, time.Minute, 10*time.Millisecond)
}

func waiting(t *testing.T, b *testBundle) int {
	t.Helper()
	have, err := b.store.OrderLinesBacklog(t.Context())
	require.NoError(t, err)
	return have.Tickets
}

// lineTexts returns order_lines as texts: order/line product_id product price.
func lineTexts(t *testing.T, b *testBundle) []string {
	t.Helper()
	rows, err := b.pool.Query(t.Context(), `SELECT concat_ws(' ', order_number || '/' || line, product_id, product, price::text)
		FROM order_lines ORDER BY order_number, line`)
	require.NoError(t, err)
	texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return texts
}

// entryAt is an entry that was received at a time.
func entryAt(t *testing.T, at time.Time, body string) *intake.Entry {
	t.Helper()
	e := entry(t, body)
	ids := ticket.IDs{Now: func() time.Time { return at }}
	var err error
	e.Ticket.ID, e.Ticket.ReceivedAt, err = ids.New()
	require.NoError(t, err)
	return e
}

func TestOrderLines_OfEveryTicketThatIsTreated_HoweverItCame(t *testing.T) {
	t.Parallel()
	b := setup(t)
	_, err := b.store.EnsurePartitions(t.Context(), postgres.Day, 1, time.Now())
	require.NoError(t, err)
	save(t, b, entry(t, body("1", "Café,a,2", "Thé,b,3.50")), entry(t, body("2", "Café,a,2")), entry(t, "no ticket"))
	fill(t, b)
	assert.Equal(t, []string{"1/1 a Café 2", "1/2 b Thé 3.50", "2/1 a Café 2"}, lineTexts(t, b))

	// Late: drained from a spool long after newer ones, into partitions that are not made yet.
	save(t, b, entryAt(t, time.Now().AddDate(0, 0, -40), body("3", "Pain,c,1")), entryAt(t, time.Now().AddDate(0, 0, 40), body("4", "Pain,c,1")))
	// Unread at first, and read later.
	unread := entry(t, body("5", "Lait,d,1.10"))
	outcomes := saveBatch(t, b, intake.Batch{Entries: []*intake.Entry{unread}, Unread: true})
	require.Equal(t, ticket.ToTreat, outcomes[0].Status)
	fill(t, b)
	assert.Equal(t, []string{"1/1 a Café 2", "1/2 b Thé 3.50", "2/1 a Café 2", "3/1 c Pain 1", "4/1 c Pain 1"}, lineTexts(t, b))
	claims, err := b.store.Claim(t.Context(), 10, time.Minute)
	require.NoError(t, err)
	require.Len(t, claims, 1)
	claims[0].Ticket.Order, claims[0].Ticket.Problems = ticket.Parse(claims[0].Ticket.Body)
	claims[0].Ticket.Status = ticket.Treated
	_, _, err = b.store.Finish(t.Context(), claims[0])
	require.NoError(t, err)
	fill(t, b)
	assert.Contains(t, lineTexts(t, b), "5/1 d Lait 1.10")
	assert.Equal(t, 5, one[int](t, b, `SELECT count(*) FROM ticket_lines`), "ERROR has no lines")
}

func TestOrderLines_TicketsThatAreMoved_WhenTheReaderHasPassedThem(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const strays = 6000
	stray := make([]*intake.Entry, strays)
	for i := range stray {
		stray[i] = entryAt(t, strayDay.Add(time.Duration(i)*time.Second), body(fmt.Sprint(i), "Café,a,2"))
	}
	save(t, b, stray...)
	_, err := b.store.EnsurePartitions(t.Context(), postgres.Day, 0, time.Now())
	require.NoError(t, err)
	require.Equal(t, 1, strayTables(t, b))
	fill(t, b)
	require.Zero(t, one[int](t, b, `SELECT count(*) FROM ticket_lines`), "they are not in tickets")
	require.Equal(t, strays, moveAll(t, b))
	require.Equal(t, strays, waiting(t, b))
	fill(t, b)
	assert.Equal(t, strays, one[int](t, b, `SELECT count(DISTINCT ticket_id) FROM order_lines`))
}

// TestOrderLines_TicketsThatAreMovedAtThatMoment: the reader waits for the transaction that moves them out of the default
// partition, and was planned before it ended.
func TestOrderLines_TicketsThatAreMovedAtThatMoment_AreFound(t *testing.T) {
	t.Parallel()
	b := setup(t)
	save(t, b, entryAt(t, strayDay, body("1", "Café,a,2")))
	fill(t, b) // so that statements are prepared and their partitions there
	save(t, b, entryAt(t, strayDay, body("2", "Café,a,2")))
	awaitReadable(t, b)
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	for _, sql := range []string{ // what EnsurePartitions does
		`LOCK TABLE ONLY tickets_default IN ACCESS EXCLUSIVE MODE`,
		`CREATE TABLE moved_to (LIKE tickets INCLUDING ALL)`,
		`WITH moved AS (DELETE FROM tickets_default RETURNING *) INSERT INTO moved_to SELECT * FROM moved`,
		`ALTER TABLE tickets ATTACH PARTITION moved_to FOR VALUES FROM ('2026-03-01 00:00:00Z') TO ('2026-03-02 00:00:00Z')`,
	} {
		_, err := tx.Exec(t.Context(), sql)
		require.NoError(t, err, sql)
	}
	exec(t, b, `UPDATE outbox_readers SET held_until = '-infinity'`)
	done, lines := make(chan error, 1), postgres.NewOrderLines(postgres.OrderLinesConfig{}, open(t, b.url))
	go func() {
		_, err := lines.Round(t.Context())
		done <- err
	}()
	awaitWaiting(t, b)
	require.NoError(t, tx.Commit(t.Context()))
	require.NoError(t, <-done)
	assert.Equal(t, []string{"1/1 a Café 2", "2/1 a Café 2"}, lineTexts(t, b))
}

func TestOrderLines_TextsAsTheyWere(t *testing.T) {
	t.Parallel()
	b := setup(t)
	names := []string{
		"tab\there", "new\nline", `back\slash`, `\t`, `\n`, `\s`, `\\t`, "\\\t\\\n\\", `ends\`, "\ttab first", "\r\nCRLF", "a,b;c", `"quoted"`, "Ünï→", "   x",
	}
	var rows []string
	for i, name := range names {
		rows = append(rows, fmt.Sprintf(`"%s","id %d%s",%d.50`, strings.ReplaceAll(name, `"`, `""`), i, strings.Trim(name, " \t\r\n,;\""), i))
	}
	e := entry(t, body("1", rows...))
	require.Empty(t, e.Ticket.Problems)
	save(t, b, e)
	fill(t, b)
	read, err := b.pool.Query(t.Context(), `SELECT line, product, product_id, price::text FROM order_lines ORDER BY line`)
	require.NoError(t, err)
	type line struct {
		N               int
		Name, ID, Price string
	}
	got, err := pgx.CollectRows(read, pgx.RowToStructByPos[line])
	require.NoError(t, err)
	require.Len(t, got, len(names))
	special := 0
	for i, want := range e.Ticket.Order.Lines {
		assert.Equal(t, line{i + 1, want.Name, want.ProductID, want.Price.String()}, got[i])
		if strings.ContainsAny(want.Name, "\t\n\\") {
			special++
		}
	}
	assert.GreaterOrEqual(t, special, 9, "the parser left too few of the characters that matter here")
}

func TestOrderLines_OldRowsAreShown_AndNotFilledAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	save(t, b, entry(t, body("1", "Café,a,2")), entry(t, body("2", "Café,a,2")))
	exec(t, b, `UPDATE tickets SET lines = '[{"product": "Old", "product_id": "o", "price": 2.00}]' WHERE order_number = '1'`)
	fill(t, b)
	assert.Equal(t, []string{"1/1 o Old 2.00", "2/1 a Café 2"}, lineTexts(t, b))
}

func TestOrderLines_ReadAgain_EndInWhatTheBodiesSay(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for i := range 20 {
		save(t, b, entry(t, body(fmt.Sprint(100+i), "Café,a,2")), entry(t, body(fmt.Sprint(200+i), "Thé,b,3", "Café,a,2")))
	}
	fill(t, b)
	want := lineTexts(t, b)
	require.Len(t, want, 60)
	unchanged := one[string](t, b, `SELECT xmin::text FROM ticket_lines WHERE order_number = '119'`)
	exec(t, b, `UPDATE ticket_lines SET lines = E'x\t1\twrong' WHERE order_number = '101'`)
	exec(t, b, `DELETE FROM ticket_lines WHERE order_number = '203'`)
	exec(t, b, `UPDATE outbox_readers SET xid = '0'`) // as if the last steps were lost
	exec(t, b, `INSERT INTO outbox (kind, tickets) SELECT 'treated', tickets FROM outbox`)
	exec(t, b, `INSERT INTO outbox (kind, tickets) VALUES ('moved', '')`)
	fill(t, b)
	assert.Equal(t, want, lineTexts(t, b))
	assert.Equal(t, unchanged, one[string](t, b, `SELECT xmin::text FROM ticket_lines WHERE order_number = '119'`),
		"a row that is right is not written again")
}

func TestOrderLines_TransactionsThatCommitOutOfOrder_AreNotSkipped(t *testing.T) {
	t.Parallel()
	_, url := pgtest.NewServer(t) // other tests have no transactions there
	b := &testBundle{url: url, store: open(t, url), pool: openPool(t, url)}
	save(t, b, entry(t, body("1", "Café,a,2")))
	moved := entry(t, body("2", "Café,a,2"))
	save(t, b, moved)
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = tx.Exec(t.Context(), `INSERT INTO outbox (kind, tickets) VALUES ('stored', $1)`, moved.Ticket.ID[:])
	require.NoError(t, err)
	exec(t, b, `DELETE FROM outbox WHERE tickets = (SELECT uuid_send(id) FROM tickets WHERE order_number = '2')`)
	save(t, b, entry(t, body("3", "Café,a,2"))) // it is committed before the other one
	lines := postgres.NewOrderLines(postgres.OrderLinesConfig{}, b.store)
	fillLines(t, lines)
	assert.Equal(t, []string{"1/1 a Café 2"}, lineTexts(t, b), "the rest waits behind the open transaction")
	assert.Equal(t, 1, waiting(t, b), "what was committed and waits")
	require.NoError(t, tx.Commit(t.Context()))
	fillLines(t, lines)
	assert.Equal(t, []string{"1/1 a Café 2", "2/1 a Café 2", "3/1 a Café 2"}, lineTexts(t, b))
}

func TestOrderLines_ATicketThatPostgresRefuses_StopsNoOther(t *testing.T) {
	t.Parallel()
	b := setup(t)
	exec(t, b, `ALTER TABLE ticket_lines ADD CONSTRAINT no_poison CHECK (lines NOT LIKE '%poison%')`)
	var entries []*intake.Entry
	for i := range 100 {
		name := "Café"
		if i == 37 || i == 38 || i == 99 {
			name = "poison"
		}
		entries = append(entries, entry(t, body(fmt.Sprint(1000+i), name+",a,2")))
	}
	save(t, b, entries...)
	unreadable := entry(t, body("7", "Café,a,2"))
	unreadable.Ticket.Body = []byte("an older version has understood this")
	save(t, b, unreadable)
	registry := prometheus.NewRegistry()
	fillAll(t, b, postgres.NewOrderLines(postgres.OrderLinesConfig{Registry: registry}, b.store))
	assert.Len(t, lineTexts(t, b), 97)
	families, err := registry.Gather()
	require.NoError(t, err)
	require.Equal(t, "myticket_order_lines_failed_tickets_total", families[0].GetName())
	assert.InDelta(t, 4, families[0].GetMetric()[0].GetCounter().GetValue(), 0)
}

func TestOrderLines_LongTickets_InTransactionsOfBoundedSize(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var long strings.Builder
	long.WriteString(body("1"))
	for i := range 10_000 {
		fmt.Fprintf(&long, "%s,%d,2.50\n", strings.Repeat("x", 90), i)
	}
	require.Less(t, long.Len(), 1<<20)
	require.Greater(t, long.Len(), 1000_000)
	entries := []*intake.Entry{entry(t, body("0", "Café,a,2"))}
	for range 5 {
		entries = append(entries, entry(t, long.String()))
	}
	require.Empty(t, entries[1].Ticket.Problems)
	entries = append(entries, entry(t, body("2", "Café,a,2")))
	save(t, b, entries...)
	fill(t, b)
	assert.Equal(t, 50_002, one[int](t, b, `SELECT count(*) FROM order_lines`))
	assert.Equal(t, 10_000, one[int](t, b, `SELECT max(line)::int FROM order_lines WHERE price = 2.50 AND product_id = '9999'`))
	assert.GreaterOrEqual(t, one[int](t, b, `SELECT count(DISTINCT xmin::text) FROM ticket_lines`), 5)
}

// A clock that is wrong must not keep the place of a killed server for longer than it is wrong.
func TestOrderLines_ServerIsKilledAfterPostgresClockWasAhead_AnotherOneFollows(t *testing.T) {
	t.Parallel()
	b := setup(t)
	save(t, b, entry(t, body("1", "Café,a,2")))
	fillAll(t, b, postgres.NewOrderLines(postgres.OrderLinesConfig{}, b.store))
	exec(t, b, `UPDATE outbox_readers SET held_until = held_until + interval '2 days'`)
	save(t, b, entry(t, body("2", "Café,a,2")))
	awaitReadable(t, b)
	fillLines(t, postgres.NewOrderLines(postgres.OrderLinesConfig{}, open(t, b.url)))
	assert.Len(t, lineTexts(t, b), 2)
}

// TestOrderLines_OneServerAtATime: a killed one is followed, and what it had not filled is filled.
func TestOrderLines_OneServerAtATime_AndAnotherOneFollowsWhenItIsKilled(t *testing.T) {
	t.Parallel()
	b := setup(t)
	save(t, b, entry(t, body("1", "Café,a,2")))
	first := postgres.NewOrderLines(postgres.OrderLinesConfig{}, b.store)
	second := postgres.NewOrderLines(postgres.OrderLinesConfig{}, open(t, b.url))
	fillAll(t, b, first)
	save(t, b, entry(t, body("2", "Café,a,2")))
	awaitReadable(t, b)
	fillLines(t, second)
	require.Len(t, lineTexts(t, b), 1, "it is the first one's turn")
	held := one[float64](t, b, `SELECT extract(epoch FROM held_until - now())::float8 FROM outbox_readers`)
	require.InDelta(t, 10, held, 5, "a killed server is followed within seconds")
	require.Eventually(t, func() bool { // the first one does nothing any more
		fillLines(t, second)
		return len(lineTexts(t, b)) == 2
	}, 30*time.Second, 100*time.Millisecond)
	save(t, b, entry(t, body("3", "Café,a,2")))
	awaitReadable(t, b)
	fillLines(t, first)
	require.Len(t, lineTexts(t, b), 2, "it is the second one's turn now")

	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { second.Run(ctx) })
	require.Eventually(t, func() bool { return len(lineTexts(t, b)) == 3 }, 20*time.Second, 10*time.Millisecond)
	cancel()
	running.Wait()
	save(t, b, entry(t, body("4", "Café,a,2")))
	fillAll(t, b, first)
	require.Len(t, lineTexts(t, b), 4, "one that ends leaves its turn")
}

// TestOrderLines_PostgresIsKilled: a step does not wait for the disk, so some are lost, with their places.
func TestOrderLines_PostgresIsKilled_AndNoLineIsLost(t *testing.T) {
	t.Parallel()
	server, url := pgtest.NewServer(t)
	b := &testBundle{url: url, store: open(t, url), pool: openPool(t, url)}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running sync.WaitGroup
	running.Go(func() { postgres.NewOrderLines(postgres.OrderLinesConfig{}, b.store).Run(ctx) })
	const batches = 40
	for i := range batches {
		both := []*intake.Entry{entry(t, body(fmt.Sprint(1000+i), "Café,a,2")), entry(t, body(fmt.Sprint(2000+i), "Café,a,2"))}
		require.Eventually(t, func() bool { return trySave(t.Context(), b.store, both...) == nil }, 30*time.Second, 10*time.Millisecond)
		if i == batches/2 {
			require.Eventually(t, func() bool { return one[int](t, b, `SELECT count(*) FROM ticket_lines`) > 0 },
				20*time.Second, time.Millisecond)
			require.NoError(t, server.Kill())
			require.NoError(t, server.Restart(t.Context()))
		}
	}
	b.pool.Reset()
	require.Eventually(t, func() bool { return waiting(t, b) == 0 }, 60*time.Second, 10*time.Millisecond)
	cancel()
	running.Wait()
	assert.Len(t, lineTexts(t, b), 2*batches)
}

// TestOrderLines_SeveralAtOnce: a server that takes a step that another one has taken changes nothing.
func TestOrderLines_SeveralAtOnce_FillEachTicketOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const tickets = 400
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for range 4 {
		lines := postgres.NewOrderLines(postgres.OrderLinesConfig{}, b.store)
		running.Go(func() {
			for ctx.Err() == nil {
				_, err := lines.Round(ctx)
				assert.True(t, err == nil || ctx.Err() != nil, err)
			}
		})
	}
	running.Go(func() {
		for ctx.Err() == nil { // no turn lasts
			_, err := b.pool.Exec(ctx, `UPDATE outbox_readers SET held_until = '-infinity'`)
			assert.True(t, err == nil || ctx.Err() != nil, err)
		}
	})
	for i := range tickets {
		save(t, b, entry(t, body(fmt.Sprint(i), "Café,a,2")))
	}
	require.Eventually(t, func() bool { return one[int](t, b, `SELECT count(*) FROM order_lines`) == tickets },
		30*time.Second, 20*time.Millisecond)
	cancel()
	running.Wait()
	assert.Equal(t, tickets, one[int](t, b, `SELECT count(*) FROM order_lines`))
}

func TestOrderLines_ReadOnlyWhatTheyMust(t *testing.T) {
	t.Parallel()
	b := setupDays(t, 8, 2000)
	_, err := b.store.EnsureOutbox(t.Context())
	require.NoError(t, err)
	for day := range 3 {
		outboxDay(t, b, 3+day, 10)
	}
	exec(t, b, `DO $$ BEGIN
		EXECUTE format('ALTER DATABASE %I SET enable_bitmapscan = off', current_database());
		EXECUTE format('ALTER DATABASE %I SET enable_sort = off', current_database());
	END $$`)
	b.pool = openPool(t, b.url)
	for _, generic := range []bool{false, true} {
		for _, p := range []string{
			plan(t, b, generic, postgres.NextInOutboxSQL, "5", 64), plan(t, b, generic, postgres.OutboxBacklogSQL, "order_lines"),
		} {
			assert.Contains(t, p, "Index Scan using outbox_", p)
			assert.NotContains(t, p, "Seq Scan", p)
			assert.NotContains(t, p, "Sort (", p)
		}
		ids := one[[]uuid.UUID](t, b, `SELECT array_agg(id) FROM tickets WHERE order_number IN ('4001', '4005', '6009')`)
		times := one[[]time.Time](t, b, `SELECT array_agg(received_at) FROM tickets WHERE order_number IN ('4001', '4005', '6009')`)
		p := plan(t, b, generic, postgres.ReadForLinesSQL, times, ids, 1<<20)
		assert.Equal(t, []string{"20261104", "20261105"}, partitionsIn(p), p)
		assert.Contains(t, p, "pkey on tickets_20261104", p)
		assert.NotContains(t, p, "Seq Scan", p)
	}
}

// TestOrderLines_GiveWayToIntake: in a burst they take little of the time, and more the later they are.
func TestOrderLines_GiveWayToIntake_AndCatchUpAfterwards(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var busy atomic.Bool
	lines := postgres.NewOrderLines(postgres.OrderLinesConfig{Busy: busy.Load}, b.store)
	assert.Zero(t, lines.Yield(time.Second, time.Hour), "nothing is stored at the moment")
	busy.Store(true)
	const took = 10 * time.Millisecond
	assert.Equal(t, 9*took, lines.Yield(took, 0))
	assert.Equal(t, 9*took/2, lines.Yield(took, 30*time.Second))
	assert.Zero(t, lines.Yield(took, time.Minute), "an endless load does not hold them up for ever")
	assert.Zero(t, lines.Yield(took, time.Hour))
	assert.Less(t, lines.Yield(time.Hour, 0), 5*time.Second, "less than the time after which another server follows")

	var entries []*intake.Entry
	for i := range 3000 {
		entries = append(entries, entry(t, body(fmt.Sprint(i), "Café,a,2", "Thé,b,3")))
	}
	save(t, b, entries...)
	awaitReadable(t, b)
	round := func() time.Duration {
		exec(t, b, `TRUNCATE ticket_lines`)
		exec(t, b, `UPDATE outbox_readers SET xid = '0'`)
		start := time.Now()
		fillLines(t, lines)
		require.Equal(t, 6000, one[int](t, b, `SELECT count(*) FROM order_lines`))
		return time.Since(start)
	}
	busy.Store(false)
	fillLines(t, lines)
	alone := round()
	busy.Store(true)
	beside := round()
	assert.Greater(t, beside, 2*alone, "it has not given way")
}

// TestOrderLines_AfterADumpAndARestore: transactions of the other cluster are higher than all of this one.
// The tickets of a drained spool come in rows of a thousand, so what was read at once takes minutes if each transaction pauses.
func TestOrderLines_BecomeLateWhileTheyAreFilled_AndGiveWayNoLonger(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var entries []*intake.Entry
	for i := range 64 * 5 { // five transactions
		entries = append(entries, entry(t, body(fmt.Sprint(i), "Café,a,2")))
	}
	save(t, b, entries...)
	awaitReadable(t, b)

	clock, asked := time.Now(), 0
	lines := postgres.NewOrderLines(postgres.OrderLinesConfig{Busy: func() bool {
		if asked++; asked == 1 { // after the first transaction
			clock = clock.Add(time.Minute)
		}
		return asked > 1
	}}, b.store)
	lines.SetClock(func() time.Time {
		clock = clock.Add(time.Second) // so every pause is as long as pauses may be
		return clock
	})
	start := time.Now()
	fillLines(t, lines)
	require.Equal(t, 5, asked, "transactions")
	require.Equal(t, len(entries), one[int](t, b, `SELECT count(*) FROM order_lines`))
	require.Less(t, time.Since(start), 4*time.Second, "they are a minute late, and pause for two seconds after each transaction")
}

func TestOrderLines_AfterADumpAndARestore_GoOnWhereTheyWere(t *testing.T) {
	t.Parallel()
	for name, ahead := range map[string]string{"higher": "1000000", "lower": "0"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			old := setup(t)
			var entries []*intake.Entry
			for i := range 30 {
				entries = append(entries, entry(t, body(fmt.Sprint(100+i), "Café,a,2")))
				save(t, old, entries[i])
				if i == 9 {
					fill(t, old)
				}
			}
			_, url := pgtest.NewServer(t)
			b := &testBundle{url: url, store: open(t, url), pool: openPool(t, url)}
			for _, table := range []string{"tickets", "outbox", "ticket_lines", "outbox_readers"} {
				copyTable(t, old, b, table)
			}
			// The servers begin to work on the new cluster before any reader looks.
			save(t, b, entry(t, body("200", "Café,a,2")))
			exec(t, b, `UPDATE outbox SET xid = (xid::text::numeric + `+ahead+`)::text::xid8
				WHERE xmin::text <> (xid::text::numeric % 4294967296)::text`)
			exec(t, b, `UPDATE outbox_readers SET xid = (xid::text::numeric + `+ahead+`)::text::xid8`)
			fill(t, b)
			save(t, b, entry(t, body("201", "Café,a,2")))
			fill(t, b)
			assert.Len(t, lineTexts(t, b), 32)
			assert.Equal(t, 22, one[int](t, b, `SELECT count(*) FROM outbox`), "what was read there is not read again")
			assert.True(t, one[bool](t, b, `SELECT bool_and(xid < pg_snapshot_xmax(pg_current_snapshot())) FROM outbox`))
			assert.True(t, one[bool](t, b, `SELECT bool_and(system_identifier = (SELECT system_identifier FROM pg_control_system()))
				FROM outbox_readers`))
		})
	}
}

// copyTable copies a table as pg_dump and pg_restore do.
func copyTable(t *testing.T, from, to *testBundle, table string) {
	t.Helper()
	source, err := from.pool.Acquire(t.Context())
	require.NoError(t, err)
	defer source.Release()
	target, err := to.pool.Acquire(t.Context())
	require.NoError(t, err)
	defer target.Release()
	var text strings.Builder
	_, err = source.Conn().PgConn().CopyTo(t.Context(), &text, `COPY (SELECT * FROM `+table+`) TO STDOUT`)
	require.NoError(t, err)
	if table == "ticket_lines" {
		_, err = target.Exec(t.Context(), `CREATE TABLE all_lines PARTITION OF ticket_lines FOR VALUES FROM (MINVALUE) TO (MAXVALUE)`)
		require.NoError(t, err)
	}
	_, err = target.Conn().PgConn().CopyFrom(t.Context(), strings.NewReader(text.String()), `COPY `+table+` FROM STDIN`)
	require.NoError(t, err)
}
