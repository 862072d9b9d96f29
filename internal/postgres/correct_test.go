package postgres_test

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
	"myticket/internal/treatment"
)

// correct corrects a ticket, as a person who has seen all corrections; with "" it goes back to the body.
func correct(t *testing.T, b *testBundle, id uuid.UUID, text string) {
	t.Helper()
	corrections, err := b.store.Corrections(t.Context(), id)
	require.NoError(t, err)
	to := postgres.NewText{Seen: len(corrections)}
	if text != "" {
		to.Text = []byte(text)
	}
	require.NoError(t, b.store.CorrectTicket(t.Context(), postgres.Person{Who: "ann", Why: "typo"}, id, to))
}

// treat treats all tickets that are due, as a server does.
func treat(t *testing.T, b *testBundle) {
	t.Helper()
	for {
		claims, err := b.store.Claim(t.Context(), 10, time.Minute)
		require.NoError(t, err)
		if len(claims) == 0 {
			return
		}
		for _, claim := range claims {
			finish(t, b, claim)
		}
	}
}

func finish(t *testing.T, b *testBundle, claim treatment.Claim) {
	t.Helper()
	claim.Ticket.Status = ticket.Treated
	if claim.Ticket.Order, claim.Ticket.Problems = ticket.Parse(claim.Ticket.Body); len(claim.Ticket.Problems) > 0 {
		claim.Ticket.Status = ticket.Error
	}
	_, _, err := b.store.Finish(t.Context(), claim)
	require.NoError(t, err)
}

// productTexts returns the product base as texts: id name price.
func productTexts(t *testing.T, b *testBundle) []string {
	t.Helper()
	rows, err := b.pool.Query(t.Context(), `SELECT concat_ws(' ', product_id, name, price) FROM products ORDER BY product_id`)
	require.NoError(t, err)
	texts, err := pgx.CollectRows(rows, pgx.RowTo[string])
	require.NoError(t, err)
	return texts
}

func stored(t *testing.T, b *testBundle, id uuid.UUID) postgres.StoredTicket {
	t.Helper()
	got, err := b.store.Ticket(t.Context(), id)
	require.NoError(t, err)
	return got
}

func TestCorrectTicket_IsReadInstead_AndTheBodyStays(t *testing.T) {
	t.Parallel()
	b := setup(t)
	bad, good := body("1", "Café,a,2 €"), body("1", "Café,a,2", "Thé,b,3")
	e := entry(t, bad)
	id := e.Ticket.ID
	save(t, b, e)
	require.Equal(t, ticket.Error, stored(t, b, id).Status)
	err := b.store.CorrectTicket(t.Context(), tester, id, postgres.NewText{})
	require.ErrorIs(t, err, postgres.ErrNotCorrected)

	correct(t, b, id, good)
	got := stored(t, b, id)
	assert.Equal(t, ticket.ToTreat, got.Status)
	assert.Equal(t, []string{bad, good}, []string{string(got.Body), string(got.Text)})
	treat(t, b)
	fill(t, b)
	got = stored(t, b, id)
	assert.Equal(t, ticket.Treated, got.Status)
	assert.Equal(t, 1, got.Correction)
	assert.Len(t, got.Lines, 2)
	assert.Equal(t, []string{"1/1 a Café 2", "1/2 b Thé 3"}, lineTexts(t, b))
	assert.Equal(t, []string{"a Café 2", "b Thé 3"}, productTexts(t, b))

	correct(t, b, id, body("2", "Café,a,2.50")) // also the order number
	treat(t, b)
	fill(t, b)
	settle(t, b)
	assert.Equal(t, []string{"2/1 a Café 2.50"}, lineTexts(t, b))
	assert.Equal(t, []string{"a Café 2.50"}, productTexts(t, b), "no ticket names b any more")

	correct(t, b, id, "")
	treat(t, b)
	fill(t, b)
	settle(t, b)
	got = stored(t, b, id)
	assert.Equal(t, ticket.Error, got.Status)
	assert.Zero(t, got.Correction)
	assert.Equal(t, []string{bad, bad}, []string{string(got.Body), string(got.Text)})
	assert.Empty(t, lineTexts(t, b))
	assert.Empty(t, productTexts(t, b))

	corrections, err := b.store.Corrections(t.Context(), id)
	require.NoError(t, err)
	require.Len(t, corrections, 3)
	assert.Equal(t, []any{3, (*int)(nil), "ann", "typo"}, []any{corrections[0].Number, corrections[0].Bytes, corrections[0].Who, corrections[0].Why})
	assert.Equal(t, len(good), *corrections[2].Bytes)
	text, err := b.store.CorrectionText(t.Context(), id, 1)
	require.NoError(t, err)
	assert.Equal(t, good, string(text))
	_, err = b.store.CorrectionText(t.Context(), id, 3)
	require.ErrorContains(t, err, "it went back to what was sent")
	_, err = b.store.CorrectionText(t.Context(), id, 4)
	require.ErrorContains(t, err, "has no correction 4")
	records, err := b.store.Audit(t.Context(), postgres.AuditFilter{Action: postgres.ActionCorrect}, 0, 10)
	require.NoError(t, err)
	require.Len(t, records, 3)
	assert.JSONEq(t, `{"number": 3, "revert": true}`, string(records[0].Details))
	assert.JSONEq(t, fmt.Sprintf(`{"number": 1, "bytes": %d}`, len(good)), string(records[2].Details))
	assert.Equal(t, int64(1), records[2].Tickets)
}

