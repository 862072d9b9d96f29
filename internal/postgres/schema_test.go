package postgres_test

import (
	"io/fs"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/postgres"
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

	require.NoError(t, postgres.ForceSchema(t.Context(), postgres.MigrateConfig{URL: b.url}, status.Latest))
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
