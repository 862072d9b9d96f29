package postgres_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"myticket/internal/postgres"
)

func TestBacklog_ProductsThatChanged_AreCountedUntilTheyAreSettled(t *testing.T) {
	t.Parallel()
	b := setup(t)
	save(t, b, ago(entry(t, body("1", "Café,a,2", "Thé,b,3")), time.Hour))
	save(t, b, ago(entry(t, body("2", "Café,a,4")), 2*time.Minute))
	have, err := b.store.Backlog(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, have.Unsettled)
	require.InDelta(t, 120, have.OldestChange.Seconds(), 60)

	settled, err := b.store.SettleProducts(t.Context(), 0, 10)
	require.NoError(t, err)
	require.Equal(t, 1, settled)
	have, err = b.store.Backlog(t.Context())
	require.NoError(t, err)
	require.Zero(t, have.Unsettled)
	require.Zero(t, have.OldestChange)
}

func TestBacklog_CountsWhatWaits_ByItsIndexesOnly(t *testing.T) {
	t.Parallel()
	none, err := setup(t).store.Backlog(t.Context())
	require.NoError(t, err)
	require.Equal(t, postgres.Backlog{Products: none.Products}, none)

	b := setupDays(t, 2, 200)
	exec(t, b, `UPDATE tickets SET next_attempt_at = now() - interval '1 minute' WHERE status = 'TO_TREAT' AND order_number = '3'`)
	have, err := b.store.Backlog(t.Context())
	require.NoError(t, err)
	require.Equal(t, 4, have.Error)
	require.Equal(t, 4, have.ToTreat)
	require.InDelta(t, time.Since(firstDay).Hours(), have.Oldest.Hours(), 1)
	require.InDelta(t, 60, have.Overdue.Seconds(), 30)

	exec(t, b, `VACUUM ANALYZE tickets`)
	how := plan(t, b, true, postgres.BacklogSQL, 100_000)
	require.NotContains(t, how, "Seq Scan on tickets", "it reads every ticket:\n%s", how)
	require.Contains(t, how, "_next_attempt_at_idx", "%s", how)
	require.Contains(t, how, "_received_at_id_idx", "%s", how)
}