func TestCorrectTicket_Refused_ChangesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := entry(t, "x")
	save(t, b, e)
	id := e.Ticket.ID
	state := func() string {
		return one[string](t, b, `SELECT string_agg(t::text, ' ') || (SELECT count(*) FROM corrections) || (SELECT count(*) FROM audit) FROM tickets t`)
	}
	correct(t, b, id, "y")
	before := state()
	for name, attempt := range map[string]struct {
		id   uuid.UUID
		to   postgres.NewText
		want string
	}{
		"no ticket":  {uuid.Must(uuid.NewV7()), postgres.NewText{Text: []byte("z")}, "no such ticket"},
		"not seen":   {id, postgres.NewText{Text: []byte("z")}, "corrected meanwhile"},
		"seen more":  {id, postgres.NewText{Text: []byte("z"), Seen: 2}, "corrected meanwhile"},
		"too long":   {id, postgres.NewText{Text: make([]byte, ticket.MaxTextBytes+1), Seen: 1}, "at most 16777216"},
		"revert too": {id, postgres.NewText{}, "corrected meanwhile"},
	} {
		err := b.store.CorrectTicket(t.Context(), tester, attempt.id, attempt.to)
		require.ErrorContains(t, err, attempt.want, name)
	}
	require.ErrorContains(t, b.store.CorrectTicket(t.Context(), postgres.Person{}, id, postgres.NewText{Text: []byte("z"), Seen: 1}),
		"it is not said who makes the change")
	assert.Equal(t, before, state())
	for i := 1; i < postgres.MaxCorrections; i++ {
		correct(t, b, id, fmt.Sprint(i))
	}
	before = state()
	err := b.store.CorrectTicket(t.Context(), tester, id, postgres.NewText{Text: []byte("z"), Seen: postgres.MaxCorrections})
	require.ErrorContains(t, err, "it was corrected 100 times")
	assert.Equal(t, before, state())
}

func TestCorrectTicket_TwoPeopleAtOnce_OneIsToldToLookAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := entry(t, "x")
	save(t, b, e)
	failures := make([]error, 4)
	var group sync.WaitGroup
	for i := range failures {
		group.Go(func() {
			failures[i] = b.store.CorrectTicket(t.Context(), postgres.Person{Who: fmt.Sprint(i)}, e.Ticket.ID, postgres.NewText{Text: []byte(fmt.Sprint(i))})
		})
	}
	group.Wait()
	won := slices.Index(failures, nil)
	require.GreaterOrEqual(t, won, 0)
	for i, err := range failures {
		if i != won {
			require.ErrorIs(t, err, postgres.ErrCorrectedMeanwhile)
		}
	}
	assert.Equal(t, fmt.Sprint(won), string(stored(t, b, e.Ticket.ID).Text))
	assert.Equal(t, 1, one[int](t, b, `SELECT count(*) FROM audit`))
}

