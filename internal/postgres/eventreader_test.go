package postgres_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/events"
	"myticket/internal/intake"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// readEvents reads and notes all that a subscription is to get, and returns the ids of the tickets. Transactions of other tests
// delay it, which are on the same server.
func readEvents(t *testing.T, b *testBundle, sub events.Subscription) (tickets []uuid.UUID) {
	t.Helper()
	reader := b.store.EventReader(subscribed(t, b, sub.Name), uuid.New())
	require.Eventually(t, func() bool {
		mine, err := reader.Take(t.Context())
		require.NoError(t, err)
		return mine
	}, 20*time.Second, 50*time.Millisecond)
	for subscriptionState(t, b, sub.Name).Waiting > 0 {
		chunk := nextChunk(t, reader)
		for _, e := range chunk.Events {
			tickets = append(tickets, e.Ticket)
		}
		require.NoError(t, reader.Done(t.Context(), chunk, events.Delivery{Delivered: len(chunk.Events)}))
	}
	require.NoError(t, reader.Leave(t.Context()))
	return tickets
}

// subscribed returns a subscription as a sender finds it.
func subscribed(t *testing.T, b *testBundle, name string) events.Subscribed {
	t.Helper()
	subs, err := b.store.Subscribed(t.Context(), uuid.New())
	require.NoError(t, err)
	i := slices.IndexFunc(subs, func(s events.Subscribed) bool { return s.Name == name })
	require.GreaterOrEqual(t, i, 0)
	return subs[i]
}

// nextChunk awaits what is next.
func nextChunk(t *testing.T, reader events.Reader) (chunk events.Chunk) {
	t.Helper()
	require.Eventually(t, func() bool {
		var err error
		chunk, err = reader.Next(t.Context(), events.ChunkTickets)
		require.NoError(t, err)
		return chunk.Place != nil
	}, 20*time.Second, 10*time.Millisecond)
	return chunk
}

func TestEventReader_AfterADumpAndARestore_GoesOnWhereItWas(t *testing.T) {
	t.Parallel()
	for name, ahead := range map[string]string{"higher": "1000000", "lower": "0"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			old := setup(t)
			sub := subscription("erp")
			sub.Filter.Types = []string{events.TicketTreated}
			require.NoError(t, old.store.CreateSubscription(t.Context(), tester, sub))
			var want []uuid.UUID
			for i := range 20 {
				e := entry(t, body(fmt.Sprint(100+i), "Café,a,2"))
				save(t, old, e)
				if i < 10 {
					require.Equal(t, []uuid.UUID{e.Ticket.ID}, readEvents(t, old, sub))
				} else {
					want = append(want, e.Ticket.ID)
				}
			}
			_, url := pgtest.NewServer(t)
			b := &testBundle{url: url, store: open(t, url), pool: openPool(t, url)}
			for _, table := range []string{"tickets", "outbox", "outbox_readers", "subscriptions"} {
				copyTable(t, old, b, table)
			}
			e := entry(t, body("200", "Café,a,2"))
			save(t, b, e)
			exec(t, b, `UPDATE outbox SET xid = (xid::text::numeric + `+ahead+`)::text::xid8
				WHERE xmin::text <> (xid::text::numeric % 4294967296)::text`)
			exec(t, b, `UPDATE outbox_readers SET xid = (xid::text::numeric + `+ahead+`)::text::xid8`)
			exec(t, b, `UPDATE outbox_readers SET held_until = '-infinity'`)
			assert.Equal(t, append(want, e.Ticket.ID), readEvents(t, b, sub), "in the order of the old cluster, and nothing twice")
		})
	}
}

func TestEventReader_OfAnotherProcess_MovesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	sub := subscription("erp")
	require.NoError(t, b.store.CreateSubscription(t.Context(), tester, sub))
	save(t, b, entry(t, body("1", "Café,a,2")))
	first, second := b.store.EventReader(subscribed(t, b, sub.Name), uuid.New()), b.store.EventReader(subscribed(t, b, sub.Name), uuid.New())
	mine, err := first.Take(t.Context())
	require.NoError(t, err)
	require.True(t, mine)
	mine, err = second.Take(t.Context())
	require.NoError(t, err)
	require.False(t, mine)
	chunk := nextChunk(t, first)
	require.Len(t, chunk.Events, 2, "the ticket and its product")

	exec(t, b, `UPDATE outbox_readers SET held_until = now() - interval '1 second'`)
	mine, err = second.Take(t.Context())
	require.NoError(t, err)
	require.True(t, mine)
	mine, err = first.Keep(t.Context())
	require.NoError(t, err)
	require.False(t, mine)
	require.ErrorIs(t, first.Done(t.Context(), chunk, events.Delivery{
		Delivered: 1, Dead: []events.DeadLetter{{Event: "e", Type: events.TicketTreated, Attempts: 1, Reason: "no"}},
	}), events.ErrLost)
	is := subscriptionState(t, b, "erp")
	assert.Zero(t, is.Delivered)
	assert.Zero(t, is.DeadLetters)
	assert.Equal(t, 1, is.Waiting)
	require.NoError(t, b.store.DeleteSubscription(t.Context(), tester, "erp"))
	mine, err = second.Keep(t.Context())
	require.NoError(t, err)
	assert.False(t, mine)
	_, err = second.Next(t.Context(), 1)
	require.ErrorIs(t, err, events.ErrLost)
}

