package postgres_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
	"myticket/internal/treatment"
)

// aDay is a rate that adds nothing while a test runs.
const aDay = 1.0 / 86400

func entryOf(source string) string {
	if source == "named" || source == "trusted" {
		return source
	}
	return "other"
}

// openWith is a store on the same database with sources.
func openWith(t *testing.T, b *testBundle, ranked bool, policies map[string]postgres.SourcePolicy) *testBundle {
	t.Helper()
	for entry, policy := range policies {
		policy.Label = entry
		policies[entry] = policy
	}
	store, err := postgres.Open(t.Context(), postgres.Config{
		URL: b.url, MaxConns: 8, AuthenticatedProducts: ranked, Sources: postgres.Sources{Policies: policies, Entry: entryOf},
	})
	require.NoError(t, err)
	t.Cleanup(store.Close)
	return &testBundle{url: b.url, store: store, pool: b.pool}
}

func from(t *testing.T, source, body string) *intake.Entry {
	t.Helper()
	e := entry(t, body)
	e.Ticket.Source = source
	return e
}

func limited(t *testing.T, b *testBundle, source string) float64 {
	t.Helper()
	return counter(t, b, "myticket_new_products_limited_total", source)
}

// counter returns the value of a store's counter for a source.
func counter(t *testing.T, b *testBundle, name, source string) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	b.store.Register(registry)
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == name && m.GetLabel()[0].GetValue() == source {
				return m.GetCounter().GetValue()
			}
		}
	}
	return -1
}

func TestNewProducts_BeyondTheRate_TicketIsStoredAsError_AndOthersAreUntouched(t *testing.T) {
	t.Parallel()
	b := openWith(t, setup(t), false, map[string]postgres.SourcePolicy{
		"named": {NewProductsRate: aDay, NewProductsBurst: 3}, "other": {NewProductsRate: aDay, NewProductsBurst: 100},
	})
	assert.Zero(t, limited(t, b, "named"), "a counter is there before it counts")
	save(t, b, from(t, "named", body("1", "Café,a,2", "Thé,b,3")))
	save(t, b, from(t, "named", body("2", "Eau,c,1", "Lait,d,1"))) // overdraws: which products are new is known afterwards

	known := from(t, "named", body("3", "Café,a,4", "Lait,d,1"))
	stopped := from(t, "named", body("4", "Café,a,5", "Pain,e,1", "Sel,f,1"))
	other := from(t, "shop", body("5", "Miel,g,2"))
	same := from(t, "shop", body("6", "Pain,e,3"))
	unread := from(t, "named", "no ticket")
	outcomes := save(t, b, known, stopped, other, same, unread)
	for _, i := range []int{0, 2, 3} {
		assert.Equal(t, ticket.Treated, outcomes[i].Status, outcomes[i].Problems)
	}
	require.Equal(t, ticket.Error, outcomes[1].Status, "the sender is told")
	require.Len(t, outcomes[1].Problems, 1)
	assert.Equal(t, postgres.ProblemNewProducts, outcomes[1].Problems[0].Code)
	assert.Contains(t, outcomes[1].Problems[0].Message, `2 products that are not in the product base, first "e"`)
	assert.NotEqual(t, postgres.ProblemNewProducts, outcomes[4].Problems[0].Code)
	assert.Equal(t, "a4 b3 c1 d1 e3 g2", one[string](t, b, `SELECT string_agg(product_id || price, ' ' ORDER BY product_id) FROM products`))
	assert.Equal(t, 7, one[int](t, b, `SELECT count(*) FROM tickets`))
	stored, err := b.store.Ticket(t.Context(), stopped.Ticket.ID)
	require.NoError(t, err)
	assert.Equal(t, outcomes[1].Problems, stored.Problems)
	assert.Equal(t, stopped.Ticket.Body, stored.Body)
	assert.InDelta(t, 1, limited(t, b, "named"), 0)
	assert.InDelta(t, 0, limited(t, b, "other"), 0)

	// With a key, and again after a lost answer: the same.
	keyed := from(t, "named", body("7", "Riz,h,2"))
	keyed.Key, keyed.KeyExpiresAt = "k", time.Now().Add(time.Hour)
	assert.Equal(t, ticket.Error, save(t, b, keyed)[0].Status)
	again := from(t, "named", body("7", "Riz,h,2"))
	again.Key, again.KeyExpiresAt = "k", time.Now().Add(time.Hour)
	outcome := save(t, b, again)[0]
	require.True(t, outcome.Duplicate)
	assert.Equal(t, ticket.Error, outcome.Status)
	assert.InDelta(t, 2, limited(t, b, "named"), 0, "what was not stored is not judged")
}

func TestNewProducts_TicketThatIsSentBack_IsTreatedOnceTheLimitIsRaised(t *testing.T) {
	t.Parallel()
	b := openWith(t, setup(t), false, map[string]postgres.SourcePolicy{"named": {NewProductsRate: aDay, NewProductsBurst: 1}})
	stopped := from(t, "named", body("2", "Thé,b,3"))
	save(t, b, from(t, "named", body("1", "Café,a,2")))
	require.Equal(t, ticket.Error, save(t, b, stopped)[0].Status)

	treat := func(b *testBundle) {
		done, err := b.store.ChangeTickets(t.Context(), tester, postgres.Retry,
			postgres.Bulk{Filter: postgres.TicketFilter{Problems: []string{postgres.ProblemNewProducts}}})
		require.NoError(t, err)
		require.Equal(t, 1, done.Tickets)
		n, err := treatment.New(treatment.Config{}, b.store).RunOnce(t.Context())
		require.NoError(t, err)
		require.Equal(t, 1, n)
	}
	status := func() string {
		return one[string](t, b, `SELECT status || ' ' || coalesce(problems -> 0 ->> 'code', '') FROM tickets WHERE id = $1`, stopped.Ticket.ID)
	}
	treat(b)
	assert.Equal(t, "ERROR new_products_limited", status(), "treatment is limited as deliveries are")
	treat(openWith(t, b, false, map[string]postgres.SourcePolicy{"named": {}}))
	assert.Equal(t, "TREATED ", status())
	assert.Equal(t, 2, one[int](t, b, `SELECT count(*) FROM products`))
}