// TestCorrectTicket_WhileAServerReadsIt: that server must not store what it read of the body.
func TestCorrectTicket_WhileAServerReadsIt_TheCorrectionCounts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := entry(t, body("1", "Café,a,2"))
	saveBatch(t, b, intake.Batch{Entries: []*intake.Entry{e}, Unread: true})
	claims, err := b.store.Claim(t.Context(), 1, time.Minute)
	require.NoError(t, err)
	require.Len(t, claims, 1)
	correct(t, b, e.Ticket.ID, body("2", "Thé,b,3"))
	claims[0].Ticket.Order, claims[0].Ticket.Status = e.Ticket.Order, ticket.Treated
	_, _, err = b.store.Finish(t.Context(), claims[0])
	require.ErrorIs(t, err, treatment.ErrClaimLost)
	treat(t, b)
	assert.Equal(t, []string{"b Thé 3"}, productTexts(t, b))
	assert.Equal(t, "2", stored(t, b, e.Ticket.ID).OrderNumber)
}

// TestCorrectTicket_BeforeItsBatchIsSentAgain: the answer to the COMMIT of a batch was lost, a person corrects one of its tickets,
// and the batch comes again from the spool.
func TestCorrectTicket_BeforeItsBatchIsSentAgain_TheBodySaysNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e, other := entry(t, body("1", "Café,a,2")), entry(t, body("2", "Lait,c,1"))
	save(t, b, e, other)
	correct(t, b, e.Ticket.ID, body("1", "Thé,b,3"))
	treat(t, b)
	settle(t, b)
	save(t, b, e, other)
	assert.Equal(t, []string{"b Thé 3", "c Lait 1"}, productTexts(t, b))
	assert.Equal(t, 2, one[int](t, b, `SELECT count(*) FROM tickets`))
}

func TestCorrectTicket_ProductsAreWhatTheOtherTicketsSay(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		tickets []string // lines of each, in the order of time; {0} is corrected
		at      int      // which one is corrected
		to      string
		want    []string
	}{
		"the only one names another": {[]string{"x,a,1"}, 0, "x,b,1", []string{"b x 1"}},
		"it was the newest":          {[]string{"x,a,1", "x,a,9"}, 1, "x,b,1", []string{"a x 1", "b x 1"}},
		"it has another price":       {[]string{"x,a,1", "x,a,9"}, 1, "x,a,2", []string{"a x 2"}},
		"it cannot be read any more": {[]string{"x,a,1", "x,a,9"}, 1, "x,a", []string{"a x 1"}},
		"a newer one says something": {[]string{"x,a,9", "x,a,1"}, 0, "x,a,2", []string{"a x 1"}},
		"a newer one confirmed it":   {[]string{"x,a,9", "x,a,9"}, 0, "x,a,2", []string{"a x 9"}},
		"it confirmed an older one":  {[]string{"x,a,1", "x,a,1"}, 1, "x,b,2", []string{"a x 1", "b x 2"}},
		"it has another name":        {[]string{"x,a,1", "y,a,1"}, 1, "z,a,1", []string{"a z 1"}},
		"many in between":            {[]string{"x,a,1", "x,b,1", "x,c,1", "x,a,5", "x,b,6"}, 3, "x,d,1", []string{"a x 1", "b x 6", "c x 1", "d x 1"}},
		"the last line of a ticket":  {[]string{"x,a,1\nx,a,2", "x,a,9"}, 1, "x,b,1", []string{"a x 2", "b x 1"}},
		"a price that is the same":   {[]string{"x,a,1.00", "x,a,1"}, 1, "x,a,1.0", []string{"a x 1.0"}},
		"it named it first":          {[]string{"x,a,1", "x,a,1"}, 0, "x,b,2", []string{"a x 1", "b x 2"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			var ids []uuid.UUID
			for i, lines := range c.tickets {
				e := entry(t, body(fmt.Sprint(i), lines))
				ids = append(ids, e.Ticket.ID)
				save(t, b, e)
			}
			settle(t, b)
			before := productTexts(t, b)
			correct(t, b, ids[c.at], body("9", c.to))
			assert.Equal(t, before, productTexts(t, b), "until it is known what counts")
			treat(t, b)
			settle(t, b)
			assert.Equal(t, c.want, productTexts(t, b))
			assert.Zero(t, one[int](t, b, `SELECT count(*) FROM products WHERE named_until IS NOT NULL OR unsettled_from IS NOT NULL`))
			assert.True(t, one[bool](t, b, `SELECT bool_and(last_seen_at >= first_seen_at AND changed_at >= first_seen_at) FROM products`))
		})
	}
}

