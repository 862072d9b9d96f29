package postgres_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
	"myticket/internal/treatment"
)

// withTestSource is a store on the same database for which "quiet" is a test source.
func withTestSource(t *testing.T, b *testBundle, sources postgres.Sources) *testBundle {
	t.Helper()
	sources.Tests = map[string]bool{"quiet": true}
	store, err := postgres.Open(t.Context(), postgres.Config{URL: b.url, MaxConns: 8, Sources: sources})
	require.NoError(t, err)
	t.Cleanup(store.Close)
	return &testBundle{url: b.url, store: store, pool: b.pool}
}

// taught returns what the product base says.
func taught(t *testing.T, b *testBundle) string {
	t.Helper()
	return one[string](t, b, `SELECT coalesce(string_agg(product_id || ' ' || name || ' ' || price, ', ' ORDER BY product_id), '') FROM products`)
}

// treatAll treats all tickets that are due.
func treatAll(t *testing.T, b *testBundle, want int) {
	t.Helper()
	n, err := treatment.New(treatment.Config{}, b.store).RunOnce(t.Context())
	require.NoError(t, err)
	require.Equal(t, want, n)
}

func TestTestSources_TicketIsReadAsAnyOther_AndTeachesNothing(t *testing.T) {
	t.Parallel()
	b := withTestSource(t, setup(t), postgres.Sources{})
	save(t, b, from(t, "shop", body("1", "Café,known,2")))
	seen := one[string](t, b, `SELECT last_seen_at::text FROM products`)

	alone := from(t, "quiet", body("2", "Other,known,9", "x,alone,1"))
	assert.Equal(t, ticket.Treated, save(t, b, alone)[0].Status)
	beside := from(t, "quiet", body("3", "Other,known,9", "x,beside,1"))
	for _, outcome := range save(t, b, from(t, "shop", body("4", "Thé,new,3")), beside, from(t, "shop", body("5", "Eau,water,1"))) {
		assert.Equal(t, ticket.Treated, outcome.Status)
	}
	const want = "known Café 2, new Thé 3, water Eau 1"
	assert.Equal(t, want, taught(t, b))
	assert.Equal(t, seen, one[string](t, b, `SELECT last_seen_at::text FROM products WHERE product_id = 'known'`))
	assert.Equal(t, "2 TREATED 16.90, 3 TREATED 16.90", one[string](t, b,
		`SELECT string_agg(order_number || ' ' || status || ' ' || total, ', ' ORDER BY id) FROM tickets WHERE source = 'quiet'`))
	stored, err := b.store.Ticket(t.Context(), alone.Ticket.ID)
	require.NoError(t, err)
	assert.Len(t, stored.Lines, 2)

	settle(t, b)
	assert.Equal(t, want, taught(t, b), "after settling")
	save(t, b, alone, beside)
	assert.Equal(t, want, taught(t, b), "sent again after a lost answer")
}

func TestTestSources_TicketThatIsReadLater_TeachesNothing(t *testing.T) {
	t.Parallel()
	b := withTestSource(t, setup(t), postgres.Sources{})
	save(t, b, from(t, "shop", body("1", "Café,known,2")))
	unread := []*intake.Entry{from(t, "quiet", body("2", "Other,known,9", "x,new,1")), from(t, "shop", body("3", "Thé,taught,3"))}
	for _, e := range unread {
		e.Ticket.Status, e.Ticket.Order = ticket.ToTreat, ticket.Order{}
	}
	saveBatch(t, b, intake.Batch{Entries: unread, Unread: true})
	treatAll(t, b, 2)
	const want = "known Café 2, taught Thé 3"
	assert.Equal(t, want, taught(t, b))

	exec(t, b, `UPDATE tickets SET status = 'ERROR' WHERE source = 'quiet'`)
	quiet := postgres.Bulk{Filter: postgres.TicketFilter{Sources: []string{"quiet"}}}
	done, err := b.store.ChangeTickets(t.Context(), tester, postgres.Retry, quiet)
	require.NoError(t, err)
	require.Equal(t, 1, done.Tickets)
	treatAll(t, b, 1)
	settle(t, b)
	assert.Equal(t, want, taught(t, b), "after myticket tickets retry")
	assert.Equal(t, "2 TREATED", one[string](t, b, `SELECT order_number || ' ' || status FROM tickets WHERE source = 'quiet'`))
}

