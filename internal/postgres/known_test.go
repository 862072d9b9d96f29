package postgres_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/intake"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// ago moves a delivery into the past.
func ago(e *intake.Entry, d time.Duration) *intake.Entry {
	return receivedAt(e, time.Now().Add(-d))
}

// lines returns how many lines of tickets needed no question to Postgres, and how many did.
func lines(t *testing.T, store *postgres.Store) (known, asked float64) {
	t.Helper()
	registry := prometheus.NewRegistry()
	store.Register(registry)
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, family := range families {
		if family.GetName() == "myticket_product_lines_total" {
			require.Len(t, family.GetMetric(), 2)
			return family.GetMetric()[1].GetCounter().GetValue(), family.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatal("there is no counter of lines")
	return 0, 0
}

// lockProducts locks the table of products until the returned function is called.
func lockProducts(t *testing.T, b *testBundle) (unlock func()) {
	t.Helper()
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `LOCK TABLE products IN ACCESS EXCLUSIVE MODE`)
	require.NoError(t, err)
	return func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }
}

// isWaitedFor reports whether a session waits for a lock of a table. Databases of other tests, copies of the same one, have tables
// with the same id.
func isWaitedFor(t *testing.T, b *testBundle, table string) bool {
	t.Helper()
	return one[bool](t, b, `SELECT EXISTS (SELECT FROM pg_locks JOIN pg_database AS d ON d.oid = database
		WHERE NOT granted AND relation = $1::text::regclass AND datname = current_database())`, table)
}

// asks reports whether storing a ticket asks Postgres about products.
func asks(t *testing.T, b *testBundle, entries ...*intake.Entry) bool {
	t.Helper()
	unlock := lockProducts(t, b)
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- trySave(ctx, b.store, entries...) }()
	for {
		select {
		case err := <-done:
			require.NoError(t, err)
			return false
		case <-time.After(5 * time.Millisecond):
		}
		if isWaitedFor(t, b, "products") {
			unlock()
			require.NoError(t, <-done)
			return true
		}
	}
}

func TestKnown_TicketThatOnlyConfirms_AsksNothingAboutProducts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := ago(entry(t, body("1", "Café,a,2.50", "Thé,b,3")), 20*time.Second)
	require.True(t, asks(t, b, first), "nothing is known yet")
	assert.False(t, asks(t, b, entry(t, body("2", "Thé,b,3", "Café,a,2.50")), entry(t, body("3", "Café,a,2.5"))), "all of it is known")
	assert.False(t, asks(t, b, keyed(t, "k", body("4", "Café,a,2.50"))), "with a key as well")
	assert.False(t, asks(t, b, entry(t, body("5", "x,c,1", "not a line"))), "what is not TREATED says nothing")
	known, asked := lines(t, b.store)
	assert.Equal(t, []float64{4, 2}, []float64{known, asked})

	for _, test := range []struct {
		why string
		e   *intake.Entry
	}{
		{"another price", entry(t, body("6", "Café,a,2.05"))},
		{"another name", entry(t, body("7", "The,b,3"))},
		{"another product", entry(t, body("8", "Café,a,2.50", "Eau,c,1"))},
		{"an older ticket", ago(entry(t, body("9", "Eau,c,1")), 30*time.Second)},
		{"a ticket that moves last_seen_at on", ago(entry(t, body("10", "Eau,c,1")), -2*time.Minute)},
	} {
		assert.True(t, asks(t, b, test.e), test.why)
	}
	assert.False(t, asks(t, b, entry(t, body("11", "Eau,c,1"))))
	b.store.Wait(26 * time.Second)
	assert.True(t, asks(t, b, entry(t, body("12", "Eau,c,1"))), "what was seen too long ago")
	assert.False(t, asks(t, b, entry(t, body("13", "Eau,c,1"))))
	assert.True(t, asks(t, &testBundle{store: open(t, b.url), pool: b.pool}, entry(t, body("14", "Eau,c,1"))), "by another server")
	settle(t, b)
	assertReplayed(t, b, nil)
}

