package postgres_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/postgres"
)

// beforeLearned runs SettleProducts until no product is left, and does something between the moment in which it has read the tickets
// that name products and the one in which it stores what they say.
func beforeLearned(t *testing.T, b *testBundle, do func()) {
	t.Helper()
	exec(t, b, `CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
		IF current_query() LIKE '%(name, price, ticket_id, at, authenticated, n)%' THEN
			PERFORM pg_advisory_xact_lock_shared(42);
		END IF;
		RETURN NULL;
	END $$;
	CREATE TRIGGER hold BEFORE UPDATE ON products EXECUTE FUNCTION hold()`)
	holder, err := b.pool.Acquire(t.Context())
	require.NoError(t, err)
	defer holder.Release()
	_, err = holder.Exec(t.Context(), `SELECT pg_advisory_lock(42)`)
	require.NoError(t, err)
	var group sync.WaitGroup
	group.Go(func() { settle(t, b) })
	require.Eventually(t, func() bool {
		return one[int](t, b, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND database =
			(SELECT oid FROM pg_database WHERE datname = current_database())`) > 0
	}, 10*time.Second, 10*time.Millisecond)
	do()
	_, err = holder.Exec(t.Context(), `SELECT pg_advisory_unlock(42)`)
	require.NoError(t, err)
	group.Wait()
	exec(t, b, `DROP TRIGGER hold ON products`)
	settle(t, b)
}

// TestCorrectTicket_WhileWhatItSaysIsLearned: two tickets had the same mistake. The second correction comes while a server finds out
// what counts after the first one.
func TestCorrectTicket_WhileWhatItSaysIsLearned_IsTakenBack(t *testing.T) {
	t.Parallel()
	b := setup(t)
	now := time.Now()
	right := entryAt(t, now.Add(-30*time.Minute), body("1", "x,a,1"))
	wrong := entryAt(t, now.Add(-20*time.Minute), body("2", "x,a,8"))
	wrongToo := entryAt(t, now.Add(-10*time.Minute), body("3", "x,a,9"))
	save(t, b, right)
	save(t, b, wrong)
	save(t, b, wrongToo)
	settle(t, b)
	correct(t, b, wrongToo.Ticket.ID, body("3", "x,b,1"))
	treat(t, b)
	beforeLearned(t, b, func() { correct(t, b, wrong.Ticket.ID, body("2", "x,c,1")) })
	treat(t, b)
	settle(t, b)
	assert.Equal(t, []string{"a x 1", "b x 1", "c x 1"}, productTexts(t, b))
	assert.Zero(t, one[int](t, b, `SELECT count(*) FROM products WHERE named_until IS NOT NULL OR unsettled_from IS NOT NULL`))
}

// TestCorrectTicket_OfAnAuthenticatedSource_ANewTicket: no ticket of an authenticated source is left. A ticket of another
// source comes while that is found out.
func TestCorrectTicket_OfAnAuthenticatedSource_ANewTicketOfAnotherSourceCounts(t *testing.T) {
	t.Parallel()
	b := openWith(t, setup(t), true, map[string]postgres.SourcePolicy{"trusted": {Authenticated: true}})
	now := time.Now()
	shop, wrong := entryAt(t, now.Add(-20*time.Minute), body("1", "x,a,1")), entryAt(t, now.Add(-10*time.Minute), body("2", "x,a,9"))
	shop.Ticket.Source, wrong.Ticket.Source = "shop", "trusted"
	save(t, b, shop)
	save(t, b, wrong)
	settle(t, b)
	correct(t, b, wrong.Ticket.ID, body("2", "x,c,1"))
	treat(t, b)
	beforeLearned(t, b, func() { save(t, b, from(t, "shop", body("3", "x,a,2"))) })
	assert.Equal(t, []string{"a x 2", "c x 1"}, productTexts(t, b))
}

// TestCorrectTicket_LateTicketsOlderThanTheProduct: a late ticket is older than the product was, and another one, a little newer, comes
// while a server finds out what counts.
func TestCorrectTicket_LateTicketsOlderThanTheProduct_TheNewestCounts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	now := time.Now()
	wrong := entryAt(t, now.Add(-10*time.Minute), body("1", "x,a,9"))
	save(t, b, wrong)
	settle(t, b)
	correct(t, b, wrong.Ticket.ID, body("1", "x,c,1"))
	treat(t, b)
	late := entryAt(t, now.Add(-20*time.Minute), body("2", "x,a,5"))
	save(t, b, late)
	beforeLearned(t, b, func() { save(t, b, entryAt(t, now.Add(-15*time.Minute), body("3", "x,a,7"))) })
	assert.Equal(t, []string{"a x 7", "c x 1"}, productTexts(t, b))
}

// TestSettleProducts_WithdrawnInSeveralTurns: a ticket of another source is newer than the one of an authenticated source, which is
// found only in a later turn.
func TestSettleProducts_WithdrawnInSeveralTurns_TheAuthenticatedSourceCounts(t *testing.T) {
	t.Parallel()
	b := openWith(t, setup(t), true, map[string]postgres.SourcePolicy{"trusted": {Authenticated: true}})
	now := time.Now()
	lines := make([]string, 200)
	for i := range lines {
		lines[i] = fmt.Sprintf("x,p%d,1", i)
	}
	right, wrong := entryAt(t, now.Add(-50*time.Minute), body("1", "x,a,1")), entryAt(t, now.Add(-20*time.Minute), body("2", "x,a,9"))
	right.Ticket.Source, wrong.Ticket.Source = "trusted", "trusted"
	save(t, b, right)
	for i := range 20 {
		var entries []*intake.Entry
		for j := range 50 {
			e := entryAt(t, now.Add(-40*time.Minute+time.Duration(i*50+j)*time.Second), body("1", lines...))
			e.Ticket.Source = "shop"
			entries = append(entries, e)
		}
		save(t, b, entries...)
	}
	save(t, b, wrong)
	save(t, b, from(t, "shop", body("3", "x,a,3")))
	settle(t, b)
	correct(t, b, wrong.Ticket.ID, body("2", "x,c,1"))
	treat(t, b)
	for turns := range 1000 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(80+turns)*time.Millisecond) // longer on a slow machine
		n, err := b.store.SettleProducts(ctx, 0, 1000)
		cancel()
		if err == nil && n == 0 {
			break
		}
		exec(t, b, `UPDATE products SET unsettled_from = now() WHERE unsettled_from > now()`) // an hour has passed
	}
	assert.Equal(t, "1", one[string](t, b, `SELECT price::text FROM products WHERE product_id = 'a'`))
	assert.Zero(t, one[int](t, b, `SELECT count(*) FROM products WHERE named_until IS NOT NULL`))
}