// TestCorrectTicket_ProductsOfTicketsThatAreGone: a product whose first tickets were dropped keeps what they said.
func TestCorrectTicket_ProductsOfTicketsThatAreGone_Stay(t *testing.T) {
	t.Parallel()
	b := setup(t)
	save(t, b, entry(t, body("1", "x,a,1")))
	e := entry(t, body("2", "x,a,1", "x,b,1"))
	save(t, b, e)
	exec(t, b, `DELETE FROM tickets WHERE order_number = '1'`)
	correct(t, b, e.Ticket.ID, body("2", "x,c,1"))
	treat(t, b)
	settle(t, b)
	assert.Equal(t, []string{"a x 1", "c x 1"}, productTexts(t, b))
	assert.Zero(t, one[int](t, b, `SELECT count(*) FROM products WHERE named_until IS NOT NULL OR unsettled_from IS NOT NULL`))
}

func TestCorrectTicket_OfAnAuthenticatedSource_OthersCountAgain(t *testing.T) {
	t.Parallel()
	b := openWith(t, setup(t), true, map[string]postgres.SourcePolicy{"trusted": {Authenticated: true}})
	save(t, b, from(t, "shop", body("1", "x,a,1", "x,b,1")))
	save(t, b, from(t, "trusted", body("2", "x,b,2")))
	wrong := from(t, "trusted", body("3", "x,a,9", "x,b,9"))
	save(t, b, wrong)
	save(t, b, from(t, "shop", body("4", "x,a,3", "x,b,3")))
	settle(t, b)
	require.Equal(t, []string{"a x 9", "b x 9"}, productTexts(t, b))
	correct(t, b, wrong.Ticket.ID, body("3", "x,c,1"))
	treat(t, b)
	settle(t, b)
	assert.Equal(t, []string{"a x 3", "b x 2", "c x 1"}, productTexts(t, b))
	assert.Equal(t, "false true true", one[string](t, b, `SELECT string_agg(authenticated::text, ' ' ORDER BY product_id) FROM products`))
}

// TestCorrectTicket_ServersThatRememberProducts: another server remembers what the ticket said, and stores tickets that confirm it
// without asking about the product.
func TestCorrectTicket_ServersThatRememberProducts_CountToo(t *testing.T) {
	t.Parallel()
	b := setup(t)
	other := open(t, b.url)
	save(t, b, entry(t, body("1", "x,a,1")))
	wrong := entry(t, body("2", "x,a,9"))
	save(t, b, wrong)
	require.NoError(t, trySave(t.Context(), other, entry(t, body("3", "x,a,9")))) // asks, and remembers
	correct(t, b, wrong.Ticket.ID, body("2", "x,b,1"))
	treat(t, b)
	require.NoError(t, trySave(t.Context(), other, entry(t, body("4", "x,a,9")))) // confirms what it remembers
	settle(t, b)
	assert.Equal(t, []string{"a x 9", "b x 1"}, productTexts(t, b))
}

