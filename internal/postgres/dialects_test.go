package postgres_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/dialect"
	"myticket/internal/intake"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
	"myticket/internal/treatment"
)

var (
	alice = postgres.Person{Who: "alice@till", Why: "their update"}
	bob   = postgres.Person{Who: "bob@office", Why: "as well"}
)

// french is a dialect in which Commande is an order, and nom a product.
const french = `{"records": {"order": ["Commande"]}, "columns": {"product": ["nom"]}}`

// frenchBody is a ticket in french.
func frenchBody(order, product string) string {
	return fmt.Sprintf("Commande: %s\nVAT: 3.10\nTotal: 16.90\n\nnom,product_id,price\n%s", order, product)
}

func readerOf(t *testing.T, written string) *ticket.Reader {
	t.Helper()
	d, err := dialect.Parse([]byte(written))
	require.NoError(t, err)
	reader, err := ticket.NewReader(d)
	require.NoError(t, err)
	return reader
}

func apply(t *testing.T, b *testBundle, source string, previous int, written string) postgres.DialectVersion {
	t.Helper()
	made, err := b.store.ApplyDialect(t.Context(), postgres.DialectChange{Source: source, Previous: previous, By: alice}, []byte(written))
	require.NoError(t, err)
	return made
}

// live returns dialects as they are loaded now.
func live(t *testing.T, b *testBundle) *postgres.LiveDialects {
	t.Helper()
	dialects := postgres.NewLiveDialects(b.store, false)
	require.NoError(t, dialects.Load(t.Context()))
	return dialects
}

// readBy is an entry of a source as intake reads it.
func readBy(t *testing.T, dialects *postgres.LiveDialects, source, body string) *intake.Entry {
	t.Helper()
	e := entry(t, body)
	e.Ticket.Source, e.Ticket.Status = source, ticket.Treated
	if e.Ticket.Order, e.Ticket.Problems, e.Ticket.Dialect = dialects.Parse(source, e.Ticket.Body); len(e.Ticket.Problems) > 0 {
		e.Ticket.Status = ticket.Error
	}
	return e
}

func TestDialects_AreVersionsThatNoOneLoses(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := apply(t, b, "shop-1", 0, french)
	second := apply(t, b, "shop-1", first.Version, `{"decimal": ","}`)
	other := apply(t, b, postgres.OtherSources, 0, `{"separator": "|"}`)
	assert.Equal(t, first.Version, second.Previous)
	assert.Zero(t, other.Previous)

	current, err := b.store.Dialects(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []postgres.DialectVersion{other, second}, current, "in the order of their sources")

	change := postgres.DialectChange{Source: "shop-1", Previous: second.Version, By: bob}
	_, err = b.store.RevertDialect(t.Context(), change, other.Version)
	require.ErrorIs(t, err, postgres.ErrNoDialect, "a version of another source")
	third, err := b.store.RevertDialect(t.Context(), change, 0)
	require.NoError(t, err)
	assert.JSONEq(t, french, string(third.Dialect))
	change.Previous = third.Version
	_, err = b.store.RevertDialect(t.Context(), change, 999)
	require.ErrorIs(t, err, postgres.ErrNoDialect)

	change = postgres.DialectChange{Source: postgres.OtherSources, Previous: other.Version, By: bob}
	none, err := b.store.RevertDialect(t.Context(), change, 0)
	require.NoError(t, err)
	assert.Nil(t, none.Dialect, "there was none before")
	current, err = b.store.Dialects(t.Context())
	require.NoError(t, err)
	assert.Equal(t, []postgres.DialectVersion{third}, current)

	history, err := b.store.DialectHistory(t.Context(), "shop-1", 10)
	require.NoError(t, err)
	assert.Equal(t, []postgres.DialectVersion{third, second, first}, history)
	assert.Equal(t, "alice@till dialects.apply their update, alice@till dialects.apply their update, alice@till dialects.apply their update, "+
		"bob@office dialects.revert as well, bob@office dialects.revert as well",
		one[string](t, b, `SELECT string_agg(who || ' ' || action || ' ' || why, ', ' ORDER BY id) FROM audit`))
	assert.Equal(t, fmt.Sprint(third.Version), one[string](t, b,
		`SELECT details ->> 'version' FROM audit WHERE details ->> 'source' = 'shop-1' AND action = 'dialects.revert'`))

	_, err = b.store.ApplyDialect(t.Context(), change, []byte(`{"decimal": "x"}`))
	require.ErrorIs(t, err, ticket.ErrDialect)
	_, err = b.store.ApplyDialect(t.Context(), postgres.DialectChange{Source: "Not a source", By: bob}, []byte(french))
	require.ErrorIs(t, err, ticket.ErrRefused)
}

