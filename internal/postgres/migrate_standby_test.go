package postgres_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/postgres"
)

// A migration that waits for a standby in its first commit has to be killed, and leaves a dirty schema. So it must not begin.
func TestMigrate_WithoutItsStandbys_ChangesNothing(t *testing.T) {
	t.Parallel()
	server, _ := pgtest.NewServer(t, "wal_level", "replica", "max_wal_senders", "1") // else nothing waits for standbys
	url := server.URL("postgres")                                                    // which has no schema yet
	admin := connect(t, url)
	standbys := func(names string) {
		for _, sql := range []string{`ALTER SYSTEM SET synchronous_standby_names = '` + names + `'`, `SELECT pg_reload_conf()`} {
			_, err := admin.Exec(t.Context(), sql)
			require.NoError(t, err)
		}
		// The setting has an effect as soon as the checkpointer has read it.
		require.Eventually(t, func() bool {
			conn := connect(t, url)
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			_, err := conn.PgConn().Exec(ctx, `CREATE TABLE probe (); DROP TABLE probe`).ReadAll()
			return (err != nil) == (names != "")
		}, time.Minute, 10*time.Millisecond)
	}
	tables := func() (count int) {
		require.NoError(t, admin.QueryRow(t.Context(), `SELECT count(*) FROM pg_tables WHERE schemaname = 'public'`).Scan(&count))
		return count
	}
	standbys("nobody")

	said := &logOf{}
	config := postgres.MigrateConfig{URL: url, StandbyWait: 5 * time.Second, Logger: slog.New(slog.NewTextHandler(said, nil))}
	require.ErrorContains(t, postgres.Migrate(t.Context(), config), "no synchronous standby confirmed a commit for 5s, so nothing was migrated by this run")
	assert.Zero(t, tables())
	require.Eventually(t, func() bool {
		var waiting int
		err := admin.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`).Scan(&waiting)
		return err == nil && waiting == 0
	}, 30*time.Second, 10*time.Millisecond, "an attempt that was given up must not stay in the database")

	config.StandbyWait = time.Minute
	ended := make(chan error, 1)
	go func() { ended <- postgres.Migrate(t.Context(), config) }()
	require.Eventually(t, func() bool { return said.has("waiting until a synchronous standby confirms") }, 30*time.Second, 10*time.Millisecond)
	assert.Zero(t, tables())
	standbys("")
	require.NoError(t, <-ended, "it begins as soon as the standby is back")
	assert.NotZero(t, tables())

	standbys("nobody")
	config.StandbyWait = time.Hour
	require.NoError(t, postgres.Migrate(t.Context(), config), "if nothing is to be migrated, a missing standby is no hindrance")
}
