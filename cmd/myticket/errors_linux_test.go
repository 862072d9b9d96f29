package main

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCommands_OnADatabaseWithoutASchema_SayHowToMakeIt(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	b.exec(t, `DROP SCHEMA public CASCADE`)
	b.exec(t, `CREATE SCHEMA public`)
	for _, args := range [][]string{
		{"tickets", "list"}, {"tickets", "show", "0198c5a0-0000-7000-8000-000000000000"}, {"tickets", "retry", "--all", "--yes"},
		{"audit"}, {"problems"}, {"products", "list"}, {"dialects", "list"}, {"retention", "--keep=90d"},
		{"keys", "export", "--source=shop-1"},
	} {
		code, _, stderr := b.myticket(t, args...)
		assert.Equal(t, 1, code, args)
		assert.Contains(t, stderr, `run "myticket migrate up"`, args)
	}
}

// The server that is told to stop waits for its delay, and the command for a lock.
func TestMain_SecondCtrlC_EndsAtOnce(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	b.insertFailed(t, 1)
	holder, err := pgx.Connect(t.Context(), b.url)
	require.NoError(t, err)
	defer func() { _ = holder.Close(context.Background()) }()
	_, err = holder.Exec(t.Context(), `BEGIN; SELECT FROM tickets FOR UPDATE`)
	require.NoError(t, err)
	server := b.start(t, "serve", "--http-addr=127.0.0.1:0", "--admin-addr=127.0.0.1:0", "--shutdown-delay=10m")
	retry := b.start(t, "tickets", "retry", "--all", "--yes")
	await(t, "the command waits for the lock, and the server is ready", func() bool {
		return b.count(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
			AND application_name = 'myticket tickets'`) == 1 &&
			b.count(t, `SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'myticket serve'`) > 0
	})
	for _, p := range []*process{server, retry} {
		require.NoError(t, p.Process.Signal(syscall.SIGINT))
		time.Sleep(500 * time.Millisecond) // a person is not faster
		require.NoError(t, p.Process.Signal(syscall.SIGINT))
		start := time.Now()
		require.Error(t, p.Wait())
		assert.Less(t, time.Since(start), 3*time.Second)
		status, ok := p.ProcessState.Sys().(syscall.WaitStatus)
		require.True(t, ok)
		assert.Equal(t, syscall.SIGINT, status.Signal(), "%s%s", &p.out, &p.err)
	}
	assert.Contains(t, server.err.String(), "a second Ctrl-C ends at once")
}
