package treatment_test

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/intake"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
	"myticket/internal/treatment"
)

// tester is who changes something.
var tester = postgres.Person{Who: "tester"}

func TestMain(m *testing.M) { pgtest.Main(m) }

const sample = "Order: 1\nVAT: 0\nTotal: 2\n\nproduct,product_id,price\nCafé,a,2"

// testBundle is a real store with tickets that wait, and a pool to look behind it.
type testBundle struct {
	store *postgres.Store
	pool  *pgxpool.Pool
}

func setup(t *testing.T, bodies ...string) *testBundle {
	t.Helper()
	url := pgtest.New(t)
	store, err := postgres.Open(t.Context(), postgres.Config{URL: url, MaxConns: 20})
	require.NoError(t, err)
	t.Cleanup(store.Close)
	pool, err := pgxpool.New(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	b := &testBundle{store, pool}
	for _, body := range bodies {
		id, at, err := ticket.NewID()
		require.NoError(t, err)
		b.exec(t, `INSERT INTO tickets (id, received_at, source, body, status, next_attempt_at)
			VALUES ($1, $2, 'default', $3, 'TO_TREAT', now())`, id, at, []byte(body))
	}
	return b
}

func (b *testBundle) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	_, err := b.pool.Exec(t.Context(), sql, args...)
	require.NoError(t, err, sql)
}

func one[T any](t *testing.T, b *testBundle, sql string) T {
	t.Helper()
	var value T
	require.NoError(t, b.pool.QueryRow(t.Context(), sql).Scan(&value), sql)
	return value
}

func (b *testBundle) finish(t *testing.T, c treatment.Claim) error {
	t.Helper()
	_, _, err := b.store.Finish(t.Context(), c)
	return err
}

func (b *testBundle) treater(config treatment.Config) *treatment.Treater {
	config.Logger = slog.New(slog.DiscardHandler)
	return treatment.New(config, b.store)
}

func TestTreater_TreatsWhatWaits(t *testing.T) {
	t.Parallel()
	b := setup(t, sample, "no ticket")
	n, err := b.treater(treatment.Config{}).RunOnce(t.Context())
	require.NoError(t, err)
	assert.Equal(t, 2, n)
	assert.Equal(t, "ERROR,TREATED", one[string](t, b, `SELECT string_agg(status, ',' ORDER BY status) FROM tickets`))
	assert.Equal(t, "Café 2", one[string](t, b, `SELECT name || ' ' || price FROM products`))
	assert.Equal(t, "1", one[string](t, b, `SELECT order_number FROM tickets WHERE status = 'TREATED'`))
	assert.Equal(t, 2, one[int](t, b, `SELECT count(*) FROM outbox WHERE kind = 'treated'`), "their lines can be read behind")
	assert.NotEmpty(t, one[string](t, b, `SELECT problems -> 0 ->> 'message' FROM tickets WHERE status = 'ERROR'`))
	assert.Equal(t, 2, one[int](t, b, `SELECT count(*) FROM tickets WHERE next_attempt_at IS NULL AND parser_version > 0`))
}

func TestTreater_SeveralServersAtOnce_TreatEachTicketOnce(t *testing.T) {
	t.Parallel()
	var bodies []string
	for i := range 200 {
		bodies = append(bodies, fmt.Sprintf("Order: %d\nVAT: 0\nTotal: 2\n\nproduct,product_id,price\nCafé,a,2", i))
	}
	b := setup(t, bodies...)
	b.exec(t, `CREATE TABLE treatments (id uuid)`)
	b.exec(t, `CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN INSERT INTO treatments VALUES (new.id); RETURN new; END $$`)
	b.exec(t, `CREATE TRIGGER note AFTER UPDATE ON tickets FOR EACH ROW WHEN (new.status = 'TREATED') EXECUTE FUNCTION note()`)
	var group sync.WaitGroup
	for range 6 {
		group.Go(func() {
			tr := b.treater(treatment.Config{Batch: 7})
			for {
				n, err := tr.RunOnce(t.Context())
				if !assert.NoError(t, err) || n == 0 {
					return
				}
			}
		})
	}
	group.Wait()
	assert.Equal(t, 200, one[int](t, b, `SELECT count(*) FROM treatments`))
	assert.Equal(t, 200, one[int](t, b, `SELECT count(DISTINCT id) FROM treatments`))
	assert.Equal(t, 200, one[int](t, b, `SELECT count(*) FROM tickets WHERE status = 'TREATED' AND attempts = 1`))
}