// replayed is what all tickets say about a product, taken in their order.
type replayed struct {
	trusted           bool
	name, price       string
	firstSeen, newest time.Time
	from              map[string]string // what each ticket says
}

// assertReplayed compares the product base with a replay of all tickets in their order. Tickets of trusted sources overrule all
// others; nil for none.
func assertReplayed(t *testing.T, b *testBundle, trusted func(source string) bool) {
	t.Helper()
	want := map[string]*replayed{}
	rows, err := b.pool.Query(t.Context(), `SELECT id::text, received_at, source, body FROM tickets WHERE status = 'TREATED' ORDER BY id`)
	require.NoError(t, err)
	var id, source string
	var at time.Time
	var text []byte
	_, err = pgx.ForEachRow(rows, []any{&id, &at, &source, &text}, func() error {
		order, _ := ticket.Parse(text)
		for _, said := range order.Products() {
			is, rank := want[said.ID], trusted != nil && trusted(source)
			if is == nil {
				is = &replayed{firstSeen: at, trusted: rank}
				want[said.ID] = is
			}
			if is.trusted && !rank {
				continue
			}
			name, price := said.Name, said.Price.String()
			if is.trusted != rank || is.from == nil {
				is.from = map[string]string{}
			}
			is.trusted, is.name, is.price, is.newest = rank, name, price, at
			is.from[id] = name + " " + price
		}
		return nil
	})
	require.NoError(t, err)
	require.NotEmpty(t, want)
	assert.Equal(t, len(want), one[int](t, b, `SELECT count(*) FROM products`), "products")
	var name, price string
	var first, last time.Time
	var authenticated bool
	rows, err = b.pool.Query(t.Context(), `SELECT product_id, name, price::text, ticket_id::text, first_seen_at, last_seen_at, authenticated
		FROM products`)
	require.NoError(t, err)
	var product string
	_, err = pgx.ForEachRow(rows, []any{&product, &name, &price, &id, &first, &last, &authenticated}, func() error {
		is := want[product]
		if !assert.NotNil(t, is, "no ticket names %s", product) {
			return nil
		}
		assert.Equal(t, is.name+" "+is.price, name+" "+price, "name and price of %s", product)
		assert.Equal(t, is.trusted, authenticated, "rank of %s", product)
		assert.Equal(t, name+" "+price, is.from[id], "what the ticket says from which %s has its name and price", product)
		assert.True(t, is.firstSeen.Equal(first), "%s was first seen at %s, and not at %s", product, is.firstSeen, first)
		assert.False(t, last.After(is.newest) || !is.newest.Before(last.Add(time.Minute)),
			"%s was last seen at %s, which is not within the minute before %s", product, is.newest, last)
		return nil
	})
	require.NoError(t, err)
}

func TestKnown_NewestTicketOfABatchCounts_EvenIfItIsKnown(t *testing.T) {
	t.Parallel()
	b := setup(t)
	save(t, b, ago(entry(t, body("1", "Café,a,2", "Thé,b,1")), 20*time.Second))
	older, newer := ago(entry(t, body("2", "Café,a,3")), 10*time.Second), entry(t, body("3", "Thé,b,1", "Café,a,2"))
	save(t, b, newer, older)
	assert.Equal(t, "2", one[string](t, b, `SELECT price::text FROM products WHERE product_id = 'a'`))
	assert.Zero(t, one[int](t, b, `SELECT count(*) FROM products WHERE unsettled_from IS NOT NULL`))
	assertReplayed(t, b, nil)
}

