package postgres_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/intake"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// tester is who changes something.
var tester = postgres.Person{Who: "tester"}

func TestMain(m *testing.M) { pgtest.Main(m) }

// testBundle is what a test works with: a store on a database of its own, and a pool to look behind it.
type testBundle struct {
	url   string
	store *postgres.Store
	pool  *pgxpool.Pool
}

func setup(tb testing.TB) *testBundle {
	tb.Helper()
	url := pgtest.New(tb)
	return &testBundle{url: url, store: open(tb, url), pool: openPool(tb, url)}
}

func open(tb testing.TB, url string) *postgres.Store {
	tb.Helper()
	store, err := postgres.Open(tb.Context(), postgres.Config{URL: url, MaxConns: 40})
	require.NoError(tb, err)
	tb.Cleanup(store.Close)
	return store
}

func openPool(tb testing.TB, url string) *pgxpool.Pool {
	tb.Helper()
	pool, err := pgxpool.New(tb.Context(), url)
	require.NoError(tb, err)
	tb.Cleanup(pool.Close)
	return pool
}

// benchTickets returns how many tickets a benchmark makes: 100,000, or MYTICKET_BENCH_TICKETS.
func benchTickets() int {
	if n, err := strconv.Atoi(os.Getenv("MYTICKET_BENCH_TICKETS")); err == nil {
		return n
	}
	return 100_000
}

// one returns the one value of a query.
func one[T any](t *testing.T, b *testBundle, sql string, args ...any) T {
	t.Helper()
	var value T
	require.NoError(t, b.pool.QueryRow(t.Context(), sql, args...).Scan(&value), sql)
	return value
}

func exec(t *testing.T, b *testBundle, sql string) {
	t.Helper()
	_, err := b.pool.Exec(t.Context(), sql)
	require.NoError(t, err, sql)
}

// entry is a ticket as intake would hand it over.
func entry(tb testing.TB, body string) *intake.Entry {
	tb.Helper()
	id, at, err := ticket.NewID()
	require.NoError(tb, err)
	e := &intake.Entry{Ticket: ticket.Ticket{
		ID: id, ReceivedAt: at, Source: ticket.DefaultSource, Body: []byte(body), ContentType: "text/plain", Status: ticket.Treated,
	}}
	if e.Ticket.Order, e.Ticket.Problems = ticket.Parse(e.Ticket.Body); len(e.Ticket.Problems) > 0 {
		e.Ticket.Status = ticket.Error
	}
	return e
}

// body is a ticket with an order number and lines of the form name,id,price.
func body(order string, lines ...string) string {
	return fmt.Sprintf("Order: %s\nVAT: 3.10\nTotal: 16.90\n\nproduct,product_id,price\n%s", order, strings.Join(lines, "\n"))
}

// save stores entries in one transaction, and returns what became of each.
func save(t *testing.T, b *testBundle, entries ...*intake.Entry) []intake.Outcome {
	t.Helper()
	return saveBatch(t, b, intake.Batch{Entries: entries})
}

func saveBatch(t *testing.T, b *testBundle, batch intake.Batch) []intake.Outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	saved, err := b.store.Save(ctx, batch)
	require.NoError(t, err)
	require.Len(t, saved.Outcomes, len(batch.Entries))
	return saved.Outcomes
}

// trySave stores entries in one transaction, and returns only the error.
func trySave(ctx context.Context, store *postgres.Store, entries ...*intake.Entry) error {
	_, err := store.Save(ctx, intake.Batch{Entries: entries})
	return err
}
