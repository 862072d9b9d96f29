package devdb_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb"
)

func TestStandby_HasWhatWasCommittedWhenThePrimaryDies(t *testing.T) {
	t.Parallel()
	primary := start(t, devdb.Config{Settings: devdb.Replicated()})
	standby, err := primary.StartStandby(t.Context())
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, standby.Stop(context.Background())) })
	require.NoError(t, primary.RequireStandby(t.Context(), true))
	conn := connect(t, primary)
	_, err = conn.Exec(t.Context(), `CREATE TABLE kept (n int)`)
	require.NoError(t, err)

	require.NoError(t, standby.Kill())
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = conn.Exec(ctx, `INSERT INTO kept VALUES (1)`)
	require.Error(t, err, "a commit waits while the standby is missing")
	require.NoError(t, standby.Restart(t.Context()))
	_, err = connect(t, primary).Exec(t.Context(), `INSERT INTO kept VALUES (2)`)
	require.NoError(t, err)

	require.NoError(t, primary.Kill())
	require.NoError(t, standby.Promote(t.Context()))
	conn = connect(t, standby)
	rows, err := conn.Query(t.Context(), `INSERT INTO kept SELECT max(n) + 1 FROM kept RETURNING n`)
	require.NoError(t, err)
	n, err := pgx.CollectExactlyOneRow(rows, pgx.RowTo[int])
	require.NoError(t, err)
	assert.Equal(t, 3, n)
}