func TestKnown_Ranks(t *testing.T) {
	t.Parallel()
	b := openWith(t, setup(t), true, map[string]postgres.SourcePolicy{"trusted": {Authenticated: true}})
	trusted := func(source string) bool { return source == "trusted" }
	at := func(source, body string, d time.Duration) *intake.Entry { return ago(from(t, source, body), d) }
	save(t, b, at("shop", body("1", "Café,a,2"), 20*time.Second))
	assert.False(t, asks(t, b, at("shop", body("2", "Café,a,2"), 0)))
	assert.True(t, asks(t, b, at("trusted", body("3", "Café,a,2"), 5*time.Second)), "a source of a higher rank says it")
	assert.False(t, asks(t, b, at("trusted", body("4", "Café,a,2"), 0)))
	assert.True(t, asks(t, b, at("shop", body("5", "Café,a,2"), 0)), "a source of a lower rank says it")
	settle(t, b)
	assertReplayed(t, b, trusted)
	assert.True(t, one[bool](t, b, `SELECT authenticated FROM products`))
}

// A ticket that confirms what another server has changed meanwhile is stored without a question. The second look finds it.
func TestKnown_ProductThatAnotherServerChanges_IsWhatTheNewestTicketSays(t *testing.T) {
	t.Parallel()
	for newest, at := range map[string]time.Duration{"2": 0, "3": 15 * time.Second} {
		b := setup(t)
		save(t, b, ago(entry(t, body("1", "Café,a,2")), 20*time.Second))
		require.NoError(t, trySave(t.Context(), open(t, b.url), ago(entry(t, body("2", "Café,a,3")), 10*time.Second)))
		assert.False(t, asks(t, b, ago(entry(t, body("3", "Café,a,2")), at)))
		assert.Equal(t, "3", one[string](t, b, `SELECT price::text FROM products`))
		settle(t, b)
		assert.Equal(t, newest, one[string](t, b, `SELECT price::text FROM products`))
		assertReplayed(t, b, nil)
	}
}

// The server looks at what it knows, and is paused. Meanwhile another one changes the product, and the second look finds no
// newer ticket, because this one is not there yet.
func TestKnown_ServerThatWasPaused_AsksAgain(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]func(*testing.T, *intake.Entry){
		"plain":    func(*testing.T, *intake.Entry) {},
		"with key": func(_ *testing.T, e *intake.Entry) { e.Key, e.KeyExpiresAt = "k", time.Now().Add(time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			other := &testBundle{url: b.url, store: open(t, b.url), pool: b.pool}
			save(t, b, ago(entry(t, body("1", "Café,a,2")), 20*time.Second))
			b.store.Pause(2 * time.Minute)
			save(t, other, ago(entry(t, body("2", "Café,a,3")), 10*time.Second))
			settle(t, b)
			paused := entry(t, body("3", "Café,a,2"))
			make(t, paused)
			outcomes := save(t, b, paused)
			assert.Equal(t, ticket.Treated, outcomes[0].Status, "it is not the ticket's fault")
			known, _ := lines(t, b.store)
			require.NotZero(t, known, "it relied on what it knew")
			settle(t, b)
			assertReplayed(t, b, nil)
			assert.Equal(t, 3, one[int](t, b, `SELECT count(*) FROM tickets`))
			assert.False(t, asks(t, b, entry(t, body("4", "Café,a,2"))), "it knows what it saw then")
		})
	}
}

func TestKnown_AnotherPostgresServer_IsAskedAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	save(t, b, ago(entry(t, body("1", "Café,a,2")), 20*time.Second))
	b.store.Elsewhere()
	exec(t, b, `DELETE FROM products`)
	exec(t, b, `DELETE FROM tickets`)
	save(t, b, entry(t, body("2", "Café,a,2")))
	assertReplayed(t, b, nil)
}

