package main

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestOrderLines_AMomentBehind(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.submit(t, "/ticket/shop-1", body("1", "Café,a,2", "Thé,b,3.50"))
	b.awaitOrderLines(t)
	require.Equal(t, 2, b.count(t, `SELECT count(*) FROM order_lines WHERE source = 'shop-1' AND order_number = '1'`))
	await(t, "its metrics are there", func() bool {
		metrics := string(b.get(t, b.internal+"/metrics").body)
		return strings.Contains(metrics, "myticket_order_lines_lag_seconds 0") && strings.Contains(metrics, "myticket_order_lines_waiting_tickets 0") &&
			strings.Contains(metrics, "myticket_order_lines_failed_tickets_total 0")
	})
}

func TestRetention_DropsTheLinesOfDroppedTickets(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	for _, table := range []string{"tickets", "ticket_lines"} {
		b.exec(t, `CREATE TABLE old_`+table+` PARTITION OF `+table+` FOR VALUES FROM ('2025-01-01 00:00:00Z') TO ('2025-01-02 00:00:00Z')`)
		b.exec(t, `CREATE TABLE kept_`+table+` PARTITION OF `+table+` FOR VALUES FROM ('2025-01-02 00:00:00Z') TO ('2025-01-03 00:00:00Z')`)
	}
	b.exec(t, `INSERT INTO tickets (id, received_at, source, body, status) VALUES
		('00000000-0000-0000-0000-000000000001', '2025-01-01 12:00:00Z', 's', '', 'TREATED'),
		('00000000-0000-0000-0000-000000000002', '2025-01-02 12:00:00Z', 's', '', 'TREATED'),
		('00000000-0000-0000-0000-000000000003', '2025-01-02 12:00:00Z', 's', '', 'ERROR')`)
	b.exec(t, `INSERT INTO ticket_lines (received_at, ticket_id, source, lines)
		SELECT received_at, id, source, E'a\t2\tCafé' FROM tickets WHERE status = 'TREATED'`)
	lines := func() string { return b.text(t, `SELECT count(*)::text FROM order_lines`) }
	b.ok(t, "retention", "--keep=52w")
	require.Equal(t, "2", lines())
	b.ok(t, "retention", "--keep=52w", "--apply")
	require.Equal(t, "1", lines(), "those of the partition that was kept")
	b.ok(t, "retention", "--keep=52w", "--drop-unfinished", "--apply")
	require.Equal(t, "0", lines())
}

func TestOrderLines_SwitchedOff_OnlyTheOutboxIsWritten(t *testing.T) {
	t.Parallel()
	b := setup(t, "--no-order-lines")
	b.submit(t, "/ticket", body("1", "Café,a,2"))
	time.Sleep(1500 * time.Millisecond) // a server that fills looks each second
	require.Zero(t, b.count(t, `SELECT count(*) FROM ticket_lines`))
	require.Zero(t, b.count(t, `SELECT count(*) FROM outbox_readers`))
	require.Equal(t, 1, b.count(t, `SELECT count(*) FROM outbox`))
	a := b.get(t, b.internal+"/metrics")
	require.Equal(t, http.StatusOK, a.status)
	require.NotContains(t, string(a.body), "myticket_order_lines")
	require.Zero(t, b.stop())

	later := serve(t, b.databaseURL) // switched on again
	later.awaitReady(t)
	b.awaitOrderLines(t)
	require.Equal(t, 1, b.count(t, `SELECT count(*) FROM order_lines`))
}
