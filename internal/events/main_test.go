package events_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/events"
	"myticket/internal/intake"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

var tester = postgres.Person{Who: "tester"}

// testBundle is a store on a database of its own, a pool to look behind it, and what targets took.
type testBundle struct {
	url   string
	store *postgres.Store
	pool  *pgxpool.Pool
	sink  *sink
}

func setup(tb testing.TB) *testBundle {
	tb.Helper()
	return setupOn(tb, pgtest.New(tb))
}

func setupOn(tb testing.TB, url string) *testBundle {
	tb.Helper()
	pool, err := pgxpool.New(tb.Context(), url)
	require.NoError(tb, err)
	tb.Cleanup(pool.Close)
	return &testBundle{url: url, store: open(tb, url, postgres.Sources{}), pool: pool, sink: newSink()}
}

func open(tb testing.TB, url string, sources postgres.Sources) *postgres.Store {
	tb.Helper()
	store, err := postgres.Open(tb.Context(), postgres.Config{
		URL: url, MaxConns: 20, Sources: sources, Logger: slog.New(slog.NewTextHandler(tb.Output(), nil)),
	})
	require.NoError(tb, err)
	tb.Cleanup(store.Close)
	return store
}

// sink is what targets took, by subscription, from any sender.
type sink struct {
	mu    sync.Mutex
	took  map[string][]events.Event
	sends int                                    // calls of Send
	tries map[string]int                         // by id of an event
	fail  func(sub string, e events.Event) error // nil for none
}

func newSink() *sink { return &sink{took: map[string][]events.Event{}, tries: map[string]int{}} }

// failing sets what targets answer.
func (s *sink) failing(fail func(sub string, e events.Event) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = fail
}

func (s *sink) of(sub string) []events.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.took[sub])
}

func (s *sink) triesOf(id string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.tries[id]
}

// has reports whether a subscription got events with all of some ids.
func (s *sink) has(sub string, ids ...string) bool {
	got := map[string]bool{}
	for _, e := range s.of(sub) {
		got[e.ID] = true
	}
	return !slices.ContainsFunc(ids, func(id string) bool { return !got[id] })
}

// fakeTarget is a target that puts what it takes into a sink.
type fakeTarget struct {
	sink *sink
	sub  string
}

func (f fakeTarget) Send(ctx context.Context, batch []events.Event) []error {
	f.sink.mu.Lock()
	defer f.sink.mu.Unlock()
	f.sink.sends++
	errs := make([]error, len(batch))
	failed := map[string]bool{}
	for i, e := range batch {
		switch {
		case ctx.Err() != nil:
			errs[i] = ctx.Err()
		case failed[e.Key]:
			errs[i] = events.ErrNotSent
			continue
		case f.sink.fail != nil:
			errs[i] = f.sink.fail(f.sub, e)
		}
		f.sink.tries[e.ID]++
		if errs[i] == nil {
			f.sink.took[f.sub] = append(f.sink.took[f.sub], e)
		} else if !errors.Is(errs[i], events.ErrRejected) {
			failed[e.Key] = true
		}
	}
	return errs
}

func (f fakeTarget) Close() {}

// config returns a configuration with short pauses.
func (b *testBundle) config(t *testing.T) events.SenderConfig {
	t.Helper()
	return events.SenderConfig{
		Store: b.store, Look: 50 * time.Millisecond, Poll: 20 * time.Millisecond, Count: 100 * time.Millisecond,
		FirstPause: time.Millisecond, LongestPause: 50 * time.Millisecond, Attempts: 3,
		Open: func(_ context.Context, sub events.Subscription) (events.Target, error) {
			return fakeTarget{b.sink, sub.Name}, nil
		},
		Registry: prometheus.NewRegistry(), Logger: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
}

// run runs a sender until the test ends, or until stop is called.
func (b *testBundle) run(t *testing.T, config events.SenderConfig) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		events.NewSender(config).Run(ctx)
	}()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	return stop
}

// killable is a store whose process can be killed: from then on it reaches nothing.
type killable struct {
	events.Store
	dead atomic.Bool
}

var errKilled = errors.New("this process was killed")

type killableReader struct {
	events.Reader
	store *killable
}

func (k *killable) EventReader(sub events.Subscribed, process uuid.UUID) events.Reader {
	return killableReader{k.Store.EventReader(sub, process), k}
}

