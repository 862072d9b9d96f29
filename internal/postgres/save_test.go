package postgres_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/ticket"
	"myticket/internal/treatment"
)

func TestSave_StoresWhatWasSentAndWhatWasRead(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := entry(t, "Order: 7\nVAT: 3.10\nTotal: 16.90\nTill: \"3\"\n\nproduct,product_id,price,qty\nCaf\xe9 \"x\",IZ8z,2.00,1\n")
	e.Ticket.Source, e.Ticket.Traceparent = "shop-1", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	require.Empty(t, e.Ticket.Problems)
	save(t, b, e)

	rows, err := b.pool.Query(t.Context(), `SELECT id::text, received_at, source, body, content_type, traceparent, status,
		problems, order_number, vat::text, total::text, extra::text, lines::text, parser_version, attempts FROM tickets`)
	require.NoError(t, err)
	got, err := pgx.CollectExactlyOneRow(rows, pgx.RowToMap)
	require.NoError(t, err)
	received, ok := got["received_at"].(time.Time)
	require.True(t, ok)
	got["received_at"] = received.UTC()
	assert.Equal(t, map[string]any{
		"id": e.Ticket.ID.String(), "received_at": ticket.IDTime(e.Ticket.ID), "source": "shop-1",
		"body": e.Ticket.Body, "content_type": "text/plain", "traceparent": e.Ticket.Traceparent,
		"status": "TREATED", "problems": nil, "order_number": "7", "vat": "3.10", "total": "16.90",
		"extra":          `[{"name": "Till", "value": "\"3\""}]`,
		"lines":          nil, // the body has them
		"parser_version": int16(ticket.ParserVersion), "attempts": int16(0),
	}, got)
	assert.Equal(t, "stored "+e.Ticket.ID.String(), one[string](t, b, `SELECT kind || ' ' || encode(tickets, 'hex')::uuid FROM outbox`))
}

func TestSave_SentAgain_StoresOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	entries := []*intake.Entry{entry(t, body("1", "Café,a,2")), entry(t, body("2", "Café,a,2")), entry(t, "no ticket")}
	keyed := entry(t, body("3", "Thé,b,3"))
	keyed.Key, keyed.KeyExpiresAt, keyed.BodySHA256 = "k", time.Now().Add(time.Hour), sha256.Sum256(keyed.Ticket.Body)
	entries = append(entries, keyed)

	save(t, b, entries[:2]...) // a part that was committed, as seen by a caller who never got the answer
	save(t, b, entries...)
	outcomes := save(t, b, entries...)

	assert.Equal(t, 4, one[int](t, b, `SELECT count(*) FROM tickets`))
	assert.Equal(t, 4, one[int](t, b, `SELECT count(DISTINCT id) FROM tickets`))
	assert.Equal(t, intake.Outcome{ID: keyed.Ticket.ID, Status: ticket.Treated}, outcomes[3], "its own delivery is no duplicate of itself")
}

func TestSave_SameKeyTwiceInOneBatch(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first, second, other := entry(t, body("1", "Café,a,2")), entry(t, body("1", "Café,a,2")), entry(t, body("2", "Café,a,2"))
	for _, e := range []*intake.Entry{first, second, other} {
		e.Key, e.KeyExpiresAt, e.BodySHA256 = "k", time.Now().Add(time.Hour), sha256.Sum256(e.Ticket.Body)
	}
	for range 2 { // the second time, as after a lost answer
		assert.Equal(t, []intake.Outcome{
			{ID: first.Ticket.ID, Status: ticket.Treated},
			{ID: first.Ticket.ID, Status: ticket.Treated, Duplicate: true},
			{KeyReused: true},
		}, save(t, b, first, second, other))
		assert.Equal(t, 1, one[int](t, b, `SELECT count(*) FROM tickets`))
	}
}

func TestSave_ContentThatPostgresRefuses_StoresNothingAndSaysSo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	exec(t, b, `ALTER TABLE tickets ADD CONSTRAINT no_poison CHECK (order_number <> 'POISON')`)
	err := trySave(t.Context(), b.store, entry(t, body("1", "Café,a,2")), entry(t, body("POISON", "Thé,b,3")))
	require.ErrorIs(t, err, ticket.ErrRefused)
	assert.Zero(t, one[int](t, b, `SELECT count(*) FROM tickets`))
	assert.Zero(t, one[int](t, b, `SELECT count(*) FROM products`))
}

