package postgres_test

import (
	"context"
	"errors"
	neturl "net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/ticket"
)

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
	require.ErrorIs(t, ping(time.Minute), ticket.ErrUnavailable, "a role that may not write stores no ticket")
	_, err = admin.Exec(t.Context(), `GRANT INSERT ON tickets, products, deliveries, outbox TO app`)
	require.NoError(t, err)
	require.NoError(t, ping(time.Minute), "no more rights are needed than a server has")

	configure(`ALTER SYSTEM SET synchronous_standby_names = 'nobody'`)
	require.Eventually(t, func() bool { return errors.Is(ping(100*time.Millisecond), ticket.ErrUnavailable) }, 30*time.Second, time.Millisecond)
	require.Eventually(t, func() bool {
		var waiting int
		err := admin.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'`).Scan(&waiting)
		return err == nil && waiting == 0
	}, 30*time.Second, 10*time.Millisecond, "a connection must not hang for ever after its client is gone")

	for _, c := range [][2]string{
		{"a constraint refuses the probe's row, so nothing is inserted", `ALTER TABLE tickets ADD CONSTRAINT c CHECK (octet_length(body) > 1)`},
		{"the role may not write to the log by hand", `ALTER TABLE tickets DROP CONSTRAINT IF EXISTS c;
			REVOKE EXECUTE ON FUNCTION pg_logical_emit_message(bool, text, text) FROM PUBLIC`},
	} {
		_, err = admin.Exec(t.Context(), `SET synchronous_commit = local; `+c[1])
		require.NoError(t, err, c[0])
		require.ErrorIs(t, ping(time.Second), ticket.ErrUnavailable, c[0])
	}

	configure(`ALTER SYSTEM RESET synchronous_standby_names`)
	require.Eventually(t, func() bool { return ping(time.Minute) == nil }, 30*time.Second, time.Millisecond)
}

func TestStore_Ping_IsAboutWhatABatchNeeds(t *testing.T) {
	t.Parallel()
	ping := func(b *testBundle) error {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		return b.store.Ping(ctx)
	}
	t.Run("nothing stays", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		require.NoError(t, ping(b))
		require.NoError(t, ping(b))
		assert.Zero(t, one[int](t, b, `SELECT count(*) FROM tickets`))
	})
	for _, table := range []string{"tickets", "tickets_default", "products", "deliveries"} {
		t.Run(table+" is locked", func(t *testing.T) {
			t.Parallel()
			b := setup(t)
			tx, err := b.pool.Begin(t.Context())
			require.NoError(t, err)
			_, err = tx.Exec(t.Context(), `LOCK TABLE `+table)
			require.NoError(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			require.ErrorIs(t, b.store.Ping(ctx), ticket.ErrUnavailable)
			require.NoError(t, tx.Rollback(t.Context()))
			require.NoError(t, ping(b))
		})
	}
	t.Run("the schema is missing", func(t *testing.T) {
		t.Parallel()
		b := &testBundle{store: open(t, pgtest.Empty(t))}
		require.ErrorIs(t, ping(b), ticket.ErrUnavailable)
	})
	t.Run("a trigger refuses the row of the probe", func(t *testing.T) {
		t.Parallel()
		b := setup(t)
		exec(t, b, `CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no''; END';
			CREATE TRIGGER no BEFORE INSERT ON tickets FOR EACH ROW EXECUTE FUNCTION no()`)
		require.NoError(t, ping(b), "it answers; what it refuses is a ticket's own matter")
	})
}