func TestDialects_TwoOperatorsAtOnce_NeverOverwriteEachOtherUnseen(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := apply(t, b, "shop-1", 0, french)
	var group sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		group.Go(func() {
			change := postgres.DialectChange{Source: "shop-1", Previous: first.Version, By: postgres.Person{Who: fmt.Sprint("operator ", i)}}
			_, errs[i] = b.store.ApplyDialect(t.Context(), change, []byte(`{"decimal": ","}`))
		})
	}
	group.Wait()
	applied := 0
	for _, err := range errs {
		if err == nil {
			applied++
			continue
		}
		require.ErrorIs(t, err, postgres.ErrDialectChanged)
		require.NotErrorIs(t, err, ticket.ErrUnavailable)
	}
	assert.Equal(t, 1, applied)
	assert.Equal(t, 2, one[int](t, b, `SELECT count(*) FROM dialects`))
	assert.Equal(t, 2, one[int](t, b, `SELECT count(*) FROM audit`))
}

// Versions are committed in their order: a server that has seen one has seen all before it.
func TestDialects_OfDifferentSources_AreCommittedInTheirOrder(t *testing.T) {
	t.Parallel()
	b := setup(t)
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = tx.Exec(t.Context(), `SELECT pg_advisory_xact_lock(hashtext('myticket_dialects'));
		INSERT INTO dialects (source, dialect, who, why) VALUES ('slow', '{}', 'x', '')`)
	require.NoError(t, err)
	applied := make(chan error, 1)
	go func() {
		_, err := b.store.ApplyDialect(context.WithoutCancel(t.Context()), postgres.DialectChange{Source: "fast", By: bob}, []byte(french))
		applied <- err
	}()
	require.Eventually(t, func() bool {
		return one[int](t, b, `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%pg_advisory_xact_lock%'`) == 1
	}, time.Minute, time.Millisecond)
	assert.Zero(t, one[int](t, b, `SELECT count(*) FROM dialects`))
	require.NoError(t, tx.Commit(t.Context()))
	require.NoError(t, <-applied)
	assert.Equal(t, "slow fast", one[string](t, b, `SELECT string_agg(source, ' ' ORDER BY version) FROM dialects`))
}

func TestLiveDialects_OwnBeforeThoseOfAllOthers(t *testing.T) {
	t.Parallel()
	b := setup(t)
	dialects := live(t, b)
	_, problems, version := dialects.Parse("shop-1", []byte(frenchBody("1", "Café,c,2")))
	assert.NotEmpty(t, problems)
	assert.Zero(t, version)

	own := apply(t, b, "shop-1", 0, french)
	others := apply(t, b, postgres.OtherSources, 0, `{"records": {"order": ["Bestellung"]}}`)
	require.NoError(t, dialects.Load(t.Context()))
	_, problems, version = dialects.Parse("shop-1", []byte(frenchBody("1", "Café,c,2")))
	assert.Empty(t, problems)
	assert.Equal(t, own.Version, version)
	_, problems, version = dialects.Parse("shop-2", []byte("Bestellung: 1\nVAT: 0\nTotal: 2\n\nproduct,product_id,price\nCafé,a,2"))
	assert.Empty(t, problems)
	assert.Equal(t, others.Version, version)

	_, err := b.store.RevertDialect(t.Context(), postgres.DialectChange{Source: "shop-1", Previous: own.Version, By: bob}, 0)
	require.NoError(t, err)
	require.NoError(t, dialects.Load(t.Context()))
	_, _, version = dialects.Parse("shop-1", nil)
	assert.Equal(t, others.Version, version, "it is as all others now")
	_, err = b.store.RevertDialect(t.Context(), postgres.DialectChange{Source: postgres.OtherSources, Previous: others.Version, By: bob}, 0)
	require.NoError(t, err)
	require.NoError(t, dialects.Load(t.Context()))
	_, _, version = dialects.Parse("shop-1", nil)
	assert.Zero(t, version)
}

