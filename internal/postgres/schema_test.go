package postgres_test

import (
	"context"
	"errors"
	"io/fs"
	neturl "net/url"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
	"myticket/migrations"
)

func TestMigrate_SeveralAtOnce_WaitForEachOther(t *testing.T) {
	t.Parallel()
	url := pgtest.Empty(t)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() { assert.NoError(t, postgres.MigrateUp(t.Context(), url)) })
	}
	group.Wait()
	status, err := open(t, url).Schema(t.Context())
	require.NoError(t, err)
	assert.True(t, status.Ready(), status)
	require.NoError(t, postgres.MigrateUp(t.Context(), url), "nothing to do is no error")
}

func TestSchema_TellsWhatToDo(t *testing.T) {
	t.Parallel()
	b := &testBundle{url: pgtest.Empty(t)}
	b.store, b.pool = open(t, b.url), openPool(t, b.url)
	status, err := b.store.Schema(t.Context())
	require.NoError(t, err)
	assert.False(t, status.Ready())
	assert.Contains(t, status.String(), "myticket migrate up")

	require.NoError(t, postgres.MigrateUp(t.Context(), b.url))
	exec(t, b, `UPDATE schema_migrations SET dirty = true`)
	status, err = b.store.Schema(t.Context())
	require.NoError(t, err)
	assert.False(t, status.Ready())
	assert.Contains(t, status.String(), "myticket migrate force")
	require.ErrorContains(t, postgres.MigrateUp(t.Context(), b.url), "myticket migrate force")

	require.NoError(t, postgres.ForceSchema(postgres.MigrateConfig{URL: b.url}, status.Latest))
	exec(t, b, `UPDATE schema_migrations SET version = version + 1`)
	status, err = b.store.Schema(t.Context())
	require.NoError(t, err)
	assert.True(t, status.Ready(), "a newer schema keeps this version of the program working")

	exec(t, b, `UPDATE schema_migrations SET dirty = true`)
	status, err = b.store.Schema(t.Context())
	require.NoError(t, err)
	assert.True(t, status.Ready(), "a server goes on while the schema is migrated to a newer version, and when that fails")
	assert.Contains(t, status.String(), "myticket migrate force")
}

func TestMigrations_EachSetsALockTimeoutInATransaction(t *testing.T) {
	t.Parallel()
	files, err := fs.Glob(migrations.FS, "*.sql")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		content, err := fs.ReadFile(migrations.FS, file)
		require.NoError(t, err)
		assert.Regexp(t, `(?m)^BEGIN;\nSET LOCAL lock_timeout = '`, string(content), file)
		assert.Regexp(t, `^\d{4}_[a-z_]+\.up\.sql$`, file, "forward-only")
	}
}

func TestStore_ConnectionsThatBreak_AreReplaced(t *testing.T) {
	t.Parallel()
	b := setup(t)
	save(t, b, entry(t, body("1", "Café,a,2")))
	other, err := pgxpool.New(t.Context(), b.url)
	require.NoError(t, err)
	defer other.Close()
	for range 5 { // 57P01 for every connection that the store holds
		_, err = other.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = 'myticket'`)
		require.NoError(t, err)
		save(t, b, entry(t, body("2", "Café,a,2")))
	}
	assert.Equal(t, 6, one[int](t, b, `SELECT count(*) FROM tickets`))
}

func TestStore_ServerThatBecomesReadOnly_IsNoticedAndLeft(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.NoError(t, b.store.Ping(t.Context()))
	exec(t, b, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$`)
	b.store = open(t, b.url)
	start := time.Now()
	err := b.store.Ping(t.Context())
	require.Error(t, err)
	assert.Less(t, time.Since(start), 10*time.Second)
	exec(t, b, `BEGIN READ WRITE; DO $$ BEGIN EXECUTE format('ALTER DATABASE %I RESET default_transaction_read_only', current_database()); END $$; COMMIT`)
	require.NoError(t, b.store.Ping(t.Context()), "it is back by itself")
}

// A primary whose synchronous standbys are gone answers, and commits nothing.
func TestStore_Ping_NoticesThatCommitsWait(t *testing.T) {
	t.Parallel()
	_, url := pgtest.NewServer(t, "wal_level", "replica", "max_wal_senders", "1") // else nothing waits for standbys
	admin := connect(t, url)
	configure := func(sql string) {
		for _, sql := range []string{sql, `SELECT pg_reload_conf()`} {
			_, err := admin.Exec(t.Context(), sql)
			require.NoError(t, err)
		}
	}
	_, err := admin.Exec(t.Context(), `CREATE ROLE app LOGIN PASSWORD 'app'`)
	require.NoError(t, err)
	asApp, err := neturl.Parse(url)
	require.NoError(t, err)
	asApp.User = neturl.UserPassword("app", "app")
	store := open(t, asApp.String())
	ping := func(patience time.Duration) error {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		return store.Ping(ctx)
	}
	require.NoError(t, ping(time.Minute), "a role without rights of its own may ask")

	configure(`ALTER SYSTEM SET synchronous_standby_names = 'nobody'`)
	require.Eventually(t, func() bool { return errors.Is(ping(100*time.Millisecond), ticket.ErrUnavailable) }, 30*time.Second, time.Millisecond)
	require.Eventually(t, func() bool {
		var waiting int
		err := admin.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`).Scan(&waiting)
		return err == nil && waiting == 0
	}, 30*time.Second, 10*time.Millisecond, "a connection must not hang for ever because nobody waits for it")

	configure(`ALTER SYSTEM RESET synchronous_standby_names`)
	require.Eventually(t, func() bool { return ping(time.Minute) == nil }, 30*time.Second, time.Millisecond)

	_, err = admin.Exec(t.Context(), `REVOKE EXECUTE ON FUNCTION pg_logical_emit_message(bool, text, text) FROM PUBLIC`)
	require.NoError(t, err)
	require.NoError(t, ping(time.Minute), "it answers, and that is all that can be known")
}
