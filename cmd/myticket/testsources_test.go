package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/ticket"
)

func TestTestSources_TeachNothing_ThroughAServer(t *testing.T) {
	t.Parallel()
	b := setup(t, "--test-sources=till-9,quiet")
	quiet := b.submit(t, "/ticket/quiet", body("1", "Café,c,2"))
	require.Equal(t, ticket.Treated, quiet.Status)
	require.Equal(t, ticket.Treated, b.submit(t, "/ticket/shop-1", body("2", "Thé,t,3")).Status)
	require.Equal(t, map[string]string{"t": "Thé 3"}, b.products(t))
	require.Equal(t, "TREATED", string(b.ticket(t, quiet.ID).Status))
	b.awaitOrderLines(t)
	require.Equal(t, 1, b.count(t, `SELECT count(*) FROM order_lines WHERE source = 'quiet' AND product_id = 'c'`),
		"its lines are there as those of all others")
}

// The command stores tickets without a server, so it needs the setting, too.
func TestTestSources_TeachNothing_WhenASpoolIsDrained(t *testing.T) {
	t.Parallel()
	databaseURL := pgtest.New(t)
	b := &testBundle{pool: openPool(t, databaseURL)}
	dir := spoolOf(t, sample(t)) // of the source "default"
	out, code := command(t, "spool", "drain", "--test-sources", ticket.DefaultSource, "--database-url", databaseURL, dir)
	require.Zero(t, code, out)
	require.Equal(t, 1, b.count(t, `SELECT count(*) FROM tickets WHERE status = 'TREATED'`))
	require.Empty(t, b.products(t))
}