func TestTreater_ServerKilledInTheMiddle_AnotherOneTakesOver(t *testing.T) {
	t.Parallel()
	b := setup(t, sample)
	claims, err := b.store.Claim(t.Context(), 10, time.Minute) // and dies
	require.NoError(t, err)
	require.Len(t, claims, 1)

	n, err := b.treater(treatment.Config{}).RunOnce(t.Context())
	require.NoError(t, err)
	assert.Zero(t, n, "the lease holds")

	b.exec(t, `UPDATE tickets SET next_attempt_at = now() - interval '1 s'`) // the lease has run out
	n, err = b.treater(treatment.Config{}).RunOnce(t.Context())
	require.NoError(t, err)
	assert.Equal(t, 1, n)
	assert.Equal(t, "TREATED", one[string](t, b, `SELECT status FROM tickets`))

	// It was not dead after all: its writes come to nothing.
	claims[0].Ticket.Status, claims[0].Ticket.Problems = ticket.Error, []ticket.Problem{{Code: "late"}}
	require.ErrorIs(t, b.finish(t, claims[0]), treatment.ErrClaimLost)
	require.ErrorIs(t, b.store.Postpone(t.Context(), claims[0], 0), treatment.ErrClaimLost)
	assert.Equal(t, "TREATED", one[string](t, b, `SELECT status FROM tickets`))
}

func TestTreater_ContentThatPostgresRefuses_BecomesErrorAtOnce(t *testing.T) {
	t.Parallel()
	b := setup(t, sample, "Order: POISON\nVAT: 0\nTotal: 2\n\nproduct,product_id,price\nThé,b,3")
	b.exec(t, `ALTER TABLE tickets ADD CONSTRAINT no_poison CHECK (order_number <> 'POISON')`)
	_, err := b.treater(treatment.Config{}).RunOnce(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "database_refused", one[string](t, b, `SELECT problems -> 0 ->> 'code' FROM tickets WHERE status = 'ERROR'`))
	assert.Contains(t, one[string](t, b, `SELECT problems -> 0 ->> 'message' FROM tickets WHERE status = 'ERROR'`), "no_poison")
	assert.Equal(t, 1, one[int](t, b, `SELECT count(*) FROM tickets WHERE status = 'TREATED'`))
	assert.Equal(t, "a", one[string](t, b, `SELECT string_agg(product_id, ',') FROM products`), "an ERROR ticket adds no product")
}

func TestTreater_FailureThatMayPass_IsTriedAgainLaterAndAtLastBecomesError(t *testing.T) {
	t.Parallel()
	b := setup(t, sample)
	// 53100 is disk_full: nothing that the ticket could be blamed for.
	b.exec(t, `CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$
		BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = '53100'; END $$`)
	b.exec(t, `CREATE TRIGGER full_disk BEFORE INSERT ON products FOR EACH ROW EXECUTE FUNCTION full_disk()`)
	tr := b.treater(treatment.Config{MaxAttempts: 3, MinBackOff: time.Hour, MaxBackOff: 90 * time.Minute})
	for attempt := 1; attempt <= 2; attempt++ {
		n, err := tr.RunOnce(t.Context())
		require.NoError(t, err)
		require.Equal(t, 1, n)
		assert.Equal(t, "TO_TREAT", one[string](t, b, `SELECT status FROM tickets`))
		wait := one[float64](t, b, `SELECT extract(epoch FROM next_attempt_at - now())::float8 FROM tickets`)
		assert.Greater(t, wait, 29*60., "attempt %d: back-off with jitter of half of it", attempt)
		assert.Less(t, wait, 91*60., "attempt %d: never longer than the maximum", attempt)
		n, err = tr.RunOnce(t.Context())
		require.NoError(t, err)
		require.Zero(t, n, "it is not due yet")
		b.exec(t, `UPDATE tickets SET next_attempt_at = now()`)
	}
	_, err := tr.RunOnce(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "ERROR", one[string](t, b, `SELECT status FROM tickets`))
	assert.Equal(t, "attempts_used_up", one[string](t, b, `SELECT problems -> 0 ->> 'code' FROM tickets`))
	assert.Contains(t, one[string](t, b, `SELECT problems -> 0 ->> 'message' FROM tickets`), "no space left")
}