func TestEventReader_OfASubscriptionThatChanged_MovesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	sub := subscription("erp")
	sub.Filter.Types = []string{events.TicketError}
	_, err := b.store.DeclareSubscriptions(t.Context(), tester, []events.Subscription{sub})
	require.NoError(t, err)
	reader := b.store.EventReader(subscribed(t, b, "erp"), uuid.New())
	mine, err := reader.Take(t.Context())
	require.NoError(t, err)
	require.True(t, mine)
	sub.Filter.Types = []string{events.TicketTreated}
	_, err = b.store.DeclareSubscriptions(t.Context(), tester, []events.Subscription{sub})
	require.NoError(t, err)
	e := entry(t, body("1", "Café,a,2"))
	save(t, b, e)
	chunk := nextChunk(t, reader)
	assert.Empty(t, chunk.Events)
	require.ErrorIs(t, reader.Done(t.Context(), chunk, events.Delivery{}), events.ErrLost)
	require.NoError(t, reader.Leave(t.Context()))
	assert.Equal(t, []uuid.UUID{e.Ticket.ID}, readEvents(t, b, sub))
}

// loseTransactions stores tickets, has them read, and fails over to a standby that has none of them. There another ticket is
// stored, in a transaction that has the number of one that was lost. The process that has read goes on, with connections to the
// new primary.
func loseTransactions(t *testing.T, p *pair, read func()) (b *testBundle, e *intake.Entry) {
	t.Helper()
	require.Eventually(t, func() bool {
		return one[bool](t, p.testBundle, `SELECT bool_and(replay_lsn >= pg_current_wal_insert_lsn()) FROM pg_stat_replication`)
	}, 20*time.Second, 10*time.Millisecond)
	require.NoError(t, p.standby.Kill())
	for i := range 50 {
		save(t, p.testBundle, entry(t, body(fmt.Sprint(i), "Café,a,2")))
	}
	awaitReadable(t, p.testBundle)
	read()
	require.NoError(t, p.primary.Kill())
	require.NoError(t, p.standby.Restart(t.Context()))
	require.NoError(t, p.standby.Promote(t.Context()))
	url := p.standby.URL(pgtest.Database)
	b = &testBundle{url: url, store: open(t, url), pool: openPool(t, url)}
	e = entry(t, body("99", "Café,a,2"))
	save(t, b, e)
	return b, e
}

func TestEventReader_AfterAFailoverThatLostTransactions_SkipsNothing(t *testing.T) {
	t.Parallel()
	p := setupPair(t)
	require.NoError(t, p.primary.RequireStandby(t.Context(), false))
	sub := subscription("erp")
	sub.Filter.Types = []string{events.TicketTreated}
	require.NoError(t, p.store.CreateSubscription(t.Context(), tester, sub))
	me := uuid.New()
	reader := p.store.EventReader(subscribed(t, p.testBundle, "erp"), me)
	mine, err := reader.Take(t.Context())
	require.NoError(t, err)
	require.True(t, mine)
	var chunk events.Chunk
	b, e := loseTransactions(t, p, func() { chunk = nextChunk(t, reader) })
	err = b.store.EventReader(subscribed(t, b, "erp"), me).Done(t.Context(), chunk, events.Delivery{Delivered: len(chunk.Events)})
	require.ErrorIs(t, err, events.ErrLost)
	exec(t, b, `UPDATE outbox_readers SET held_until = '-infinity'`)
	assert.Equal(t, []uuid.UUID{e.Ticket.ID}, readEvents(t, b, sub))
}

