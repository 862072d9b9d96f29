package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/ticket"
)

// The tests of this file repeat attacks and accidents against the whole program, and check what is stored. `make chaos -only
// hostile` shows what many of them at the same time cost.

// wide is a ticket of 1 MiB with 97 unknown columns, and lines of only commas.
func wide(char string) string {
	const columns, nameLength = 97, 64
	var b strings.Builder
	b.WriteString("Order: 1\nVAT: 3.10\nTotal: 16.90\n\nproduct,product_id,price")
	for i := range columns {
		number := fmt.Sprint(i)
		b.WriteString("," + strings.Repeat(char, nameLength-len(number)) + number)
	}
	line := "\nx,wide,1" + strings.Repeat(",", columns)
	for b.Len()+len(line) <= mebibyte {
		b.WriteString(line)
	}
	return b.String()
}

func TestAttack_TicketsThatBecomeMoreThanTheyAre_AreStoredSmall(t *testing.T) {
	t.Parallel()
	b := setup(t)
	repeat := func(head, pattern string) string {
		return head + strings.Repeat(pattern, (mebibyte-len(head))/len(pattern))
	}
	head := "Order: 1\nVAT: 3.10\nTotal: 16.90\n"
	list := head + "\nproduct,product_id,price\n"
	for name, text := range map[string]string{
		"columns": wide("n"), "columns of control characters": wide("\x01"), "columns of emoji": wide("😀"),
		"columns of quotes": strings.ReplaceAll(wide("n"), "nnn", `"""`), "lines": repeat(list, "x,aaaa,1\n"),
		"lines of control characters": repeat(list, "\x01,\x01,1\n"), "records": repeat(head, "a:b\n"),
		"records of control characters": repeat(head, "a:\x01\x01\x01\x01\n"), "problems": repeat(list, ",,\n"), "Latin-1": repeat(list, "\xff,\xff,1\n"),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := b.submit(t, "/ticket", text)
			stored := b.ticket(t, r.ID)
			requireSameBytes(t, text, stored.Body)
			require.Equal(t, r.Status, stored.Status)
			if r.Status == ticket.Error {
				require.NotEmpty(t, r.Problems, "the sender is told why")
			}
			besides := b.count(t, `SELECT coalesce(octet_length(lines::text), 0) + coalesce(octet_length(extra::text), 0) +
				coalesce(octet_length(problems::text), 0) FROM tickets WHERE id = $1`, r.ID)
			require.LessOrEqual(t, besides, ticket.MaxStoredBytes+mebibyte, "bytes that are stored beside the body")
		})
	}
}

// One address may hold any number of connections: senders from other addresses are still served.
func TestAttack_IdleConnectionsOfOneAddress_LockNoOtherOut(t *testing.T) {
	t.Parallel()
	const connections = 64
	b := setup(t, "--max-connections", fmt.Sprint(connections), "--max-connections-per-peer", fmt.Sprint(connections/2))
	for i := range 2 * connections {
		conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 3)}}).
			DialContext(t.Context(), "tcp", strings.TrimPrefix(b.webhook, "http://"))
		if err != nil {
			continue // this many are enough for the server
		}
		defer conn.Close()
		if i%2 == 0 {
			_, _ = io.WriteString(conn, "POST /tick")
		}
	}
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
	b.client = &http.Client{Transport: &http.Transport{DialContext: dialer.DialContext, DisableKeepAlives: true}}
	for range 10 {
		b.submit(t, "/ticket", sample(t))
	}
	require.Equal(t, 10, b.count(t, `SELECT count(*) FROM tickets`))
}

// A signature covers the id, the time and the body. A captured request with other changes is still the same delivery.
func TestAttack_SignedRequestSentAgainWithAnotherKey_IsNoNewTicket(t *testing.T) {
	t.Parallel()
	b := setupSources(t)
	text := sample(t)
	signed := sign(t, webhookSecret, "msg_1", time.Now(), text)
	first := b.submit(t, "/ticket/signed", text, signed...)
	for i := range 3 {
		again := b.submit(t, "/ticket/signed", text, append(signed, "Idempotency-Key", fmt.Sprint("another ", i))...)
		require.True(t, again.Duplicate)
		require.Equal(t, first.ID, again.ID)
	}
	// And no other request can use up the key of a future signed delivery.
	other := sign(t, webhookSecret, "msg_2", time.Now(), text+"\n")
	b.submit(t, "/ticket/signed", text+"\n", append(other, "Idempotency-Key", "msg_3")...)
	true3 := b.submit(t, "/ticket/signed", text, sign(t, webhookSecret, "msg_3", time.Now(), text)...)
	require.False(t, true3.Duplicate)
	require.Equal(t, 3, b.count(t, `SELECT count(*) FROM tickets`))
}