// TestCorrectTicket_AnyWay_ProductsAndLinesEqualAReplay: tickets come late and in any order, and people correct them meanwhile.
func TestCorrectTicket_AnyWay_ProductsAndLinesEqualAReplay(t *testing.T) {
	t.Parallel()
	b := setup(t)
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	now := time.Now().Truncate(time.Millisecond)
	text := func(order int) string {
		var lines []string
		for range 1 + r.IntN(4) {
			lines = append(lines, fmt.Sprintf("%s,p%d,%d", string(rune('x'+r.IntN(2))), r.IntN(25), 1+r.IntN(3)))
		}
		if r.IntN(6) == 0 {
			lines = append(lines, "unreadable")
		}
		return body(fmt.Sprint(order), lines...)
	}
	const tickets = 240
	texts := make(map[uuid.UUID]string, tickets)
	bodies := make(map[uuid.UUID]string, tickets)
	var ids []uuid.UUID
	entries := make([]*intake.Entry, tickets)
	for i := range entries {
		entries[i] = entryAt(t, now.Add(-time.Duration(r.IntN(600_000))*time.Millisecond), text(i))
		id := entries[i].Ticket.ID
		ids, texts[id], bodies[id] = append(ids, id), string(entries[i].Ticket.Body), string(entries[i].Ticket.Body)
	}
	// They are stored in four parts. While a part is stored, tickets of the earlier parts are corrected and treated.
	var have []uuid.UUID
	for part := range slices.Chunk(entries, tickets/4) {
		var added []uuid.UUID
		for _, e := range part {
			added = append(added, e.Ticket.ID)
		}
		plan := map[uuid.UUID]string{}
		for range len(have) / 4 {
			id := have[r.IntN(len(have))]
			if plan[id] = text(r.IntN(tickets)); r.IntN(3) == 0 {
				plan[id] = ""
			}
		}
		seenBefore := map[uuid.UUID]int{}
		for id := range plan {
			corrections, err := b.store.Corrections(t.Context(), id)
			require.NoError(t, err)
			seenBefore[id] = len(corrections)
			if plan[id] == "" && (len(corrections) == 0 || corrections[0].Bytes == nil) {
				delete(plan, id)
			}
		}
		var group sync.WaitGroup
		group.Go(func() {
			for id, text := range plan {
				to := postgres.NewText{Seen: seenBefore[id]}
				if text != "" {
					to.Text = []byte(text)
				}
				assert.NoError(t, b.store.CorrectTicket(t.Context(), tester, id, to))
			}
		})
		group.Go(func() { saveInRandomOrder(t, b, rand.New(rand.NewPCG(seed, 1)), part) })
		group.Go(func() {
			for range 5 {
				_, err := b.store.SettleProducts(t.Context(), 0, 7)
				assert.NoError(t, err)
			}
		})
		group.Wait()
		for id, text := range plan {
			texts[id] = cmp.Or(text, bodies[id])
		}
		if r.IntN(2) == 0 {
			treat(t, b)
			fill(t, b)
		}
		have = append(have, added...)
	}
	treat(t, b)
	fill(t, b)
	settle(t, b)

	slices.SortFunc(ids, func(a, b uuid.UUID) int { return cmp.Compare(a.String(), b.String()) })
	products, lines := map[string]string{}, []string{}
	for _, id := range ids {
		order, problems := ticket.Parse([]byte(texts[id]))
		if len(problems) > 0 {
			continue
		}
		for i, line := range order.Lines {
			products[line.ProductID] = line.ProductID + " " + line.Name + " " + line.Price.String()
			lines = append(lines, fmt.Sprintf("%s/%d %s %s %s", id, i+1, line.ProductID, line.Name, line.Price))
		}
	}
	assert.Equal(t, slices.Sorted(maps.Values(products)), slices.Sorted(slices.Values(productTexts(t, b))), "seed %d", seed)
	assert.Equal(t, strings.Join(slices.Sorted(slices.Values(lines)), "\n"), one[string](t, b,
		`SELECT string_agg(concat(ticket_id, '/', line, ' ', product_id, ' ', product, ' ', price), E'\n'
			ORDER BY concat(ticket_id, '/', line, ' ', product_id, ' ', product, ' ', price) COLLATE "C") FROM order_lines`), "seed %d", seed)
	for id, text := range bodies {
		got := stored(t, b, id)
		assert.Equal(t, text, string(got.Body))
		assert.Equal(t, texts[id], string(got.Text))
	}
	assert.Zero(t, one[int](t, b, `SELECT count(*) FROM products WHERE named_until IS NOT NULL OR unsettled_from IS NOT NULL`))
}