func TestKnown_Failover_NothingIsKnownAfterIt(t *testing.T) {
	t.Parallel()
	p := setupPair(t)
	both := strings.Replace(p.url, "/myticket", ","+strings.SplitN(strings.SplitN(p.standby.URL("x"), "@", 2)[1], "/", 2)[0]+"/myticket", 1)
	p.store = open(t, both)
	save(t, p.testBundle, ago(entry(t, body("1", "Café,a,2")), 20*time.Second))
	assert.False(t, asks(t, p.testBundle, entry(t, body("2", "Café,a,2"))))
	b := p.failOver(t)
	exec(t, b, `ALTER SYSTEM SET synchronous_standby_names = ''`)
	exec(t, b, `SELECT pg_reload_conf()`)
	exec(t, b, `DELETE FROM products`) // as if the standby had not got it
	exec(t, b, `DELETE FROM tickets`)
	require.Eventually(t, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		return trySave(ctx, p.store, entry(t, body("3", "Café,a,2"))) == nil
	}, 30*time.Second, 50*time.Millisecond)
	assertReplayed(t, b, nil)
}

func TestKnown_NothingOfATransactionThatIsNotKnownToBeCommitted(t *testing.T) {
	t.Parallel()
	p := setupPair(t)
	b := p.testBundle
	exec(t, b, `CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$;
		CREATE CONSTRAINT TRIGGER no AFTER INSERT ON deliveries DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION no();
		CREATE CONSTRAINT TRIGGER no AFTER INSERT ON products DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION no()`)
	e := ago(entry(t, body("1", "Café,a,2")), 20*time.Second)
	k := ago(keyed(t, "k", body("2", "Café,a,2")), 20*time.Second)
	require.ErrorIs(t, trySave(t.Context(), b.store, e), ticket.ErrRefused, "rolled back at its commit")
	require.ErrorIs(t, trySave(t.Context(), b.store, k), ticket.ErrRefused, "rolled back at its commit")
	assert.Zero(t, b.store.Known())
	exec(t, b, `DROP FUNCTION no CASCADE`)

	require.NoError(t, p.standby.Kill())
	briefly(t, "a commit whose end is not known", func(ctx context.Context) error { return trySave(ctx, b.store, e) })
	briefly(t, "the same with a key", func(ctx context.Context) error { return trySave(ctx, b.store, k) })
	assert.Zero(t, b.store.Known())
	require.NoError(t, p.standby.Restart(t.Context()))
	save(t, b, e, k)
	save(t, b, entry(t, body("3", "Café,a,2")))
	assert.Equal(t, 1, b.store.Known())
	settle(t, b)
	assertReplayed(t, b, nil)
}

// A late ticket of a product that no ticket has named for a while must bring it back if it is pruned at that moment.
func TestKnown_ProductThatMayBePruned_IsNotRemembered(t *testing.T) {
	t.Parallel()
	b := setup(t)
	save(t, b, ago(from(t, "junk", body("1", "x,a,1")), 15*time.Minute), ago(entry(t, body("2", "x,b,1")), 8*time.Minute))
	assert.Equal(t, 1, b.store.Known(), "b")
	save(t, b, ago(from(t, "junk", body("3", "x,a,1")), 15*time.Minute))
	assert.Equal(t, 1, b.store.Known(), "b")
	pruned, err := b.store.PruneProducts(t.Context(), tester, postgres.PruneSelection{Filter: postgres.TicketFilter{Sources: []string{"junk"}}}, 1000, false)
	require.NoError(t, err)
	require.Equal(t, 1, pruned.Products)
	exec(t, b, `DELETE FROM tickets WHERE source = 'junk'`)
	late := ago(entry(t, body("4", "x,a,1")), 15*time.Minute)
	assert.True(t, asks(t, b, late))
	assertReplayed(t, b, nil)
}