func TestSave_HotProductsThatDoNotChange_WaitForNoBatch(t *testing.T) {
	t.Parallel()
	b := setup(t)
	save(t, b, entry(t, body("1", "Café,a,2", "Thé,b,3")))
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = tx.Exec(t.Context(), `SELECT FROM products FOR UPDATE`)
	require.NoError(t, err)

	// While another session holds the rows, tickets that only confirm them are stored.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	require.NoError(t, trySave(ctx, b.store, entry(t, body("2", "Café,a,2", "Thé,b,3"))),
		"a ticket waited for a product about which it says nothing new")
}

func TestSave_32WritersOfTheSameTenProducts_NeverDeadlock(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var group sync.WaitGroup
	for writer := range 32 {
		group.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(writer)))
			for i := range 12 {
				var entries []*intake.Entry
				for range 4 {
					var lines []string
					for _, p := range r.Perm(10) { // each in another order, each with another price
						lines = append(lines, fmt.Sprintf("Product %d,p%d,%d.%02d", p, p, r.IntN(50), i))
					}
					entries = append(entries, entry(t, body(fmt.Sprint(writer, "-", i), lines...)))
				}
				if !assert.NoError(t, trySave(t.Context(), b.store, entries...)) {
					return
				}
			}
		})
	}
	group.Wait()
	assert.Equal(t, 32*12*4, one[int](t, b, `SELECT count(*) FROM tickets`))
	// Retried deadlocks would be hidden: Postgres counts them.
	assert.Zero(t, one[int](t, b, `SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()`))
	settle(t, b)
	assertReplayed(t, b, nil)
}

func TestProducts_NewestTicketCounts_InWhateverOrderTicketsCome(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var entries []*intake.Entry
	r := rand.New(rand.NewPCG(2, 2))
	for i := range 400 { // few products and few prices, so that confirmations and changes mix
		var lines []string
		for range 1 + r.IntN(4) {
			p := r.IntN(8)
			lines = append(lines, fmt.Sprintf("Product %d,p%d,%d", p, p, r.IntN(3)))
		}
		entries = append(entries, entry(t, body(strconv.Itoa(i), lines...)))
	}
	saveInRandomOrder(t, b, r, entries)
	settle(t, b)
	assertReplayed(t, b, nil)
}

func TestProducts_LateTicketDoesNotOverruleANewerOneThatChangedNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first, late, confirming := entry(t, body("1", "Café,a,2")), entry(t, body("2", "Café,a,3")), entry(t, body("3", "Café,a,2"))
	save(t, b, first)
	save(t, b, confirming) // finds nothing new, and so writes nothing
	save(t, b, late)
	settle(t, b)
	assert.Equal(t, "2", one[string](t, b, `SELECT price::text FROM products`))
	assert.Zero(t, one[int](t, b, `SELECT count(*) FROM products WHERE unsettled_from IS NOT NULL`))

	// After more than a minute, last_seen_at alone stops it.
	exec(t, b, `UPDATE products SET last_seen_at = last_seen_at + interval '1 hour'`)
	save(t, b, entry(t, body("4", "Café,a,9")))
	assert.Equal(t, "2", one[string](t, b, `SELECT price::text FROM products`))
}

func TestProducts_FirstAndLastSeen(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old, recent := entry(t, body("1", "Café,a,2")), entry(t, body("2", "Café,a,2"))
	hour := time.Hour.Milliseconds()
	for i := range 6 { // old's id and time are an hour back
		ms := old.Ticket.ReceivedAt.UnixMilli() - hour
		old.Ticket.ID[i] = byte(ms >> (40 - 8*i))
	}
	old.Ticket.ReceivedAt = ticket.IDTime(old.Ticket.ID)
	save(t, b, recent)
	save(t, b, old)
	first := one[time.Time](t, b, `SELECT first_seen_at FROM products`)
	assert.True(t, first.Equal(old.Ticket.ReceivedAt), "first_seen_at is %s", first)
	assert.Equal(t, recent.Ticket.ID.String(), one[string](t, b, `SELECT ticket_id::text FROM products`))
	later := entry(t, body("3", "Café,a,2"))
	exec(t, b, `UPDATE products SET last_seen_at = last_seen_at - interval '61 seconds'`)
	require.NoError(t, trySave(t.Context(), open(t, b.url), later)) // by a server that remembers nothing
	last := one[time.Time](t, b, `SELECT last_seen_at FROM products`)
	assert.True(t, last.Equal(later.Ticket.ReceivedAt), "last_seen_at is %s", last)
}