func TestTreater_TicketThatKillsItsServer_IsGivenUp(t *testing.T) {
	t.Parallel()
	b := setup(t, sample)
	b.exec(t, `UPDATE tickets SET attempts = 3`)
	_, err := b.treater(treatment.Config{MaxAttempts: 3}).RunOnce(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "attempts_used_up", one[string](t, b, `SELECT problems -> 0 ->> 'code' FROM tickets WHERE status = 'ERROR'`))
}

func TestTreater_Run_EndsWithItsContext(t *testing.T) {
	t.Parallel()
	b := setup(t, sample)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { b.treater(treatment.Config{Interval: 10 * time.Millisecond}).Run(ctx); close(done) }()
	require.Eventually(t, func() bool { return one[int](t, b, `SELECT count(*) FROM tickets WHERE status = 'TREATED'`) == 1 },
		20*time.Second, 10*time.Millisecond)
	cancel()
	<-done
}

func TestTreater_ClaimFromBeforeARetry_ChangesNothing(t *testing.T) {
	t.Parallel()
	b := setup(t, sample)
	claim := func() treatment.Claim {
		t.Helper()
		b.exec(t, `UPDATE tickets SET next_attempt_at = now() - interval '1 s'`) // a lease that was there has run out
		claims, err := b.store.Claim(t.Context(), 1, time.Minute)
		require.NoError(t, err)
		require.Len(t, claims, 1)
		return claims[0]
	}
	slow := claim()
	other := claim()
	other.Ticket.Status, other.Ticket.Problems = ticket.Error, []ticket.Problem{{Code: "other"}}
	require.NoError(t, b.finish(t, other))
	require.NoError(t, b.store.ChangeTicket(t.Context(), tester, postgres.Retry, other.Ticket.ID))

	slow.Ticket.Status, slow.Ticket.Problems = ticket.Error, []ticket.Problem{{Code: "slow"}}
	require.ErrorIs(t, b.finish(t, slow), treatment.ErrClaimLost)
	newest := claim()
	require.Equal(t, slow.Attempt, newest.Attempt, "attempts begin anew")
	require.ErrorIs(t, b.finish(t, slow), treatment.ErrClaimLost)
	require.ErrorIs(t, b.store.Postpone(t.Context(), slow, time.Hour), treatment.ErrClaimLost)
	newest.Ticket.Status = ticket.Treated
	require.NoError(t, b.finish(t, newest))
	assert.Equal(t, "TREATED", one[string](t, b, `SELECT status FROM tickets`))
}

// What the version before does while servers are updated one after the other: it knows attempts alone.
const (
	claimOfTheVersionBefore  = `UPDATE tickets SET attempts = attempts + 1, next_attempt_at = now() + interval '1 minute' RETURNING attempts`
	finishOfTheVersionBefore = `UPDATE tickets SET status = 'ERROR' WHERE status = 'TO_TREAT' AND attempts = $1`
)

