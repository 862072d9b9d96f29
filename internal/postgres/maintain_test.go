package postgres_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/postgres"
)

// maintain runs a Maintainer until the test ends, and returns it once it is ready.
func maintain(t *testing.T, b *testBundle) *postgres.Maintainer {
	t.Helper()
	m := postgres.NewMaintainer(postgres.MaintainConfig{}, b.store)
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() { m.Run(ctx) })
	t.Cleanup(func() { cancel(); running.Wait() })
	require.Eventually(t, func() bool { return m.Health().Ready }, 30*time.Second, 10*time.Millisecond)
	return m
}

func TestMaintainer_ReadyOnlyAfterTheFirstPartitions(t *testing.T) {
	t.Parallel()
	b := setup(t)
	maintain(t, b)
	assert.Len(t, partitions(t, b), 5)
}

// values returns those of a metric, in the order of its labels.
func values(t *testing.T, registry *prometheus.Registry, name string) (values []float64) {
	t.Helper()
	families, err := registry.Gather()
	require.NoError(t, err)
	for _, family := range families {
		if family.GetName() == name {
			for _, metric := range family.GetMetric() {
				values = append(values, metric.GetGauge().GetValue())
			}
		}
	}
	return values
}

// awaitLockOf returns when a session waits for a lock of a table.
func awaitLockOf(t *testing.T, b *testBundle, table string) {
	t.Helper()
	require.Eventually(t, func() bool {
		return isWaitedFor(t, b, table)
	}, 30*time.Second, 10*time.Millisecond, "no session waits for %s", table)
}

func TestMaintainer_SlowJob_DelaysNeitherHealthNorIsItsFailureTakenForNothing(t *testing.T) {
	t.Parallel()
	b := setup(t)
	save(t, b, entry(t, "no ticket"))
	m := maintain(t, b)
	registry := prometheus.NewRegistry()
	registry.MustRegister(m)
	counted := func() []float64 { return values(t, registry, "myticket_backlog_tickets") } // ERROR, TO_TREAT
	require.Eventually(t, func() bool { return len(counted()) > 0 }, 30*time.Second, 10*time.Millisecond, "the backlog is counted")
	require.Equal(t, []float64{1, 0}, counted())

	tx, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	_, err = tx.Exec(t.Context(), `LOCK TABLE products, tickets IN ACCESS EXCLUSIVE MODE`) // settling and counting wait
	require.NoError(t, err)
	awaitLockOf(t, b, "products")

	exec(t, b, `UPDATE schema_migrations SET version = 1`)
	require.Eventually(t, func() bool { return !m.Health().Ready }, 8*time.Second, 10*time.Millisecond,
		"what has become of the database is seen although a job waits")
	exec(t, b, `UPDATE schema_migrations SET version = 1000`)
	require.Eventually(t, func() bool { return m.Health().Ready }, 8*time.Second, 10*time.Millisecond)
	require.ErrorIs(t, m.Job(t.Context(), "count", 50*time.Millisecond), context.DeadlineExceeded)
	assert.Equal(t, []float64{1, 0}, counted(), "a count that was not done in time is no count of nothing")
	m.Age(2 * time.Minute)
	assert.Empty(t, counted(), "an old count is not shown as a new one")
}

func TestMaintainer_OrderLinesThatCannotBeCounted_KeepNoOtherCountBack(t *testing.T) {
	t.Parallel()
	b := setup(t)
	save(t, b, entry(t, "no ticket"))
	m := postgres.NewMaintainer(postgres.MaintainConfig{OrderLines: true}, b.store)
	registry := prometheus.NewRegistry()
	registry.MustRegister(m)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { m.Run(ctx); close(ended) }()
	t.Cleanup(func() { cancel(); <-ended })
	waiting := func() []float64 { return values(t, registry, "myticket_order_lines_waiting_tickets") }
	require.Eventually(t, func() bool { return len(waiting()) > 0 }, 30*time.Second, 10*time.Millisecond)
	require.Equal(t, []float64{1}, waiting())

	exec(t, b, `ALTER TABLE outbox_readers RENAME TO elsewhere`)
	save(t, b, entry(t, "no ticket"))
	require.ErrorContains(t, m.Job(t.Context(), "count", 30*time.Second), "whose lines are to be filled")
	assert.Equal(t, []float64{2, 0}, values(t, registry, "myticket_backlog_tickets"))
	assert.Equal(t, []float64{1}, waiting(), "the last count stays for a minute")
}