func settle(t *testing.T, b *testBundle) {
	t.Helper()
	for range 100 {
		n, err := b.store.SettleProducts(t.Context(), 0, 1000)
		require.NoError(t, err)
		if n == 0 {
			return
		}
	}
	t.Fatal("products are still unsettled after 100 rounds")
}

// saveInRandomOrder stores entries in batches of five, from four writers at once.
func saveInRandomOrder(t *testing.T, b *testBundle, r *rand.Rand, entries []*intake.Entry) {
	t.Helper()
	r.Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
	batches := slices.Collect(slices.Chunk(entries, 5))
	var group sync.WaitGroup
	for writer := range 4 {
		group.Go(func() {
			for i := writer; i < len(batches); i += 4 {
				if !assert.NoError(t, trySave(t.Context(), b.store, batches[i]...)) {
					return
				}
			}
		})
	}
	group.Wait()
}

// keyTTL is how long the keys of receivedAt are kept.
const keyTTL = time.Hour

// receivedAt moves a delivery, with its id and its key, to another time.
func receivedAt(e *intake.Entry, at time.Time) *intake.Entry {
	ms := at.UnixMilli()
	for i := range 6 {
		e.Ticket.ID[i] = byte(ms >> (40 - 8*i))
	}
	e.Ticket.ReceivedAt = ticket.IDTime(e.Ticket.ID)
	e.KeyExpiresAt = e.Ticket.ReceivedAt.Add(keyTTL)
	return e
}

func TestSave_OneKey_IsOneDeliveryOnlyWithinItsTimeToLive_HoweverLateItIsStored(t *testing.T) {
	t.Parallel()
	b := setup(t)
	const ttl = keyTTL
	for name, when := range map[string]time.Time{
		"long ago": time.Now().Add(-240 * time.Hour), "now": time.Now(), "by a clock that is ahead": time.Now().Add(240 * time.Hour),
	} {
		for order, permutation := range [][]int{{0, 1, 2, 3, 4}, {4, 3, 2, 1, 0}, {2, 0, 4, 1, 3}} {
			for _, together := range []bool{true, false} {
				what := fmt.Sprintf("%s, order %d, together: %t", name, order, together)
				delivery := func(after time.Duration) *intake.Entry {
					return receivedAt(keyed(t, what, body("1", "Café,a,2")), when.Add(after))
				}
				// The second is the first one again, and the last is the fourth one again.
				all := []*intake.Entry{delivery(0), delivery(ttl / 4), delivery(ttl * 3 / 2), delivery(ttl * 3), delivery(ttl*4 - 1*time.Millisecond)}
				for _, e := range all {
					e.Ticket.Source = "s"
				}
				batch := []*intake.Entry{}
				for _, i := range permutation {
					batch = append(batch, all[i])
				}
				batches := [][]*intake.Entry{batch}
				if !together {
					batches = slices.Collect(slices.Chunk(batch, 1))
				}
				for _, entries := range batches {
					save(t, b, entries...)
					save(t, b, entries...) // as after an answer that was lost
				}
				stored := func(e *intake.Entry) bool {
					return one[bool](t, b, `SELECT EXISTS (SELECT FROM tickets WHERE id = $1)`, e.Ticket.ID)
				}
				assert.True(t, stored(all[2]), "%s: no other delivery is near", what)
				assert.True(t, stored(all[3]) || stored(all[4]), what)
				assert.True(t, stored(all[0]) || stored(all[1]), what)
				if order == 0 || together {
					assert.True(t, stored(all[0]) && stored(all[3]), what)
					assert.False(t, stored(all[1]) || stored(all[4]), "%s: it is the same delivery as the one before", what)
				}
				holder := one[string](t, b, `SELECT ticket_id::text FROM deliveries WHERE key = $1`, what)
				assert.Contains(t, []string{all[3].Ticket.ID.String(), all[4].Ticket.ID.String()}, holder, "%s: the newest holds the key", what)
				other := receivedAt(keyed(t, what, body("2", "Café,a,2")), when.Add(ttl*7/2))
				other.Ticket.Source = "s"
				assert.True(t, save(t, b, other)[0].KeyReused, what)
			}
		}
	}
}