func (r killableReader) Done(ctx context.Context, c events.Chunk, d events.Delivery) error {
	if r.store.dead.Load() {
		return errKilled
	}
	return r.Reader.Done(ctx, c, d)
}

func (r killableReader) Leave(ctx context.Context) error {
	if r.store.dead.Load() {
		return errKilled
	}
	return r.Reader.Leave(ctx)
}

func (b *testBundle) subscribe(t *testing.T, name string, change ...func(*events.Subscription)) {
	t.Helper()
	sub := events.Subscription{Name: name, Target: "https://shop.example/events"}
	for _, f := range change {
		f(&sub)
	}
	require.NoError(t, b.store.CreateSubscription(t.Context(), tester, sub))
}

func (b *testBundle) state(t *testing.T, name string) events.SubscriptionState {
	t.Helper()
	subs, err := b.store.Subscriptions(t.Context())
	require.NoError(t, err)
	i := slices.IndexFunc(subs, func(s events.SubscriptionState) bool { return s.Name == name })
	require.GreaterOrEqual(t, i, 0, "subscription %s", name)
	return subs[i]
}

func (b *testBundle) exec(t *testing.T, sql string, args ...any) {
	t.Helper()
	_, err := b.pool.Exec(t.Context(), sql, args...)
	require.NoError(t, err, sql)
}

func one[T any](t *testing.T, b *testBundle, sql string, args ...any) T {
	t.Helper()
	var value T
	require.NoError(t, b.pool.QueryRow(t.Context(), sql, args...).Scan(&value), sql)
	return value
}

// awaitVisible waits until readers of the outbox may read all that is in it: transactions of other tests on the same server hold
// them back, and a subscription begins behind what they hold back.
func (b *testBundle) awaitVisible(t *testing.T) {
	t.Helper()
	await(t, "the transactions of other tests", func() bool {
		return one[bool](t, b, `SELECT coalesce(bool_and(xid < pg_snapshot_xmin(pg_current_snapshot())), true) FROM outbox`)
	})
}

func await(t *testing.T, what string, is func() bool) {
	t.Helper()
	require.Eventually(t, is, 2*time.Minute, 10*time.Millisecond, what)
}

// entry is a ticket as intake would hand it over.
func entry(tb testing.TB, source, body string) *intake.Entry {
	tb.Helper()
	id, at, err := ticket.NewID()
	require.NoError(tb, err)
	e := &intake.Entry{Ticket: ticket.Ticket{
		ID: id, ReceivedAt: at, Source: source, Body: []byte(body), ContentType: "text/plain", Status: ticket.Treated,
	}}
	if e.Ticket.Order, e.Ticket.Problems = ticket.Parse(e.Ticket.Body); len(e.Ticket.Problems) > 0 {
		e.Ticket.Status = ticket.Error
	}
	return e
}

func entryAt(t *testing.T, at time.Time, body string) *intake.Entry {
	t.Helper()
	e := entry(t, ticket.DefaultSource, body)
	ids := ticket.IDs{Now: func() time.Time { return at }}
	var err error
	e.Ticket.ID, e.Ticket.ReceivedAt, err = ids.New()
	require.NoError(t, err)
	return e
}

func body(order string, lines ...string) string {
	return fmt.Sprintf("Order: %s\nVAT: 3.10\nTotal: 16.90\n\nproduct,product_id,price\n%s", order, strings.Join(lines, "\n"))
}

// save stores entries in one transaction, and returns the ids of their events.
func (b *testBundle) save(t *testing.T, entries ...*intake.Entry) (ids []string) {
	t.Helper()
	_, err := b.store.Save(t.Context(), intake.Batch{Entries: entries})
	require.NoError(t, err)
	for _, e := range entries {
		ids = append(ids, e.Ticket.ID.String()+".1")
	}
	return ids
}

// orders saves tickets with some order numbers, each by itself.
func (b *testBundle) orders(t *testing.T, orders ...string) (ids []string) {
	t.Helper()
	for _, order := range orders {
		ids = append(ids, b.save(t, entry(t, ticket.DefaultSource, body(order, "Café,a,2")))...)
	}
	return ids
}

func onlyTickets(sub *events.Subscription) {
	sub.Filter.Types = []string{events.TicketToTreat, events.TicketTreated, events.TicketError, events.TicketDismissed}
}