// A newer version of the program may apply a dialect that this one does not understand.
func TestLiveDialects_ADialectThatIsNotUnderstood_LeavesTheVersionBefore(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := apply(t, b, "shop-1", 0, french)
	for range 2 {
		exec(t, b, `INSERT INTO dialects (source, dialect, previous, who, why) VALUES ('shop-1', '{"telepathy": true}', 1, 'newer', ''),
			('shop-2', '{"telepathy": true}', NULL, 'newer', '')`)
	}
	dialects := live(t, b)
	_, problems, version := dialects.Parse("shop-1", []byte(frenchBody("1", "Café,c,2")))
	assert.Empty(t, problems)
	assert.Equal(t, first.Version, version)
	_, problems, version = dialects.Parse("shop-2", []byte(body("1", "Café,c,2")))
	assert.Empty(t, problems)
	assert.Zero(t, version)

	// A ticket that the newer program read is shown without its lines, and its products wait for that program.
	e := readBy(t, dialects, "shop-1", frenchBody("7", "Café,c,2"))
	save(t, b, e)
	exec(t, b, `UPDATE tickets SET dialect = 2; UPDATE products SET unsettled_from = now() - interval '1 hour'`)
	shown, err := b.store.Ticket(t.Context(), e.Ticket.ID)
	require.NoError(t, err)
	assert.Empty(t, shown.Lines)
	assert.Equal(t, "7", shown.OrderNumber)
	_, err = b.store.SettleProducts(t.Context(), 0, 100)
	require.ErrorContains(t, err, "does not understand version 2")
	assert.Equal(t, "Café", one[string](t, b, `SELECT name FROM products`))
	assert.Equal(t, 1, one[int](t, b, `SELECT count(*) FROM products WHERE unsettled_from IS NOT NULL`), "it is tried again")
}