func TestNewProducts_NamesThatASenderMakesUp_ShareOneRate(t *testing.T) {
	t.Parallel()
	b := openWith(t, setup(t), false, map[string]postgres.SourcePolicy{"other": {NewProductsRate: aDay, NewProductsBurst: 5}})
	for i := range 50 {
		save(t, b, from(t, fmt.Sprintf("shop-%d", i), body(strconv.Itoa(i), fmt.Sprintf("Café,p%d,2", i))))
	}
	assert.Equal(t, 5, one[int](t, b, `SELECT count(*) FROM products`))
	assert.Equal(t, 45, one[int](t, b, `SELECT count(*) FROM tickets WHERE status = 'ERROR'`))
	assert.InDelta(t, 45, limited(t, b, "other"), 0)
	registry := prometheus.NewRegistry()
	b.store.Register(registry)
	families, err := registry.Gather()
	require.NoError(t, err)
	assert.Len(t, families[0].GetMetric(), 1, "one series for all names")
}

// TestProducts_Authenticated_InWhateverOrderTicketsCome is TestProducts_NewestTicketCounts_InWhateverOrderTicketsCome for sources
// of which some are authenticated.
func TestProducts_Authenticated_InWhateverOrderTicketsCome(t *testing.T) {
	t.Parallel()
	b := openWith(t, setup(t), true, map[string]postgres.SourcePolicy{"trusted": {Authenticated: true}})
	var entries []*intake.Entry
	r := rand.New(rand.NewPCG(3, 3))
	for i := range 400 {
		source, products := "shop", 8
		if r.IntN(4) == 0 {
			source, products = "trusted", 5 // and three that no authenticated source names
		}
		var lines []string
		for range 1 + r.IntN(4) {
			p := r.IntN(products)
			lines = append(lines, fmt.Sprintf("Product %d,p%d,%d", p, p, r.IntN(3)))
		}
		entries = append(entries, from(t, source, body(strconv.Itoa(i), lines...)))
	}
	saveInRandomOrder(t, b, r, entries)
	settle(t, b)
	assertReplayed(t, b, func(source string) bool { return source == "trusted" })
	assert.Equal(t, 5, one[int](t, b, `SELECT count(*) FROM products WHERE authenticated`))
	assert.Equal(t, 8, one[int](t, b, `SELECT count(*) FROM products`))
}

func TestProducts_Authenticated_IsNeverOverruledByAnother(t *testing.T) {
	t.Parallel()
	plain := setup(t)
	b := openWith(t, plain, true, map[string]postgres.SourcePolicy{"trusted": {Authenticated: true}})
	price := func() string {
		settle(t, b)
		return one[string](t, b, `SELECT price || ' ' || authenticated FROM products`)
	}
	early, trusted := from(t, "trusted", body("0", "Café,a,9")), from(t, "trusted", body("1", "Café,a,2"))
	shop := from(t, "shop", body("2", "Café,a,3"))
	save(t, b, shop)
	assert.Equal(t, "3 false", price())
	save(t, b, trusted) // older, and counts for more
	assert.Equal(t, "2 true", price())
	save(t, b, from(t, "shop", body("3", "Café,a,4")), early)
	assert.Equal(t, "2 true", price())

	// A minute of tickets of others does not stop an authenticated one that comes late.
	exec(t, b, `UPDATE products SET last_seen_at = last_seen_at - interval '2 minutes', changed_at = changed_at - interval '2 minutes'`)
	late := from(t, "trusted", body("4", "Café,a,5"))
	save(t, b, from(t, "shop", body("5", "Café,a,6")))
	save(t, b, late)
	assert.Equal(t, "5 true", price())

	// A program without sources does not change it. In a server without the setting the newest ticket counts.
	tool, err := postgres.Open(t.Context(), postgres.Config{URL: b.url, AuthenticatedProducts: true})
	require.NoError(t, err)
	t.Cleanup(tool.Close)
	require.NoError(t, trySave(context.WithoutCancel(t.Context()), tool, from(t, "trusted", body("6", "Café,a,7"))))
	assert.Equal(t, "5 true", price())
	save(t, plain, from(t, "shop", body("7", "Café,a,8")))
	assert.Equal(t, "8 false", one[string](t, b, `SELECT price || ' ' || authenticated FROM products`))
}

func TestMigrations_VersionBefore_WritesProductsOnTheNewSchema(t *testing.T) {
	t.Parallel()
	b := setup(t)
	exec(t, b, `INSERT INTO products AS p (product_id, name, price, ticket_id, changed_at, last_seen_at, first_seen_at)
		VALUES ('a', 'Café', 2, gen_random_uuid(), now(), now(), now())`)
	assert.False(t, one[bool](t, b, `SELECT authenticated FROM products`))
}
