package postgres_test

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/postgres"
	"myticket/migrations"
)

// logOf collects lines, and reports whether one has a text.
type logOf struct {
	lock  sync.Mutex
	lines strings.Builder
}

func (l *logOf) Write(line []byte) (int, error) {
	l.lock.Lock()
	defer l.lock.Unlock()
	return l.lines.Write(line)
}

func (l *logOf) has(text string) bool {
	l.lock.Lock()
	defer l.lock.Unlock()
	return strings.Contains(l.lines.String(), text)
}

// migrateTo2 brings an empty database to version 2 of the schema.
func migrateTo2(t *testing.T, b *testBundle) {
	t.Helper()
	for _, name := range []string{"0001_tickets", "0002_products"} {
		sql, err := migrations.FS.ReadFile(name + ".up.sql")
		require.NoError(t, err)
		exec(t, b, string(sql))
	}
	exec(t, b, `CREATE TABLE schema_migrations (version bigint PRIMARY KEY, dirty boolean NOT NULL)`)
	exec(t, b, `INSERT INTO schema_migrations VALUES (2, false)`)
}

// setupReader returns a database at the version before the newest migration of tickets, whose tickets a transaction reads until
// done is called.
func setupReader(t *testing.T) (b *testBundle, done func()) {
	t.Helper()
	b = &testBundle{url: pgtest.Empty(t)}
	b.store, b.pool = open(t, b.url), openPool(t, b.url)
	migrateTo2(t, b)
	report := connect(t, b.url)
	_, err := report.Exec(t.Context(), `BEGIN; SELECT count(*) FROM tickets`)
	require.NoError(t, err)
	return b, func() {
		_, err := report.Exec(t.Context(), `ROLLBACK`)
		require.NoError(t, err)
	}
}

func TestMigrate_WaitsForReadersOfATable(t *testing.T) {
	t.Parallel()
	b, done := setupReader(t)
	log := &logOf{}
	ended := make(chan error, 1)
	go func() {
		ended <- postgres.Migrate(t.Context(), postgres.MigrateConfig{URL: b.url, Logger: slog.New(slog.NewTextHandler(log, nil))})
	}()
	require.Eventually(t, func() bool { return log.has("tried again") || len(ended) > 0 }, time.Minute, 10*time.Millisecond)
	done()
	require.NoError(t, <-ended, "a report that lasted longer than the lock_timeout must not end an upgrade")
	status, err := b.store.Schema(t.Context())
	require.NoError(t, err)
	require.True(t, status.Ready(), status)
}

func TestMigrate_WhatIsAlwaysLocked_LeavesTheSchemaAsItWas(t *testing.T) {
	t.Parallel()
	b, done := setupReader(t)
	err := postgres.Migrate(t.Context(), postgres.MigrateConfig{URL: b.url, BusyFor: time.Millisecond, Logger: slog.New(slog.DiscardHandler)})
	require.ErrorContains(t, err, "the schema is still at version 2")
	require.ErrorContains(t, err, "pg_stat_activity", "what to do")
	status, err := b.store.Schema(t.Context())
	require.NoError(t, err)
	require.False(t, status.Dirty, "nothing was done, so nothing needs a repair")
	require.Equal(t, uint(2), status.Version)
	done()
	require.NoError(t, postgres.MigrateUp(t.Context(), b.url), "and nothing but another run is needed")
}

// The time is over while a migration waits between two attempts to get its lock. Another attempt would outlive the process.
func TestMigrate_StoppedWhileItWaitsForALock_LeavesTheSchemaAsItWas(t *testing.T) {
	t.Parallel()
	b, done := setupReader(t)
	defer done()
	log := &logOf{}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- postgres.Migrate(ctx, postgres.MigrateConfig{URL: b.url, Logger: slog.New(slog.NewTextHandler(log, nil))})
	}()
	require.Eventually(t, func() bool { return log.has("tried again") || len(ended) > 0 }, time.Minute, time.Millisecond)
	cancel()
	require.ErrorContains(t, <-ended, "the schema is still at version 2")
	status, err := b.store.Schema(t.Context())
	require.NoError(t, err)
	require.Equal(t, postgres.SchemaStatus{Version: 2, Latest: status.Latest}, status)
}

// A Job must not take a stop between two migrations for a success.
func TestMigrate_StoppedBetweenTwoMigrations_IsAnError(t *testing.T) {
	t.Parallel()
	b := &testBundle{url: pgtest.Empty(t)}
	b.store, b.pool = open(t, b.url), openPool(t, b.url)
	migrateTo2(t, b)
	// No lock_timeout applies to what follows a migration, so it stays there until the lock is free.
	exec(t, b, `CREATE FUNCTION stay() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(3); RETURN NEW; END'`)
	exec(t, b, `CREATE TRIGGER stay BEFORE INSERT ON schema_migrations
		FOR EACH ROW WHEN (NEW.version = 3 AND NOT NEW.dirty) EXECUTE FUNCTION stay()`)
	holder := connect(t, b.url)
	_, err := holder.Exec(t.Context(), `SELECT pg_advisory_lock(3)`)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- postgres.Migrate(ctx, postgres.MigrateConfig{URL: b.url, Logger: slog.New(slog.DiscardHandler)})
	}()
	require.Eventually(t, func() bool {
		var waits bool
		err := b.pool.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'
			AND datname = current_database() AND application_name = 'myticket migrate')`).Scan(&waits)
		return err == nil && waits || len(ended) > 0
	}, time.Minute, time.Millisecond)
	cancel()
	_, err = holder.Exec(t.Context(), `SELECT pg_advisory_unlock(3)`)
	require.NoError(t, err)
	require.ErrorContains(t, <-ended, "stopped before the migration to version 4")
	status, err := b.store.Schema(t.Context())
	require.NoError(t, err)
	require.Equal(t, postgres.SchemaStatus{Version: 3, Latest: status.Latest}, status)
}
