package postgres_test

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

func products(t *testing.T, b *testBundle) string {
	t.Helper()
	return one[string](t, b, `SELECT coalesce(string_agg(product_id, ' ' ORDER BY product_id), '') FROM products`)
}

// rest makes all that was saved a quarter of an hour older, so that its products are at rest.
func rest(t *testing.T, b *testBundle) {
	t.Helper()
	settle(t, b)
	exec(t, b, `CREATE OR REPLACE FUNCTION older(uuid) RETURNS uuid LANGUAGE sql AS $$ SELECT (lpad(to_hex(
			('x' || replace(left($1::text, 13), '-', ''))::bit(48)::bigint - 900000), 12, '0') || substr(replace($1::text, '-', ''), 13))::uuid $$;
		UPDATE tickets SET id = older(id), received_at = received_at - interval '15 minutes';
		UPDATE products SET ticket_id = older(ticket_id), changed_at = changed_at - interval '15 minutes',
			first_seen_at = first_seen_at - interval '15 minutes', last_seen_at = last_seen_at - interval '15 minutes'`)
}

func TestPruneProducts_RemovesWhatOnlyTheNamedTicketsMade(t *testing.T) {
	t.Parallel()
	b := setup(t)
	save(t, b,
		from(t, "shop", body("1", "Café,shared,2", "Thé,mine,3", "Eau,first,1")),
		from(t, "junk", body("2", "Café,shared,2", "x,junk1,1", "x,later,1", "Eau,first,2")), // the newest word on first
		from(t, "junk", body("3", "x,junk2,1", "x,junk1,4", "x,error,1")),
		from(t, "shop", body("4", "x,later,1")),
		from(t, "shop", body("5", "x,error,1", "bad")), // says nothing about products
	)
	bySource := postgres.PruneSelection{Filter: postgres.TicketFilter{Sources: []string{"junk"}}}
	pruned, err := b.store.PruneProducts(t.Context(), tester, bySource, 1000, false)
	require.NoError(t, err)
	assert.Equal(t, postgres.Pruned{Examples: []string{}}, pruned, "what was named a moment ago is left alone")

	rest(t, b)
	pruned, err = b.store.PruneProducts(t.Context(), tester, bySource, 1000, true)
	require.NoError(t, err)
	assert.Equal(t, 3, pruned.Products)
	assert.ElementsMatch(t, []string{"junk1", "junk2", "error"}, pruned.Examples)
	assert.False(t, pruned.More)
	assert.Equal(t, "error first junk1 junk2 later mine shared", products(t, b), "a dry run changes nothing")

	pruned, err = b.store.PruneProducts(t.Context(), tester, bySource, 1000, false)
	require.NoError(t, err)
	assert.Equal(t, 3, pruned.Products)
	assert.Equal(t, "first later mine shared", products(t, b))
	pruned, err = b.store.PruneProducts(t.Context(), tester, bySource, 1000, false)
	require.NoError(t, err)
	assert.Zero(t, pruned.Products, "it may be repeated")
	assert.Equal(t, 5, one[int](t, b, `SELECT count(*) FROM tickets`), "no ticket is touched")
}

func TestPruneProducts_ByIDs_AndPieceByPiece(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var entries []*intake.Entry
	for i := range 5 {
		entries = append(entries, entry(t, body(strconv.Itoa(i), fmt.Sprintf("x,p%d,1", i), fmt.Sprintf("x,q%d,1", i))))
	}
	save(t, b, entries...)
	rest(t, b)
	var ids []uuid.UUID
	for _, i := range []int{1, 3} {
		ids = append(ids, uuid.MustParse(one[string](t, b, `SELECT id::text FROM tickets WHERE order_number = $1`, strconv.Itoa(i))))
	}
	for _, want := range []int{3, 1} {
		pruned, err := b.store.PruneProducts(t.Context(), tester, postgres.PruneSelection{IDs: ids}, 3, false)
		require.NoError(t, err)
		assert.Equal(t, want, pruned.Products)
		assert.Equal(t, want == 3, pruned.More)
	}
	assert.Equal(t, "p0 p2 p4 q0 q2 q4", products(t, b))
	_, err := b.store.PruneProducts(t.Context(), tester, postgres.PruneSelection{}, 3, false)
	require.ErrorContains(t, err, "no tickets are named")
}