func TestAttack_SecondContentEncoding_IsLookedAt(t *testing.T) {
	t.Parallel()
	b := setup(t)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, b.webhook+"/ticket", strings.NewReader(sample(t)))
	require.NoError(t, err)
	request.Header["Content-Encoding"] = []string{"identity", "gzip"}
	response, err := b.client.Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	require.Equal(t, http.StatusUnsupportedMediaType, response.StatusCode)
	require.Zero(t, b.count(t, `SELECT count(*) FROM tickets`))
}

// Its first argument may be a password.
func TestAttack_CommandLineOfTheProcess_IsNotServed(t *testing.T) {
	t.Parallel()
	b := setup(t)
	require.NotEqual(t, http.StatusOK, b.get(t, b.internal+"/debug/pprof/cmdline").status)
	require.Equal(t, http.StatusOK, b.get(t, b.internal+"/debug/pprof/goroutine?debug=1").status)
}

// A product whose tickets are gone settles, and does not keep others from settling.
func TestAttack_ProductsWithoutTickets_SettleAndHoldUpNoOther(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.submit(t, "/ticket", body("1", "Coffee,c,2"))
	b.exec(t, `UPDATE products SET unsettled_from = now() - interval '1 hour'`)
	b.exec(t, `INSERT INTO products (product_id, name, price, first_seen_at, last_seen_at, changed_at, ticket_id, unsettled_from)
		SELECT 'gone-' || i, 'Gone', 1, at, at, at, gen_random_uuid(), now() - interval '1 hour'
		FROM generate_series(1, 3) i, (SELECT now() - interval '1 day' AS at) a`)
	await(t, "every product is settled", func() bool {
		return b.count(t, `SELECT count(*) FROM products WHERE unsettled_from IS NOT NULL`) == 0
	})
	require.Equal(t, "Coffee 2", b.products(t)["c"])
}

// Strays of a day whose partition was detached are moved too. Strays that cannot be moved hold up neither the others nor the
// partitions that are made ahead.
func TestAttack_StraysThatCannotBeMoved_HoldUpNoPartition(t *testing.T) {
	t.Parallel()
	b := &testBundle{databaseURL: pgtest.New(t)}
	b.pool = openPool(t, b.databaseURL)
	stray := func(source, at string) {
		b.exec(t, `INSERT INTO tickets (id, received_at, source, body, status)
			SELECT gen_random_uuid(), '`+at+`'::timestamptz + i * interval '1 s', '`+source+`', '', 'TREATED' FROM generate_series(1, 100) i`)
	}
	b.exec(t, `CREATE TABLE tickets_20200102_20200103 (LIKE tickets INCLUDING ALL)`) // as DETACH PARTITION leaves it
	stray("stuck", "2020-01-01 12:00:00Z")
	stray("s", "2020-01-02 12:00:00Z")
	stray("s", "2999-01-01 12:00:00Z")
	b.exec(t, `ALTER TABLE tickets ADD CONSTRAINT nothing_stuck CHECK (source <> 'stuck') NOT VALID`)
	b.server = serve(t, b.databaseURL)
	b.awaitReady(t)
	r := b.submit(t, "/ticket", sample(t))
	await(t, "the strays that can be moved are", func() bool {
		return b.count(t, `SELECT count(*) FROM tickets_default WHERE source <> 'stuck'`) == 0
	})
	require.Equal(t, 301, b.count(t, `SELECT count(*) FROM tickets`))
	require.Equal(t, 100, b.count(t, `SELECT count(*) FROM tickets_default`))
	require.Equal(t, 1, b.count(t, `SELECT count(*) FROM tickets WHERE id = $1 AND tableoid <> 'tickets_default'::regclass`, r.ID))
}

// All work of a server in the background goes on after its connections fall silent.
func TestAttack_ConnectionsThatGoSilent_StopNeitherTicketsNorTreatment(t *testing.T) {
	t.Parallel()
	b := &testBundle{databaseURL: pgtest.New(t)}
	b.pool = openPool(t, b.databaseURL)
	proxy, url := newDatabaseProxy(t, b.databaseURL)
	b.server = serve(t, url, "--spool-dir", t.TempDir(), "--database-timeout", "500ms", "--overflow-wait", "500ms")
	b.awaitReady(t)
	b.awaitStoring(t)
	var ids []uuid.UUID
	for range 3 {
		r := b.submit(t, "/ticket", sample(t))
		ids = append(ids, r.ID)
		proxy.fallSilent()
		b.exec(t, `UPDATE tickets SET status = 'TO_TREAT', next_attempt_at = now()`)
		await(t, "all tickets are treated again", func() bool {
			return b.count(t, `SELECT count(*) FROM tickets WHERE status = 'TO_TREAT'`) == 0
		})
		await(t, "tickets are stored quickly again", func() bool {
			return b.post(t, "/ticket", sample(t)).status == http.StatusOK
		})
	}
	await(t, "the spool is drained", func() bool { return b.metric(t, "myticket_spool_tickets") == 0 })
	for _, id := range ids {
		require.Equal(t, ticket.Treated, b.ticket(t, id).Status)
	}
}