// Several servers store tickets in random order, some minutes of them after another. Between those minutes, some servers are
// paused, and the products are settled, as they are a minute after a change.
func TestKnown_SeveralServers_ProductsAreAReplayOfAllTickets(t *testing.T) {
	t.Parallel()
	for _, ranked := range []bool{false, true} {
		t.Run(fmt.Sprint("ranked ", ranked), func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			trusted := func(source string) bool { return ranked && source == "trusted" }
			var servers []*testBundle
			for range 4 {
				servers = append(servers, openWith(t, b, ranked, map[string]postgres.SourcePolicy{"trusted": {Authenticated: true}}))
			}
			r := rand.New(rand.NewPCG(3, 3))
			for phases := 4; phases > 0; phases-- {
				saveInRandomOrderBy(t, servers, r, ticketsOf(t, r, time.Duration(phases)*40*time.Second))
				// More than a minute passes. Every transaction that relied on what it knew has ended, or is refused.
				for _, server := range servers {
					if r.IntN(2) == 0 {
						server.store.Pause(2 * time.Minute)
					} else {
						server.store.Wait(2 * time.Minute)
					}
				}
				settle(t, servers[0]) // b knows no ranks
			}
			var known, asked float64
			for _, server := range servers {
				k, a := lines(t, server.store)
				known, asked = known+k, asked+a
			}
			require.Greater(t, known, 200.0, "of %g lines", known+asked)
			t.Logf("%g lines were known, %g were asked about", known, asked)
			settle(t, servers[0])
			assertReplayed(t, b, trusted)
		})
	}
}

// ticketsOf returns tickets of 40 seconds that few products and few prices make interesting.
func ticketsOf(t *testing.T, r *rand.Rand, d time.Duration) []*intake.Entry {
	t.Helper()
	var entries []*intake.Entry
	for i := range 300 {
		var lines []string
		for range 1 + r.IntN(4) {
			p, price := r.IntN(8), 1
			if r.IntN(10) == 0 { // mostly they confirm
				price = 1 + r.IntN(3)
			}
			lines = append(lines, fmt.Sprintf("Product %d,p%d,%d", p, p, price))
		}
		source := "shop"
		if r.IntN(4) == 0 {
			source = "trusted"
		}
		entries = append(entries, ago(from(t, source, body(strconv.Itoa(i), lines...)), d-time.Duration(r.IntN(40_000))*time.Millisecond))
	}
	return entries
}

// saveInRandomOrderBy stores entries in batches of five, by several servers at once.
func saveInRandomOrderBy(t *testing.T, servers []*testBundle, r *rand.Rand, entries []*intake.Entry) {
	t.Helper()
	r.Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
	batches := slices.Collect(slices.Chunk(entries, 5))
	var group sync.WaitGroup
	for i, server := range servers {
		group.Go(func() {
			for at := i; at < len(batches); at += len(servers) {
				if !assert.NoError(t, trySave(t.Context(), server.store, batches[at]...)) {
					return
				}
			}
		})
	}
	group.Wait()
}

func TestKnown_ProductsThatWereSeenTogether_AreNotAskedAboutTogether(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var products []string
	for i := range 200 {
		products = append(products, fmt.Sprintf("Café,p%d,2", i))
	}
	save(t, b, ago(entry(t, body("1", products...)), 20*time.Second))
	for _, test := range []struct{ after, least, most float64 }{{10, 0, 0}, {20, 40, 160}, {30, 200, 200}} {
		again := open(t, b.url)
		require.NoError(t, trySave(t.Context(), again, ago(entry(t, body("2", products...)), 10*time.Second)))
		again.Wait(time.Duration(test.after) * time.Second)
		_, before := lines(t, again)
		require.NoError(t, trySave(t.Context(), again, entry(t, body("3", products...))))
		_, asked := lines(t, again)
		assert.GreaterOrEqual(t, asked-before, test.least, "after %g s", test.after)
		assert.LessOrEqual(t, asked-before, test.most, "after %g s", test.after)
	}
}