func TestTreater_ClaimOfAnotherVersion_MakesAnOlderOneVoid(t *testing.T) {
	t.Parallel()
	b := setup(t, sample)
	claims, err := b.store.Claim(t.Context(), 1, time.Minute)
	require.NoError(t, err)
	require.Len(t, claims, 1)
	before := one[int](t, b, claimOfTheVersionBefore)
	claims[0].Ticket.Status = ticket.Treated
	require.ErrorIs(t, b.finish(t, claims[0]), treatment.ErrClaimLost)
	b.exec(t, `UPDATE tickets SET next_attempt_at = now()`)
	claims, err = b.store.Claim(t.Context(), 1, time.Minute)
	require.NoError(t, err)
	require.Len(t, claims, 1)
	b.exec(t, finishOfTheVersionBefore, before)
	claims[0].Ticket.Status = ticket.Treated
	require.NoError(t, b.finish(t, claims[0]))
	assert.Equal(t, "TREATED", one[string](t, b, `SELECT status FROM tickets`))
}

func TestTreater_TicketThatWasStoredClaimed_IsTheClaimersAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	id, at, err := ticket.NewID()
	require.NoError(t, err)
	e := &intake.Entry{Ticket: ticket.Ticket{ID: id, ReceivedAt: at, Source: "s", Body: []byte(sample)}}
	_, err = b.store.Save(t.Context(), intake.Batch{Entries: []*intake.Entry{e}, Unread: true, ClaimFor: time.Minute})
	require.NoError(t, err)
	assert.Equal(t, 1, one[int](t, b, `SELECT claims FROM tickets WHERE attempts = 1`))
	status, problems, err := b.treater(treatment.Config{}).Treat(t.Context(), e.Ticket, 1)
	require.NoError(t, err)
	assert.Equal(t, ticket.Treated, status)
	assert.Empty(t, problems)
	assert.Equal(t, "TREATED", one[string](t, b, `SELECT status FROM tickets`))
	_, _, err = b.treater(treatment.Config{}).Treat(t.Context(), e.Ticket, 1)
	require.ErrorIs(t, err, treatment.ErrClaimLost)
}

func TestTreater_SilentConnection_EndsInTimeAndIsTriedAgain(t *testing.T) {
	t.Parallel()
	server, url := pgtest.NewServer(t)
	store, err := postgres.Open(t.Context(), postgres.Config{URL: url})
	require.NoError(t, err)
	t.Cleanup(store.Close)
	pool, err := pgxpool.New(t.Context(), url)
	require.NoError(t, err)
	t.Cleanup(pool.Close)
	b := &testBundle{store, pool}
	insert := func() {
		id, at, err := ticket.NewID()
		require.NoError(t, err)
		b.exec(t, `INSERT INTO tickets (id, received_at, source, body, status, next_attempt_at)
			VALUES ($1, $2, 'default', $3, 'TO_TREAT', now())`, id, at, []byte(sample))
	}
	insert()
	parsing, parse := make(chan struct{}), make(chan struct{})
	tr := b.treater(treatment.Config{
		Timeout: 200 * time.Millisecond, Lease: time.Second, Interval: 10 * time.Millisecond,
		Parse: func(source string, body []byte) (ticket.Order, []ticket.Problem, int) {
			parsing <- struct{}{}
			<-parse
			return ticket.ParseAny(source, body)
		},
	})
	for name, pauseAt := range map[string]bool{"finish": true, "claim": false} {
		done := make(chan error, 1)
		if pauseAt {
			go func() { _, err := tr.RunOnce(t.Context()); done <- err }()
			<-parsing
			require.NoError(t, server.Pause())
			parse <- struct{}{}
		} else {
			require.NoError(t, server.Pause())
			go func() { _, err := tr.RunOnce(t.Context()); done <- err }()
		}
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatalf("%s: it waits for an answer that never comes", name)
		}
		require.NoError(t, server.Resume())
	}
	go func() {
		for range parsing {
			parse <- struct{}{}
		}
	}()
	t.Cleanup(func() { close(parsing) })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { tr.Run(ctx); close(ended) }()
	require.Eventually(t, func() bool {
		var n int
		err := b.pool.QueryRow(ctx, `SELECT count(*) FROM tickets WHERE status = 'TREATED'`).Scan(&n)
		return err == nil && n == 1
	}, 20*time.Second, 10*time.Millisecond, "it goes on once the database answers")
	cancel()
	<-ended
}