// A ticket is read as it was read when it was stored, whatever dialect counts now.
func TestTickets_AreReadAgain_InTheDialectThatTheyWereReadWith(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := apply(t, b, "shop-1", 0, french)
	dialects := live(t, b)
	fr := readBy(t, dialects, "shop-1", frenchBody("1", "Café,c,2"))
	usual := readBy(t, dialects, "shop-2", body("2", "Thé,t,3"))
	require.Equal(t, ticket.Treated, fr.Ticket.Status)
	save(t, b, fr, usual)
	second := apply(t, b, "shop-1", first.Version, `{"records": {"order": ["Bestellung"]}}`)
	require.NoError(t, dialects.Load(t.Context()))
	late := readBy(t, dialects, "shop-1", frenchBody("3", "Eau,e,1"))
	require.Equal(t, ticket.Error, late.Ticket.Status)
	save(t, b, late)
	assert.Equal(t, fmt.Sprintf("%d 0 %d", first.Version, second.Version),
		one[string](t, b, `SELECT string_agg(dialect::text, ' ' ORDER BY id) FROM tickets`))

	for range 2 { // from the database, and from what is kept
		shown, err := b.store.Ticket(t.Context(), fr.Ticket.ID)
		require.NoError(t, err)
		assert.Equal(t, first.Version, shown.Dialect)
		assert.Equal(t, []postgres.StoredLine{{Product: "Café", ProductID: "c", Price: "2"}}, shown.Lines)
	}
	fill(t, b)
	assert.Equal(t, "Café c, Thé t", one[string](t, b,
		`SELECT string_agg(product || ' ' || product_id, ', ' ORDER BY product_id) FROM order_lines`))

	exec(t, b, `UPDATE products SET name = 'wrong', unsettled_from = now()`)
	exec(t, b, `UPDATE products SET ticket_id = '00000000-0000-0000-0000-000000000000'`)
	settle(t, b)
	assert.Equal(t, "Café, Thé", one[string](t, b, `SELECT string_agg(name, ', ' ORDER BY product_id) FROM products`))

	// The ticket of the first dialect still names its product, so that product stays.
	junk := readBy(t, dialects, "junk", body("9", "Café,c,2", "x,junk,1"))
	save(t, b, junk)
	rest(t, b)
	exec(t, b, `UPDATE products SET ticket_id = (SELECT id FROM tickets WHERE source = 'junk'), changed_at = first_seen_at;
		UPDATE products SET changed_at = (SELECT received_at FROM tickets WHERE source = 'junk'),
			first_seen_at = (SELECT received_at FROM tickets WHERE source = 'junk')
		WHERE product_id IN ('c', 'junk')`)
	exec(t, b, `UPDATE tickets SET received_at = received_at + interval '20 seconds' WHERE source = 'shop-1' AND order_number = '1'`)
	pruned, err := b.store.PruneProducts(t.Context(), tester,
		postgres.PruneSelection{Filter: postgres.TicketFilter{Sources: []string{"junk"}}}, 100, true)
	require.NoError(t, err)
	assert.Equal(t, []string{"junk"}, pruned.Examples)
	assert.Equal(t, 1, pruned.Kept)
}

func TestSave_BatchThatIsSentAgain_KeepsTheDialects(t *testing.T) {
	t.Parallel()
	b := setup(t)
	v := apply(t, b, "shop-1", 0, french)
	dialects := live(t, b)
	there, missing := readBy(t, dialects, "shop-1", frenchBody("1", "Café,c,2")), readBy(t, dialects, "shop-1", frenchBody("2", "Café,c,2"))
	save(t, b, there)
	save(t, b, there, missing, readBy(t, dialects, "shop-2", body("3", "Café,c,2")))
	assert.Equal(t, fmt.Sprintf("1:%d 2:%d 3:0", v.Version, v.Version),
		one[string](t, b, `SELECT string_agg(order_number || ':' || dialect, ' ' ORDER BY order_number) FROM tickets`))

	unread := readBy(t, dialects, "shop-1", frenchBody("4", "Café,c,2"))
	saveBatch(t, b, intake.Batch{Entries: []*intake.Entry{unread}, Unread: true})
	assert.Zero(t, one[int](t, b, `SELECT dialect FROM tickets WHERE status = 'TO_TREAT'`))
}

func TestTreatment_ReadsInTheDialectThatCountsNow(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := entry(t, frenchBody("1", "Café,c,2"))
	e.Ticket.Source = "shop-1"
	save(t, b, e)
	v := apply(t, b, "shop-1", 0, french)
	require.NoError(t, b.store.ChangeTicket(t.Context(), tester, postgres.Retry, e.Ticket.ID))
	n, err := treatment.New(treatment.Config{Parse: live(t, b).Parse}, b.store).RunOnce(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n)
	assert.Equal(t, fmt.Sprintf("TREATED 1 %d", v.Version), one[string](t, b, `SELECT status || ' ' || order_number || ' ' || dialect FROM tickets`))
	assert.Equal(t, "c", products(t, b))
}