func TestOrderLines_AfterAFailoverThatLostTransactions_AreThoseOfTheTicketsThatAreThere(t *testing.T) {
	t.Parallel()
	p := setupPair(t)
	require.NoError(t, p.primary.RequireStandby(t.Context(), false))
	_, err := p.store.EnsurePartitions(t.Context(), postgres.Day, 1, time.Now())
	require.NoError(t, err)
	save(t, p.testBundle, entry(t, body("first", "Café,a,2")))
	lines := postgres.NewOrderLines(postgres.OrderLinesConfig{}, p.store)
	fillAll(t, p.testBundle, lines)
	read, failOver, ended := make(chan struct{}), make(chan *postgres.Store), make(chan error, 1)
	b, _ := loseTransactions(t, p, func() {
		go func() {
			ended <- lines.FillAfter(t.Context(), func() *postgres.Store { close(read); return <-failOver })
		}()
		<-read
	})
	failOver <- b.store
	require.ErrorIs(t, <-ended, postgres.ErrNotReader)
	assert.Equal(t, []string{"first/1 a Café 2"}, lineTexts(t, b), "none of tickets that are lost")
	fillAll(t, b, lines)
	assert.Equal(t, []string{"99/1 a Café 2", "first/1 a Café 2"}, lineTexts(t, b))
}

// TestEventReader_ManyLongTickets: a chunk has a bound in bytes, too.
func TestEventReader_ManyLongTickets_AreSeveralChunks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	sub := subscription("erp")
	sub.Filter.Types = []string{events.TicketTreated, events.TicketError} // so many lines are not read
	require.NoError(t, b.store.CreateSubscription(t.Context(), tester, sub))
	var lines []string
	for i := range 20_000 {
		lines = append(lines, fmt.Sprintf("%040d,a,2", i))
	}
	var want []uuid.UUID
	for i := range 5 {
		e := entry(t, body(fmt.Sprint(i+1), lines...))
		want = append(want, e.Ticket.ID)
		save(t, b, e)
	}
	reader := b.store.EventReader(subscribed(t, b, sub.Name), uuid.New())
	_, err := reader.Take(t.Context())
	require.NoError(t, err)
	chunk := nextChunk(t, reader)
	assert.NotEmpty(t, chunk.Events)
	assert.LessOrEqual(t, len(chunk.Events), 2)
	require.NoError(t, reader.Leave(t.Context()))
	assert.Equal(t, want, readEvents(t, b, sub))
}

func TestEventReader_LongTicketsWithShortCorrections_AreSeveralChunks(t *testing.T) {
	t.Parallel()
	b := setup(t)
	sub := subscription("erp")
	sub.Body = true
	sub.Filter.Types = []string{events.TicketTreated, events.TicketError}
	require.NoError(t, b.store.CreateSubscription(t.Context(), tester, sub))
	for i := range 5 {
		save(t, b, entry(t, fmt.Sprint(i)+strings.Repeat("x", 1<<20-100)))
	}
	exec(t, b, `INSERT INTO corrections (ticket_received_at, ticket_id, number, text, who, why)
		SELECT received_at, id, 1, 'abc', 'w', 'y' FROM tickets`)
	exec(t, b, `UPDATE tickets SET correction = 1`)
	awaitReadable(t, b)
	reader := b.store.EventReader(subscribed(t, b, "erp"), uuid.New())
	_, err := reader.Take(t.Context())
	require.NoError(t, err)
	chunk := nextChunk(t, reader)
	assert.Len(t, chunk.Events, 2)
	require.NoError(t, reader.Leave(t.Context()))
	assert.Len(t, readEvents(t, b, sub), 5)
}

// TestEventReader_LongTicketsWithProducts: each ticket has one event, and so has each of its products, although a chunk ends early.
func TestEventReader_LongTicketsWithProducts_HaveEachOnce(t *testing.T) {
	t.Parallel()
	b := setup(t)
	sub := subscription("erp")
	sub.Body = true
	require.NoError(t, b.store.CreateSubscription(t.Context(), tester, sub))
	var want []string
	for i := range 5 {
		line := fmt.Sprintf("%s,a%d,2", strings.Repeat("x", 500), i)
		e := entry(t, body(fmt.Sprint(i+1), slices.Repeat([]string{line}, 2000)...))
		save(t, b, e)
		want = append(want, e.Ticket.ID.String()+" ", e.Ticket.ID.String()+" "+fmt.Sprintf("a%d", i))
	}
	awaitReadable(t, b)
	reader := b.store.EventReader(subscribed(t, b, "erp"), uuid.New())
	_, err := reader.Take(t.Context())
	require.NoError(t, err)
	var got []string
	for len(got) < len(want) {
		chunk := nextChunk(t, reader)
		tickets := map[uuid.UUID]bool{}
		for _, e := range chunk.Events {
			got = append(got, e.Ticket.String()+" "+e.Product)
			tickets[e.Ticket] = true
		}
		assert.Len(t, chunk.Events, 2*len(tickets), "each with its product")
		assert.Less(t, len(tickets), 5)
		require.NoError(t, reader.Done(t.Context(), chunk, events.Delivery{Delivered: len(chunk.Events)}))
	}
	assert.ElementsMatch(t, want, got)
}