// TestSettleProducts_ProductThatNoTicketNamedForLong: the search ends, in several turns if it must.
func TestSettleProducts_ProductThatNoTicketNamedForLong_IsFoundInSeveralTurns(t *testing.T) {
	t.Parallel()
	b := setup(t)
	old := time.Now().Add(-time.Hour)
	lines := make([]string, 200)
	for i := range lines {
		lines[i] = fmt.Sprintf("x,p%d,1", i)
	}
	save(t, b, entryAt(t, old, body("0", "x,a,1")))
	for i := range 20 {
		var entries []*intake.Entry
		for j := range 50 {
			entries = append(entries, entryAt(t, old.Add(time.Duration(1+i*50+j)*time.Second), body("1", lines...)))
		}
		save(t, b, entries...)
	}
	wrong := entryAt(t, old.Add(50*time.Minute), body("2", "x,a,9", "x,b,9"))
	save(t, b, wrong)
	settle(t, b)
	require.Equal(t, "9", one[string](t, b, `SELECT price::text FROM products WHERE product_id = 'a'`))
	correct(t, b, wrong.Ticket.ID, body("2", "x,c,1"))
	treat(t, b)
	turns := 0
	for ; turns < 1000; turns++ {
		ctx, cancel := context.WithTimeout(t.Context(), time.Duration(40+turns)*time.Millisecond) // longer on a slow machine
		n, err := b.store.SettleProducts(ctx, 0, 1000)
		cancel()
		if err == nil && n == 0 {
			break
		}
		exec(t, b, `UPDATE products SET unsettled_from = now() WHERE unsettled_from > now()`) // an hour has passed
	}
	t.Logf("%d turns", turns)
	assert.Greater(t, turns, 2)
	assert.Equal(t, "1", one[string](t, b, `SELECT price::text FROM products WHERE product_id = 'a'`))
	assert.Zero(t, one[int](t, b, `SELECT count(*) FROM products WHERE product_id = 'b' OR named_until IS NOT NULL`))
}

func TestDeleteOldCorrections_OfTicketsThatAreGone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	gone, there := entryAt(t, time.Now().AddDate(0, 0, -40), "x"), entryAt(t, time.Now().AddDate(0, 0, -40), "x")
	recent := entry(t, "x")
	for _, e := range []*intake.Entry{gone, there, recent} {
		save(t, b, e)
		correct(t, b, e.Ticket.ID, "y")
	}
	correct(t, b, gone.Ticket.ID, "z")
	exec(t, b, fmt.Sprintf(`DELETE FROM tickets WHERE id IN ('%s', '%s')`, gone.Ticket.ID, recent.Ticket.ID))
	exec(t, b, `CREATE TABLE tickets_strays_1 (LIKE tickets INCLUDING ALL)`)
	exec(t, b, `INSERT INTO tickets_strays_1 SELECT * FROM tickets; UPDATE tickets_strays_1 SET id = gen_random_uuid()`)
	old := time.Now().AddDate(0, 0, -30)
	require.NoError(t, b.store.DeleteOldCorrections(t.Context(), old))
	assert.Equal(t, 4, one[int](t, b, `SELECT count(*) FROM corrections`), "a ticket of that time is set aside")
	exec(t, b, `DROP TABLE tickets_strays_1`)
	for range 2 {
		require.NoError(t, b.store.DeleteOldCorrections(t.Context(), old))
		assert.Equal(t, 2, one[int](t, b, `SELECT count(*) FROM corrections`))
	}
	assert.Equal(t, "y", string(stored(t, b, there.Ticket.ID).Text))
}

func TestTicket_JSON_SaysWhichCorrectionCounts(t *testing.T) {
	t.Parallel()
	b := setup(t)
	e := entry(t, "x")
	save(t, b, e)
	correct(t, b, e.Ticket.ID, "y")
	text, err := json.Marshal(stored(t, b, e.Ticket.ID))
	require.NoError(t, err)
	assert.Contains(t, string(text), `"correction":1`)
}

// A search goes back through many partitions. To compile code for all of them would take longer than its turn, each time.
func TestSettleProducts_ProductThatNoTicketNamedForLong_CompilesNothing(t *testing.T) {
	t.Parallel()
	b := setupDays(t, 40, 20)
	database := one[string](t, b, `SELECT quote_ident(current_database())`)
	for _, cost := range []string{"jit_above_cost", "jit_inline_above_cost", "jit_optimize_above_cost"} {
		exec(t, b, `ALTER DATABASE `+database+` SET `+cost+` = 0`) // as if there were millions of tickets
	}
	exec(t, b, `INSERT INTO products (product_id, name, price, first_seen_at, last_seen_at, changed_at, ticket_id, unsettled_from, named_until)
		SELECT 'a', 'x', 1, received_at, received_at - interval '1 minute', received_at, id, now(), now() FROM tickets ORDER BY received_at LIMIT 1`)
	server := openWith(t, b, false, map[string]postgres.SourcePolicy{})
	_, err := server.store.SettleProducts(t.Context(), 0, 1000)
	require.NoError(t, err)
	assert.Zero(t, one[int](t, b, `SELECT count(*) FROM products`), "it was searched in one turn, and no ticket names it")
}