// sentBackBefore and treatedBefore are what the version before mending does: it knows neither dialects nor groups.
const (
	sentBackBefore = `UPDATE tickets SET status = 'TO_TREAT', attempts = 0, claims = claims + 1, next_attempt_at = now() WHERE id = $1`

	treatedBefore = `
WITH finished AS (
    UPDATE tickets SET status = $2, problems = $3, order_number = $4, lines = NULL, next_attempt_at = NULL WHERE id = $1 RETURNING id
)
INSERT INTO outbox (kind, tickets) SELECT 'treated', uuid_send(id) FROM finished`
)

// After a rollback the version before reads tickets again without a dialect, and leaves what it does not know as it was.
func TestTickets_ThatTheVersionBeforeReadAgain_AreReadAsItReadThem(t *testing.T) {
	t.Parallel()
	b := setup(t)
	apply(t, b, "shop-1", 0, `{"separator": ";"}`) // a mistake: the tickets have commas
	dialects := live(t, b)
	alone, ours, bad := readBy(t, dialects, "shop-1", body("1", "Café,c,2")), readBy(t, dialects, "shop-1", body("2", "Thé,t,3")),
		readBy(t, dialects, "shop-1", "hello")
	for _, e := range []*intake.Entry{alone, ours, bad} {
		require.Equal(t, ticket.Error, e.Ticket.Status)
		require.NotZero(t, e.Ticket.Dialect)
	}
	save(t, b, alone, ours, bad)
	pool := openPool(t, b.url)
	run := func(sql string, args ...any) {
		t.Helper()
		_, err := pool.Exec(t.Context(), sql, args...)
		require.NoError(t, err)
	}
	treatBefore := func(e *intake.Entry, order any) {
		t.Helper()
		_, problems := ticket.Parse(e.Ticket.Body)
		status := ticket.Treated
		if len(problems) > 0 {
			status = ticket.Error
		}
		run(treatedBefore, e.Ticket.ID, status, problemsJSON(t, problems), order)
	}
	// It sends one back itself, and treats one that this version sent back.
	run(sentBackBefore, alone.Ticket.ID)
	treatBefore(alone, "1")
	run(sentBackBefore, bad.Ticket.ID)
	treatBefore(bad, nil)
	require.NoError(t, b.store.ChangeTicket(t.Context(), tester, postgres.Retry, ours.Ticket.ID))
	treatBefore(ours, "2")

	for id, line := range map[uuid.UUID]postgres.StoredLine{
		alone.Ticket.ID: {Product: "Café", ProductID: "c", Price: "2"}, ours.Ticket.ID: {Product: "Thé", ProductID: "t", Price: "3"},
	} {
		shown, err := b.store.Ticket(t.Context(), id)
		require.NoError(t, err)
		assert.Zero(t, shown.Dialect)
		assert.Equal(t, []postgres.StoredLine{line}, shown.Lines)
	}
	fill(t, b)
	assert.Equal(t, "Café, Thé", one[string](t, b, `SELECT string_agg(product, ', ' ORDER BY product_id) FROM order_lines`))

	// The one that it could not read either is put right when it is sent back.
	require.Len(t, problems(t, b, postgres.ProblemFilter{}, postgres.ByTickets), 1)
	apply(t, b, "shop-1", 1, `{}`)
	require.NoError(t, dialects.Load(t.Context()))
	require.NoError(t, b.store.ChangeTicket(t.Context(), tester, postgres.Retry, bad.Ticket.ID))
	_, err := treatment.New(treatment.Config{Parse: dialects.Parse}, b.store).RunOnce(t.Context())
	require.NoError(t, err)
	_, said := ticket.Parse([]byte("hello"))
	assert.Equal(t, int64(ticket.GroupOf(said)), one[int64](t, b, `SELECT problem_group FROM tickets WHERE status = 'ERROR'`))
	assert.Equal(t, 2, one[int](t, b, `SELECT dialect FROM tickets WHERE status = 'ERROR'`))
}