func TestEventReader_KnowsHowManyTicketsAreBeingStored(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.NoError(t, b.store.CreateSubscription(t.Context(), tester, subscription("erp")))
	reader := b.store.EventReader(subscribed(t, b, "erp"), uuid.New())
	rate := func() float64 {
		is, err := reader.Storing(t.Context())
		require.NoError(t, err)
		return is
	}
	assert.Zero(t, rate(), "none was ever stored")
	batches := func(n, tickets int, ago string) {
		_, err := b.pool.Exec(t.Context(), `INSERT INTO outbox (kind, at, tickets)
			SELECT 'stored', clock_timestamp() - $1::interval, decode(repeat('00', 16 * $2), 'hex') FROM generate_series(1, $3)`, ago, tickets, n)
		require.NoError(t, err)
	}
	batches(16, 5000, "1.5 s")
	assert.Zero(t, rate(), "the burst is over, however many tickets it had")
	batches(16, 5000, "-1 hour")
	assert.Zero(t, rate(), "the clock was set back")
	soon := func(n int) { // it counts for a second
		require.Eventually(t, func() bool {
			batches(n, 5000, "0")
			return rate() >= 5000
		}, 30*time.Second, time.Millisecond)
	}
	soon(1) // the first of a burst
	soon(16)
	batches(16, 1, "0.1 s")
	assert.Less(t, rate(), 200.0, "the last batches have one ticket each")
}

// manyProducts stores a ticket with n products.
func manyProducts(t *testing.T, b *testBundle, n int) *intake.Entry {
	t.Helper()
	lines := make([]string, n)
	for i := range lines {
		lines[i] = fmt.Sprintf("Café,p%d,2", i)
	}
	e := entry(t, body("1", lines...))
	save(t, b, e)
	settle(t, b)
	require.Equal(t, n, one[int](t, b, `SELECT count(*) FROM products`))
	return e
}

// TestEventReader_TicketWithManyProducts: each chunk has a bound, whether the ticket is new, replayed, or its products are dead
// letters. A target that refuses more events of one ticket than dead letters are kept does not stop the subscription for ever.
func TestEventReader_TicketWithManyProducts_IsSeveralChunks(t *testing.T) {
	t.Parallel()
	const n = ticket.MaxLines // and so as many as dead letters are kept
	b := setup(t)
	sub := subscription("erp")
	require.NoError(t, b.store.CreateSubscription(t.Context(), tester, sub))
	manyProducts(t, b, n)
	after := entry(t, body("2", "Thé,other,2"))
	save(t, b, after)
	awaitReadable(t, b)
	reader := b.store.EventReader(subscribed(t, b, "erp"), uuid.New())
	_, err := reader.Take(t.Context())
	require.NoError(t, err)

	read := func(done func(events.Chunk)) map[string]int {
		got := map[string]int{}
		for got[after.Ticket.ID.String()+".1"] == 0 {
			chunk := nextChunk(t, reader)
			assert.LessOrEqual(t, len(chunk.Events), 5000)
			for _, e := range chunk.Events {
				got[e.ID]++
			}
			done(chunk)
		}
		return got
	}
	refused := func(chunk events.Chunk) {
		var d events.Delivery
		for _, e := range chunk.Events {
			d.Dead = append(d.Dead, events.DeadLetter{
				Event: e.ID, Type: e.Type, Ticket: e.Ticket, Product: e.Product, Attempts: 1, Reason: strings.Repeat("é", 1000),
			})
		}
		if err := reader.Done(t.Context(), chunk, d); err != nil { // of the ticket after it
			require.ErrorIs(t, err, events.ErrTooManyDeadLetters)
		}
	}
	got := read(refused)
	assert.Len(t, got, n+3)
	letters := subscriptionState(t, b, "erp").DeadLetters
	assert.Equal(t, n+1, letters, "those of the first ticket")
	require.NoError(t, reader.Leave(t.Context()))

	_, err = b.store.ReplayDeadLetters(t.Context(), tester, "erp", nil)
	require.NoError(t, err)
	reader = b.store.EventReader(subscribed(t, b, "erp"), uuid.New())
	_, err = reader.Take(t.Context())
	require.NoError(t, err)
	for letters > 0 {
		chunk := nextChunk(t, reader)
		assert.LessOrEqual(t, len(chunk.Events), 5000)
		require.NoError(t, reader.Done(t.Context(), chunk, events.Delivery{Delivered: len(chunk.Events)}))
		letters = subscriptionState(t, b, "erp").DeadLetters
	}
	require.NoError(t, reader.Leave(t.Context()))

	require.NoError(t, b.store.ReplaySubscription(t.Context(), tester, "erp", time.Now().Add(-time.Hour), time.Now().Add(time.Hour)))
	reader = b.store.EventReader(subscribed(t, b, "erp"), uuid.New())
	_, err = reader.Take(t.Context())
	require.NoError(t, err)
	again := read(func(chunk events.Chunk) {
		require.NoError(t, reader.Done(t.Context(), chunk, events.Delivery{Delivered: len(chunk.Events)}))
	})
	assert.Equal(t, got, again)
}

