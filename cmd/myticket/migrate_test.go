package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/postgres"
)

// migration is `myticket migrate up`, run in this process.
type migration struct {
	log    *logText // stdout and stderr
	cancel func()   // what SIGTERM does
	exited chan int
}

func startMigration(t *testing.T, flags ...string) *migration {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	m := &migration{log: &logText{}, cancel: cancel, exited: make(chan int, 1)}
	go func() {
		m.exited <- run(ctx, append([]string{"migrate", "up"}, flags...), nil, streams{stdout: m.log, stderr: m.log})
	}()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the migration:\n%s", m.log)
		}
	})
	return m
}

// awaitReason waits until the migration says that it waits, and why.
func (m *migration) awaitReason(t *testing.T, reason string) {
	t.Helper()
	await(t, "the migration waits for: "+reason, func() bool {
		for line := range strings.Lines(m.log.String()) {
			if strings.Contains(line, "waiting for the database") && strings.Contains(line, reason) {
				return true
			}
		}
		return false
	})
}

func TestMigrateUp_WithWait_LastsUntilTheDatabaseIsMade(t *testing.T) {
	t.Parallel()
	server, _ := pgtest.NewServer(t)
	superuser := func(sql string) {
		conn, err := pgx.Connect(t.Context(), server.URL("postgres"))
		require.NoError(t, err)
		defer func() { _ = conn.Close(context.Background()) }()
		_, err = conn.Exec(t.Context(), sql)
		require.NoError(t, err, sql)
	}
	u, err := url.Parse(server.URL("later"))
	require.NoError(t, err)
	u.User = url.UserPassword("till", "hunter2")

	require.NoError(t, server.Kill())
	m := startMigration(t, "--wait=1m", "--database-url", u.String())
	m.awaitReason(t, "connection refused")
	require.NoError(t, server.Restart(t.Context()))
	m.awaitReason(t, "28P01") // Postgres answers an unknown role like a wrong password
	superuser(`CREATE ROLE till LOGIN PASSWORD 'hunter2'`)
	m.awaitReason(t, "3D000")
	superuser(`CREATE DATABASE later OWNER till`)

	require.Zero(t, <-m.exited)
	log := m.log.String()
	require.Contains(t, log, "the database answers")
	require.Contains(t, log, "migrate: 1/u tickets", "each migration that ran is named")
	require.Contains(t, log, "migrate: 2/u products")
	require.Contains(t, log, "migrate: 3/u claims")
	require.Contains(t, log, "migrate: 4/u body_is_the_one_copy")
	require.Contains(t, log, "migrate: 5/u products_unsettled_at")
	latest, err := postgres.LatestSchema()
	require.NoError(t, err)
	require.Contains(t, log, fmt.Sprintf("the schema is at version %d,", latest))
	require.NotContains(t, log, "hunter2")
}

func TestMigrateUp_WithWait_LastsUntilTheFailoverIsOver(t *testing.T) {
	t.Parallel()
	databaseURL := pgtest.Empty(t)
	conn, err := pgx.Connect(t.Context(), databaseURL)
	require.NoError(t, err)
	defer func() { _ = conn.Close(context.Background()) }()
	alter := func(what string) {
		_, err := conn.Exec(t.Context(), "ALTER DATABASE "+conn.Config().Database+" "+what)
		require.NoError(t, err)
	}
	alter("SET default_transaction_read_only = on")
	m := startMigration(t, "--wait=1m", "--database-url", databaseURL)
	m.awaitReason(t, "read only")
	alter("RESET default_transaction_read_only")
	require.Zero(t, <-m.exited)
}

func TestMigrateUp_WithWait_ThatIsOver_SaysWhy(t *testing.T) {
	t.Parallel()
	o := runCommand(t, nil, "migrate", "up", "--wait=2500ms", "--database-url", unreachable)
	require.Equal(t, 1, o.code)
	require.Regexp(t, `for 2\.5s, so nothing was changed; .*connection refused`, o.stderr)
	require.Equal(t, 1, strings.Count(o.stderr, "waiting for the database"), "the reason stayed the same: %s", o.stderr)
	require.NotContains(t, o.stderr, "hunter2")
}

func TestMigrateUp_WithWait_IsInterrupted(t *testing.T) {
	t.Parallel()
	m := startMigration(t, "--wait=1h", "--database-url", unreachable)
	m.awaitReason(t, "connection refused")
	m.cancel()
	require.Equal(t, 1, <-m.exited, "a job that did not migrate has failed")
	require.Contains(t, m.log.String(), "nothing was changed")
}

func TestMigrateUp_WithoutWait_FailsAtOnce(t *testing.T) {
	t.Parallel()
	o := runCommand(t, nil, "migrate", "up", "--database-url", unreachable)
	require.Equal(t, 1, o.code)
	require.Contains(t, o.stderr, "connection refused")
	require.NotContains(t, o.stderr, "waiting")
	requireNotUnderstood(t, runCommand(t, nil, "migrate", "up", "--wait=-1s", "--database-url", unreachable), "--wait")
}

// A commit that waits for a standby cannot be stopped. If the deadline of a Job kills the process, its log is gone.
func TestMigrateUp_ThatDoesNotEnd_EndsByItself(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	defer close(release)
	told := make(chan struct{})
	err := migrateUpCmd{Timeout: time.Millisecond}.within(t.Context(), func(ctx context.Context) error {
		<-ctx.Done()
		close(told)
		<-release
		return nil
	})
	require.ErrorContains(t, err, "not done after --timeout 1ms")
	<-told
	stopped := errors.New("stopped in order")
	err = migrateUpCmd{Timeout: time.Millisecond}.within(t.Context(), func(ctx context.Context) error {
		<-ctx.Done()
		return stopped
	})
	require.ErrorIs(t, err, stopped)
	require.NoError(t, migrateUpCmd{Timeout: time.Hour}.within(t.Context(), func(context.Context) error { return nil }))
	require.Contains(t, migrateUpCmd{Timeout: -1}.Validate().Error(), "--timeout")
}