// A person has locked one product for long. The tickets behind those that name it are not tried in time, again and again.
func TestTreater_TicketsBehindSlowOnes_AreNotGivenUpUntried(t *testing.T) {
	t.Parallel()
	bodies := []string{}
	for i := range 6 {
		bodies = append(bodies, fmt.Sprintf("Order: %d\nVAT: 0\nTotal: 2\n\nproduct,product_id,price\nSlow,slow,%d", i, i+5))
	}
	for i := range 10 {
		bodies = append(bodies, fmt.Sprintf("Order: %d\nVAT: 0\nTotal: 2\n\nproduct,product_id,price\nCafé,a,2", 100+i))
	}
	b := setup(t, bodies...)
	b.exec(t, `INSERT INTO products (product_id, name, price, first_seen_at, last_seen_at, changed_at, ticket_id)
		VALUES ('slow', 'Slow', 1, '2020-01-01', '2020-01-01', '2020-01-01', '00000000-0000-7000-8000-000000000000')`)
	b.exec(t, `UPDATE tickets SET next_attempt_at = now() - interval '1 h' WHERE convert_from(body, 'UTF8') LIKE '%slow%'`)
	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = tx.Exec(t.Context(), `UPDATE products SET name = name WHERE product_id = 'slow'`)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var running sync.WaitGroup
	running.Go(func() {
		b.treater(treatment.Config{
			Interval: 10 * time.Millisecond, Lease: time.Second, Timeout: 300 * time.Millisecond, MaxAttempts: 3,
			MinBackOff: 100 * time.Millisecond, MaxBackOff: 200 * time.Millisecond,
		}).Run(ctx)
	})
	require.Eventually(t, func() bool {
		return one[int](t, b, `SELECT count(*) FROM tickets WHERE status = 'TO_TREAT'`) == 0
	}, time.Minute, 50*time.Millisecond)
	cancel()
	running.Wait()
	assert.Equal(t, 10, one[int](t, b, `SELECT count(*) FROM tickets WHERE status = 'TREATED'`),
		"nothing is wrong with them: %s", one[string](t, b, `SELECT coalesce(string_agg(DISTINCT problems ->> 0, ' | '), '') FROM tickets WHERE convert_from(body, 'UTF8') NOT LIKE '%slow%'`))
}

// slowStore takes a second for each ticket.
type slowStore struct {
	treatment.Store
	claims []treatment.Claim
}

func (s *slowStore) Claim(context.Context, int, time.Duration) ([]treatment.Claim, error) {
	return s.claims, nil
}

func (s *slowStore) Finish(_ context.Context, c treatment.Claim) (ticket.Status, []ticket.Problem, error) {
	time.Sleep(time.Second)
	return c.Ticket.Status, nil, nil
}

func TestTreater_WhileTicketsAreStored_WorksHalfOfTheTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		store := &slowStore{}
		for range 5 {
			store.claims = append(store.claims, treatment.Claim{Ticket: &ticket.Ticket{Body: []byte(sample)}, Attempt: 1, Number: 1})
		}
		busy := true
		tr := treatment.New(treatment.Config{Busy: func() bool { return busy }}, store)
		start := time.Now()
		_, err := tr.RunOnce(t.Context())
		require.NoError(t, err)
		assert.Equal(t, 10*time.Second, time.Since(start))
		busy, start = false, time.Now()
		_, err = tr.RunOnce(t.Context())
		require.NoError(t, err)
		assert.Equal(t, 5*time.Second, time.Since(start))
	})
}