// A ticket may say that it is of the time in which its key was another one's. Its key counts from the moment at which it came.
func TestSave_KeyOfATicketThatSaysWhenItWas_CountsFromItsArrival(t *testing.T) {
	t.Parallel()
	b := setup(t)
	now := time.Now()
	timed := func(came, at time.Time, order string) *intake.Entry {
		e := receivedAt(keyed(t, "k", body(order, "Café,a,2")), came)
		e.CameAt = e.Ticket.ReceivedAt
		e.Ticket.ID, e.Ticket.ReceivedAt = ticket.IDAt(e.Ticket.ID, at)
		return e
	}
	first := timed(now.Add(-3*time.Hour), now.Add(-4*time.Hour), "1")
	again := timed(now.Add(-150*time.Minute), now.Add(-200*time.Hour), "1")
	later := timed(now.Add(-time.Minute), now.Add(-170*time.Minute), "1")
	other := timed(now, now.Add(-300*time.Hour), "2")
	save(t, b, first)
	assert.True(t, save(t, b, again)[0].Duplicate)
	assert.False(t, save(t, b, later)[0].Duplicate, "the key had expired when it came")
	assert.True(t, save(t, b, other)[0].KeyReused)
	assert.Equal(t, 2, one[int](t, b, `SELECT count(*) FROM tickets`))

	exec(t, b, `DELETE FROM deliveries`)
	exec(t, b, `DELETE FROM tickets`)
	outcomes := save(t, b, later, again, first) // as they come from a spool
	assert.Equal(t, []bool{false, true, false}, []bool{outcomes[0].Duplicate, outcomes[1].Duplicate, outcomes[2].Duplicate})
	assert.Equal(t, first.Ticket.ID, outcomes[1].ID)
}

func TestSave_UniqueIndexOfAnOperator_LetsNoTicketVanish(t *testing.T) {
	t.Parallel()
	b := setup(t)
	exec(t, b, `CREATE UNIQUE INDEX ON tickets_default (order_number)`)
	save(t, b, entry(t, body("1", "Café,a,2")))
	second := entry(t, body("1", "Café,a,2"))
	require.ErrorIs(t, trySave(t.Context(), b.store, second), ticket.ErrRefused,
		"a ticket that is not stored must not be answered as if it were")
	assert.Equal(t, 1, one[int](t, b, `SELECT count(*) FROM tickets`))
}

func TestSettleProducts_ProductWhoseTicketsAreGone_IsSettledAndKeepsWhatItHas(t *testing.T) {
	t.Parallel()
	b := setup(t)
	save(t, b, entry(t, body("1", "Café,a,2", "Thé,b,3")))
	save(t, b, entry(t, body("2", "Café,a,4", "Thé,b,5")))
	exec(t, b, `DELETE FROM tickets`)
	settle(t, b)
	assert.Zero(t, one[int](t, b, `SELECT count(*) FROM products WHERE unsettled_from IS NOT NULL`))
	assert.Equal(t, "4 5", one[string](t, b, `SELECT string_agg(price::text, ' ' ORDER BY product_id) FROM products`))
}

func TestParams_OfNothing_AreArraysThatPostgresTakes(t *testing.T) {
	t.Parallel()
	require.NoError(t, setup(t).store.StoreNothing(t.Context()))
}