func TestOrderLines_OfTicketsThatPeopleChanged_StayAsTheyAre(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e, bad := entry(t, body("1", "Café,a,2")), entry(t, "unreadable")
	save(t, b, e, bad)
	fill(t, b)
	require.NoError(t, b.store.ChangeTicket(t.Context(), tester, postgres.Dismiss, bad.Ticket.ID))
	exec(t, b, `INSERT INTO outbox (kind, tickets) SELECT 'products', uuid_send(id) FROM tickets WHERE status = 'TREATED'`)
	fill(t, b)
	assert.Equal(t, []string{"1/1 a Café 2"}, lineTexts(t, b))
	require.Eventually(t, func() bool {
		fill(t, b)
		return one[bool](t, b, `SELECT (SELECT max(xid::text::bigint) FROM outbox) = (SELECT xid::text::bigint FROM outbox_readers)`)
	}, 20*time.Second, 50*time.Millisecond, "the rows are passed by")
	save(t, b, entry(t, body("2", "Café,a,2")))
	exec(t, b, `INSERT INTO outbox (kind, tickets) SELECT 'products', uuid_send(id) FROM tickets WHERE status = 'TREATED'`)
	fill(t, b)
	assert.Len(t, lineTexts(t, b), 2)
}

func TestDropPartition_OfATimeWhoseEventsAreNotDelivered_IsRefused(t *testing.T) {
	t.Parallel()
	b := setup(t)
	name := oldDay(t, b, 5, "TREATED")
	sub := subscription("erp")
	require.NoError(t, b.store.CreateSubscription(t.Context(), tester, sub))
	save(t, b, entry(t, body("1", "Café,a,2")))
	exec(t, b, `UPDATE outbox SET at = '2020-01-01'`)
	at := time.Now()
	found, err := b.store.OldPartitions(t.Context(), at)
	require.NoError(t, err)
	i := slices.IndexFunc(found, func(p postgres.OldPartition) bool { return p.Name == name })
	require.GreaterOrEqual(t, i, 0)
	assert.Equal(t, []string{"erp"}, found[i].Undelivered)
	err = b.store.DropPartition(t.Context(), tester, found[i], postgres.DropEven{Unfinished: true})
	require.ErrorIs(t, err, postgres.ErrUndelivered)
	require.ErrorContains(t, err, "erp")
	require.NoError(t, b.store.PauseSubscription(t.Context(), tester, "erp"))
	require.ErrorIs(t, b.store.DropPartition(t.Context(), tester, found[i], postgres.DropEven{}), postgres.ErrUndelivered)

	readEvents(t, b, sub)
	save(t, b, entry(t, body("2", "Café,a,2"))) // after the time of the partition
	found, err = b.store.OldPartitions(t.Context(), at)
	require.NoError(t, err)
	assert.Empty(t, found[i].Undelivered)
	require.NoError(t, b.store.DropPartition(t.Context(), tester, found[i], postgres.DropEven{}))
}

func TestDropPartition_EvenUndelivered_IsDropped(t *testing.T) {
	t.Parallel()
	b := setup(t)
	name := oldDay(t, b, 5, "TREATED")
	require.NoError(t, b.store.CreateSubscription(t.Context(), tester, subscription("erp")))
	save(t, b, entry(t, body("1", "Café,a,2")))
	exec(t, b, `UPDATE outbox SET at = '2020-01-01'`)
	require.NoError(t, b.store.DropPartition(t.Context(), tester, postgres.OldPartition{Name: name}, postgres.DropEven{Undelivered: true}))
}