// A product that just changed is looked at again, in the tickets of that minute. A newer ticket of a test source is among them.
func TestTestSources_SecondLookAtAProduct_PassesThemOver(t *testing.T) {
	t.Parallel()
	plain := setup(t)
	b := withTestSource(t, plain, postgres.Sources{})
	older := from(t, "shop", body("1", "Café,p,1"))
	changed := from(t, "shop", body("2", "Café,p,2"))
	quiet := from(t, "quiet", body("3", "Other,p,9"))
	save(t, b, older)
	save(t, b, changed)
	save(t, b, quiet)
	settle(t, b)
	assert.Equal(t, "p Café 2", taught(t, b))

	exec(t, b, `UPDATE products SET unsettled_from = now() - interval '1 hour'`)
	settle(t, plain)
	assert.Equal(t, "p Other 9", taught(t, b), "without the setting, the same look does find that ticket")
}

func TestTestSources_LimitOfNewProducts_DoesNotCount(t *testing.T) {
	t.Parallel()
	b := withTestSource(t, setup(t), postgres.Sources{
		Policies: map[string]postgres.SourcePolicy{"other": {NewProductsRate: aDay, NewProductsBurst: 1, Label: "other"}}, Entry: entryOf,
	})
	save(t, b, from(t, "quiet", body("1", "x,a,1", "x,b,1", "x,c,1")))
	save(t, b, from(t, "shop", body("2", "Café,d,2")), from(t, "quiet", body("3", "x,e,1"))) // the one that may be added
	outcomes := save(t, b, from(t, "quiet", body("4", "x,f,1")), from(t, "shop", body("5", "x,g,1")))
	assert.Equal(t, ticket.Treated, outcomes[0].Status, "it adds none, so it needs no leave")
	assert.Equal(t, ticket.Error, outcomes[1].Status)
	assert.Equal(t, "d Café 2", taught(t, b))
}

func TestTestSources_PruneProducts(t *testing.T) {
	t.Parallel()
	plain := setup(t)
	save(t, plain, from(t, "quiet", body("1", "x,before,1", "Café,shared,2", "Junk,junk2,1"))) // before it was a test source
	b := withTestSource(t, plain, postgres.Sources{})
	save(t, b, from(t, "shop", body("2", "Thé,shared,3")))
	save(t, b, from(t, "junk", body("3", "x,junk1,1", "x,junk2,1")))
	save(t, b, from(t, "quiet", body("4", "x,junk1,1", "x,junk2,1")))
	rest(t, b)
	require.Equal(t, "before junk1 junk2 shared", products(t, b))
	by := func(source string) postgres.PruneSelection {
		return postgres.PruneSelection{Filter: postgres.TicketFilter{Sources: []string{source}}}
	}

	pruned, err := plain.store.PruneProducts(t.Context(), tester, by("junk"), 1000, true)
	require.NoError(t, err)
	assert.Zero(t, pruned.Products, "to a store that does not know the setting, these tickets are witnesses")
	pruned, err = b.store.PruneProducts(t.Context(), tester, by("junk"), 1000, false)
	require.NoError(t, err)
	assert.ElementsMatch(t, []string{"junk1", "junk2"}, pruned.Examples, "a ticket of a test source keeps no product")
	pruned, err = b.store.PruneProducts(t.Context(), tester, by("quiet"), 1000, false)
	require.NoError(t, err)
	assert.Equal(t, []string{"before"}, pruned.Examples, "what it taught before goes; what a shop named stays")
	assert.Equal(t, "shared", products(t, b))
}