func TestSettleProducts_OneThatCannotBeSettled_KeepsNoOtherFromIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var first, second []*intake.Entry
	for i := range 7 {
		first = append(first, entry(t, body(strconv.Itoa(i), fmt.Sprintf("Café,p%d,2", i))))
	}
	late := entry(t, body("late", "Café,p0,3", "Café,p1,3", "Café,p2,3", "Café,p3,3", "Café,p4,3", "Café,p5,3", "Café,p6,3"))
	for i := range 7 {
		second = append(second, entry(t, body(strconv.Itoa(i), fmt.Sprintf("Café,p%d,2", i))))
	}
	save(t, b, first...)
	save(t, b, second...) // find nothing new, and so write nothing
	save(t, b, late)
	exec(t, b, `CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		IF NEW.product_id = 'p0' AND NEW.unsettled_from IS NULL THEN RAISE 'not this one'; END IF; RETURN NEW; END $$;
		CREATE TRIGGER no BEFORE UPDATE ON products FOR EACH ROW EXECUTE FUNCTION no()`)
	var failures []error
	// A product that was put off is due again after the same time as one that changed. Without any, p0 would always be the first.
	require.Eventually(t, func() bool {
		if _, err := b.store.SettleProducts(t.Context(), 100*time.Millisecond, 1000); err != nil {
			failures = append(failures, err)
		}
		return len(failures) > 0 && one[int](t, b, `SELECT count(*) FROM products WHERE unsettled_from IS NOT NULL`) == 1
	}, time.Minute, 5*time.Millisecond)
	require.NotEmpty(t, failures)
	require.ErrorContains(t, failures[0], `"p0"`)
	assert.Equal(t, "p0", one[string](t, b, `SELECT string_agg(product_id, ' ' ORDER BY product_id) FROM products WHERE unsettled_from IS NOT NULL`))
	assert.Equal(t, 7, one[int](t, b, `SELECT count(*) FROM products WHERE price = 2`))
	exec(t, b, `DROP TRIGGER no ON products`)
	settle(t, b)
	assertReplayed(t, b, nil)
}

// TestSettleProducts_OfATicketThatSaysItIsOld: it came a moment ago, so its products are not tried less often.
func TestSettleProducts_OfATicketThatSaysItIsOld_AreNotPutOffForAsLong(t *testing.T) {
	t.Parallel()
	b := setup(t)
	save(t, b, entryAt(t, time.Now().Add(-500*time.Hour), body("1", "Café,a,1")))
	save(t, b, entryAt(t, time.Now().Add(-480*time.Hour), body("2", "Café,a,2")))
	exec(t, b, `ALTER TABLE products ADD CONSTRAINT no CHECK (unsettled_from IS NOT NULL)`)
	_, err := b.store.SettleProducts(t.Context(), 0, 1000)
	require.Error(t, err)
	assert.Less(t, one[float64](t, b, `SELECT extract(epoch FROM unsettled_from - now())::float8 FROM products`), 3601.0)
}

// TestSettleProducts_MinuteThatTakesTooLongToRead: anyone may send many long tickets after a product has changed.
func TestSettleProducts_MinuteThatTakesTooLongToRead_KeepsNoOtherFromIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	start := time.Now().Add(-10 * time.Minute)
	var lines []string
	for i := range 1000 { // in Windows-1252, which takes the longest to read
		lines = append(lines, fmt.Sprintf("Caf\xe9,long%d,\"1\"", i)+strings.Repeat(" ", 1000))
	}
	long := body("long", lines...)
	save(t, b, entryAt(t, start, body("1", "Café,early0,2", "Café,early1,2", "Café,later,2")))
	for i := range 2 {
		save(t, b, entryAt(t, start.Add(time.Minute), body("2", fmt.Sprintf("Café,early%d,3", i))))
	}
	for i := range 25 {
		var entries []*intake.Entry
		for j := range 8 {
			entries = append(entries, entryAt(t, start.Add(time.Minute+time.Duration(8*i+j+1)*100*time.Millisecond), long))
		}
		save(t, b, entries...)
	}
	save(t, b, entryAt(t, start.Add(5*time.Minute), body("3", "Café,later,3")))
	require.Equal(t, 3, one[int](t, b, `SELECT count(*) FROM products WHERE unsettled_from IS NOT NULL`))
	var failures []error
	for range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if _, err := b.store.SettleProducts(ctx, 0, 1000); err != nil {
			failures = append(failures, err)
		}
		cancel()
	}
	require.NotEmpty(t, failures)
	assert.Equal(t, "early0 early1",
		one[string](t, b, `SELECT string_agg(product_id, ' ' ORDER BY product_id) FROM products WHERE unsettled_from IS NOT NULL`), "%v", failures)
	assert.Greater(t, one[float64](t, b, `SELECT extract(epoch FROM min(unsettled_from) - now())::float8 FROM products`), 400.0,
		"they are tried again after a time that grows")
}