func TestTryDialect_SaysWhatTicketsWouldBecome_AndChangesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var entries []*intake.Entry
	add := func(source, body string) *intake.Entry {
		e := entry(t, body)
		e.Ticket.Source = source
		entries = append(entries, e)
		return e
	}
	for i := range 5000 {
		add("shop-1", frenchBody(fmt.Sprint(i), "Café,c,2"))
	}
	for i := range 30 {
		add("shop-1", frenchBody(fmt.Sprint(i), "Café,c,two"))
		add("shop-2", frenchBody(fmt.Sprint(i), "Café,c,2"))
	}
	worst := add("shop-1", frenchBody("", "Café,c,two"))
	same := add("shop-1", body("1", "Café,c,2"))
	changed := add("shop-1", "Order: 1\nVAT: 0\nTotal: 2\nCommande: 1\n\nproduct,product_id,price\nCafé,c,2")
	broken := add("shop-1", "Order: 1\nVAT: 0\nTotal: 2\nCommande: 2\n\nproduct,product_id,price\nCafé,c,2")
	require.Equal(t, ticket.Treated, same.Ticket.Status)
	require.Equal(t, ticket.Treated, changed.Ticket.Status)
	for len(entries) > 0 {
		n := min(len(entries), 500)
		save(t, b, entries[:n]...)
		entries = entries[n:]
	}
	before := one[string](t, b, `SELECT md5(string_agg(t::text, '' ORDER BY id)) FROM tickets t`)

	shown := 0
	try := postgres.DialectTry{
		Source: "shop-1", Reader: readerOf(t, french), Errors: 100_000, Treated: 100, Show: func(read int) { shown = read },
	}
	trial, err := b.store.TryDialect(t.Context(), try)
	require.NoError(t, err)
	assert.Equal(t, 5031, trial.Errors.Read)
	assert.Equal(t, 5000, trial.Errors.Treated)
	assert.False(t, trial.Errors.More)
	require.Len(t, trial.Errors.Left, 2)
	assert.Equal(t, "amount_invalid", trial.Errors.Left[0].Code)
	assert.Equal(t, 31, trial.Errors.Left[0].Tickets)
	assert.Equal(t, worst.Ticket.ID, trial.Errors.Left[0].Example)
	assert.Equal(t, 1, trial.Errors.Left[1].Tickets)
	assert.Equal(t, 3, trial.Treated.Read)
	assert.Equal(t, 3, shown)
	assert.Equal(t, 1, trial.Treated.Errors)
	assert.Equal(t, 2, trial.Treated.Changed)
	require.Len(t, trial.Treated.Changes, 2)
	assert.Equal(t, broken.Ticket.ID, trial.Treated.Changes[0].ID, "the newest first")
	assert.Equal(t, ticket.Error, trial.Treated.Changes[0].Status)
	assert.Contains(t, fmt.Sprint(trial.Treated.Changes[0].Added), "header_conflict")
	assert.Equal(t, changed.Ticket.ID, trial.Treated.Changes[1].ID)
	assert.NotEmpty(t, trial.Treated.Changes[1].Removed)

	try.Errors, try.Treated = 2500, 0
	trial, err = b.store.TryDialect(t.Context(), try)
	require.NoError(t, err)
	assert.Equal(t, 2500, trial.Errors.Read)
	assert.True(t, trial.Errors.More)
	assert.Zero(t, trial.Treated.Read)

	apply(t, b, "shop-1", 0, french)
	trial, err = b.store.TryDialect(t.Context(), postgres.DialectTry{
		Source: postgres.OtherSources, Reader: readerOf(t, french), Errors: 100_000, Treated: 100,
	})
	require.NoError(t, err)
	assert.Equal(t, 30, trial.Errors.Read, "only of sources that have no dialect of their own")
	assert.Equal(t, before, one[string](t, b, `SELECT md5(string_agg(t::text, '' ORDER BY id)) FROM tickets t`))
}