func TestKnown_BrokenConnection_NothingIsKnownAfterIt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	save(t, b, ago(entry(t, body("1", "Café,a,2", "Thé,b,3")), 20*time.Second))
	require.Equal(t, 2, b.store.Known())
	exec(t, b, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND application_name = 'myticket' AND pid <> pg_backend_pid()`)
	save(t, b, entry(t, body("2", "Café,a,2")))
	assert.Zero(t, b.store.Known())
}

func TestKnown_MemoryIsBounded(t *testing.T) {
	t.Parallel()
	store := open(t, "postgres://nowhere")
	assert.Zero(t, store.Known())
	most := postgres.KnownProductsBytes / int(postgres.KnownProductSize)
	store.RememberMany(100_000)
	assert.Greater(t, store.Known(), 95_000, "nearly all find a place")
	store.RememberMany(2 * most)
	assert.LessOrEqual(t, store.Known(), most)
	assert.Equal(t, 32, int(postgres.KnownProductSize), "docs/server.md")
}

func TestStore_TransactionThatIsNotEnded_IsEndedByPostgres(t *testing.T) {
	t.Parallel()
	value, err := setup(t).store.Setting(t.Context(), "idle_in_transaction_session_timeout")
	require.NoError(t, err)
	assert.Equal(t, "10s", value)
}

// shop returns batches of tickets of 40 lines over 100,000 products, and tickets that name each product once.
func shop(b *testing.B) (all []*intake.Entry, batch func() []*intake.Entry) {
	b.Helper()
	const products, perTicket = 100_000, 40
	line := func(i int) string { return fmt.Sprintf("Product number %d,%08d,%d.%02d", i, i, i%90, i%100) }
	for from := 0; from < products; from += perTicket {
		var lines []string
		for i := range perTicket {
			lines = append(lines, line(from+i))
		}
		all = append(all, ago(entry(b, body("1", lines...)), 10*time.Second))
	}
	r := rand.New(rand.NewPCG(1, 1))
	return all, func() (entries []*intake.Entry) {
		for range 128 {
			lines := make([]string, perTicket)
			for i := range lines {
				lines[i] = line(r.IntN(products))
			}
			entries = append(entries, entry(b, body("1", lines...)))
		}
		return entries
	}
}

// BenchmarkSave stores batches of 128 tickets of 40 lines over 100,000 products.
func BenchmarkSave(b *testing.B) {
	all, batch := shop(b)
	for _, known := range []bool{true, false} {
		b.Run(fmt.Sprintf("known=%t", known), func(b *testing.B) {
			store, err := postgres.Open(b.Context(), postgres.Config{URL: pgtest.New(b)})
			require.NoError(b, err)
			defer store.Close()
			for entries := range slices.Chunk(all, 100) {
				require.NoError(b, trySave(b.Context(), store, entries...))
			}
			for b.Loop() {
				b.StopTimer()
				entries := batch()
				if !known {
					store.Forget()
				}
				b.StartTimer()
				require.NoError(b, trySave(b.Context(), store, entries...))
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/128, "µs/ticket")
		})
	}
}

// BenchmarkNews is the server's part of it, before anything is sent.
func BenchmarkNews(b *testing.B) {
	all, batch := shop(b)
	store, err := postgres.Open(b.Context(), postgres.Config{URL: pgtest.New(b)})
	require.NoError(b, err)
	defer store.Close()
	for entries := range slices.Chunk(all, 100) {
		require.NoError(b, trySave(b.Context(), store, entries...))
	}
	var batches [32][]*ticket.Ticket // more products than a processor's cache holds, as in a shop
	for i := range batches {
		for _, e := range batch() {
			batches[i] = append(batches[i], &e.Ticket)
		}
	}
	for _, known := range []bool{true, false} {
		b.Run(fmt.Sprintf("known=%t", known), func(b *testing.B) {
			b.ReportAllocs()
			if !known {
				store.Forget()
			}
			products, i := 0, 0
			for b.Loop() {
				products, _ = store.News(batches[i%len(batches)])
				i++
			}
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/128, "µs/ticket")
			b.ReportMetric(float64(products), "asked")
		})
	}
}