func TestSettleProducts_LastLineOfTheNewestTicketCounts_HoweverManyLinesItHas(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var lines []string
	for i := range 2500 { // more than are fetched at once
		lines = append(lines, fmt.Sprintf("Café,a,%d", i))
	}
	first, late, newest := entry(t, body("1", "Café,a,2499")), entry(t, body("2", "Café,a,1")), entry(t, body("3", lines...))
	save(t, b, first)
	save(t, b, newest)
	save(t, b, late)
	settle(t, b)
	assertReplayed(t, b, nil)
	assert.Equal(t, "2499", one[string](t, b, `SELECT price::text FROM products`))
}

// A lease is counted by the clock that says when it is over, whatever the server's own clock says.
func TestSave_Unread_IsClaimedByPostgresClock(t *testing.T) {
	t.Parallel()
	b := setup(t)
	mine, free := entry(t, "mine"), entry(t, "free")
	begin := one[time.Time](t, b, `SELECT now()`)
	toTreat := func(e *intake.Entry) []intake.Outcome {
		return []intake.Outcome{{ID: e.Ticket.ID, Status: ticket.ToTreat}}
	}
	require.Equal(t, toTreat(mine), saveBatch(t, b, intake.Batch{Entries: []*intake.Entry{mine}, Unread: true, ClaimFor: time.Hour}))
	require.Equal(t, toTreat(free), saveBatch(t, b, intake.Batch{Entries: []*intake.Entry{free}, Unread: true}))
	end := one[time.Time](t, b, `SELECT now()`)
	due := one[time.Time](t, b, `SELECT next_attempt_at FROM tickets WHERE body = 'mine'`)
	assert.WithinRange(t, due, begin.Add(time.Hour), end.Add(time.Hour))
	due = one[time.Time](t, b, `SELECT next_attempt_at FROM tickets WHERE body = 'free'`)
	assert.WithinRange(t, due, begin, end)
	assert.Equal(t, 2, one[int](t, b, `SELECT count(*) FROM tickets
		WHERE attempts = 1 AND parser_version = 0 AND status = 'TO_TREAT' AND lines IS NULL AND problems IS NULL`))
}

func TestClaim_TicketsOfAClockThatWasAhead_AreTreatedAsSoonAsTheClockIsRight(t *testing.T) {
	t.Parallel()
	b := setup(t)
	saveBatch(t, b, intake.Batch{Entries: []*intake.Entry{entry(t, "ahead")}, Unread: true})
	saveBatch(t, b, intake.Batch{Entries: []*intake.Entry{entry(t, "claimed")}, Unread: true, ClaimFor: time.Hour})
	exec(t, b, `UPDATE tickets SET next_attempt_at = next_attempt_at + interval '2 days' WHERE body = 'ahead'`)
	var claims []treatment.Claim
	for range 2 { // the first finds nothing that is due
		var err error
		claims, err = b.store.Claim(t.Context(), 10, time.Hour)
		require.NoError(t, err)
	}
	require.Len(t, claims, 1)
	assert.Equal(t, "ahead", string(claims[0].Ticket.Body))
}

func TestSettleProducts_MarkOfAClockThatWasAhead_IsSettledAsSoonAsTheClockIsRight(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first, late := entry(t, body("1", "Café,a,2")), entry(t, body("2", "Café,a,3"))
	save(t, b, first)
	save(t, b, entry(t, body("3", "Café,a,2"))) // finds nothing new, and so writes nothing
	save(t, b, late)
	require.Equal(t, "3", one[string](t, b, `SELECT price::text FROM products`))
	exec(t, b, `UPDATE products SET unsettled_from = unsettled_from + interval '2 days' WHERE unsettled_from IS NOT NULL`)
	require.Eventually(t, func() bool {
		_, err := b.store.SettleProducts(t.Context(), 100*time.Millisecond, 1000)
		require.NoError(t, err)
		return one[string](t, b, `SELECT price::text FROM products`) == "2"
	}, 10*time.Second, 50*time.Millisecond)
}

// TestSave_AgainInAnotherDialect: the answer to COMMIT was lost, and the spool's drain reads the ticket in a newer dialect. It stays as
// it was stored, so what was read now says nothing about products.
func TestSave_AgainInAnotherDialect_SaysWhatWasStored(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := entry(t, body("1", "x,a,1"))
	save(t, b, e)
	again := *e
	again.Ticket.Dialect = 7
	again.Ticket.Order, _ = ticket.Parse([]byte(body("1", "x,b,1")))
	save(t, b, &again)
	assert.Equal(t, []string{"a x 1"}, productTexts(t, b))
}