func TestPruneProducts_WhatAnotherSourceMayHaveNamed_Stays(t *testing.T) {
	t.Parallel()
	b := openWith(t, setup(t), true, map[string]postgres.SourcePolicy{"trusted": {Authenticated: true}})
	selection := postgres.PruneSelection{Filter: postgres.TicketFilter{Sources: []string{"junk"}}}
	save(t, b, from(t, "shop", body("1", "x,old,1")))
	save(t, b, from(t, "junk", body("2", "x,old,2", "x,older,1", "x,unreadable,1")), from(t, "shop", body("3", "x,unreadable,1")))
	rest(t, b)
	// The ticket that named it first is gone, with its partition.
	exec(t, b, `DELETE FROM tickets WHERE order_number = '1'`)
	// Another version of the parser read what this one does not.
	exec(t, b, `UPDATE tickets SET body = 'x', parser_version = 1 WHERE order_number = '3'`)
	pruned, err := b.store.PruneProducts(t.Context(), tester, selection, 1000, false)
	require.NoError(t, err)
	assert.Equal(t, 1, pruned.Products)
	assert.Equal(t, "old unreadable", products(t, b))

	// A source that is not authenticated names it later, which moves nothing on.
	save(t, b, from(t, "trusted", body("4", "x,seen,1")))
	rest(t, b)
	save(t, b, from(t, "shop", body("5", "x,seen,1")))
	pruned, err = b.store.PruneProducts(t.Context(), tester, postgres.PruneSelection{Filter: postgres.TicketFilter{Sources: []string{"trusted"}}}, 1000, false)
	require.NoError(t, err)
	assert.Equal(t, 1, pruned.Kept)
	assert.Equal(t, "old seen unreadable", products(t, b))
}

func TestPruneProducts_ProductThatIsNamedMeanwhile_Stays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	save(t, b, from(t, "junk", body("1", "x,a,1", "x,b,1")))
	rest(t, b)
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `UPDATE products SET last_seen_at = now() WHERE product_id = 'a'`) // as a batch that is under way
	require.NoError(t, err)
	pruned, err := b.store.PruneProducts(t.Context(), tester, postgres.PruneSelection{Filter: postgres.TicketFilter{Sources: []string{"junk"}}}, 1000, false)
	require.NoError(t, err)
	require.NoError(t, tx.Commit(t.Context()))
	assert.Equal(t, 1, pruned.Products)
	assert.Equal(t, 1, pruned.Changed)
	assert.Equal(t, "a", products(t, b))
	assert.Equal(t, ticket.Treated, ticket.Status(one[string](t, b, `SELECT status FROM tickets`)))
}

// TestPruneProducts_WithdrawnAndSettledByTheVersionBefore: that version takes the mark away, and knows nothing of named_until.
func TestPruneProducts_WithdrawnAndSettledByTheVersionBefore_Stays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	now := time.Now()
	test, shop := entryAt(t, now.Add(-60*time.Minute), body("1", "x,a,9")), entryAt(t, now.Add(-40*time.Minute), body("2", "x,a,9"))
	test.Ticket.Source, shop.Ticket.Source = "test", "shop"
	wrong := entryAt(t, now.Add(-30*time.Minute), body("3", "x,a,9"))
	save(t, b, test)
	save(t, b, shop)
	save(t, b, wrong)
	settle(t, b)
	correct(t, b, wrong.Ticket.ID, body("3", "x,c,1"))
	exec(t, b, `UPDATE products SET unsettled_from = NULL`)
	_, err := b.store.PruneProducts(t.Context(), tester, postgres.PruneSelection{
		Filter: postgres.TicketFilter{Sources: []string{"test"}}}, 100, false)
	require.NoError(t, err)
	assert.Equal(t, []string{"a x 9"}, productTexts(t, b))
}
