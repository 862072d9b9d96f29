package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// french is a dialect, and frenchBody a ticket that only it understands.
const (
	french     = "records: {order: [Commande]}\npass_over: [{begins: \"***\"}]\n"
	frenchBody = "Commande: 7\nVAT: 3.10\nTotal: 16.90\n*** DUPLICATA ***\n\nproduct,product_id,price\nCafé,c,2"
)

func dialectFile(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "dialect.yaml")
	require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	return file
}

// operator is the command line on the database of a server.
func (b *testBundle) operator() *operatorBundle { return &operatorBundle{b.databaseURL, b.pool} }

// awaitVersion waits until a server uses a version for a source; 0 for none.
func (b *testBundle) awaitVersion(t *testing.T, source string, version int) {
	t.Helper()
	await(t, fmt.Sprintf("version %d is used", version), func() bool {
		return b.metric(t, `myticket_dialect_version{source="`+source+`"}`) == float64(version)
	})
}

func TestDialects_AppliedWhileAServerRuns_AreUsedAtOnce(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string][]string{
		"told": nil, "asking": {"--database-max-conns=7"}, // no connection to be told on
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := setup(t, flags...)
			o := b.operator()
			bad := b.submit(t, "/ticket/shop-1", frenchBody)
			require.Equal(t, ticket.Error, bad.Status)
			out := o.ok(t, "dialects", "apply", "shop-1", "--file", dialectFile(t, french), "--yes", "--by", "alice", "--reason", "their update")
			assert.Contains(t, out, "of 1 tickets, 1 would become TREATED")
			assert.Contains(t, out, "myticket tickets retry --status ERROR --source shop-1")
			b.awaitVersion(t, "shop-1", 1)
			good := b.submit(t, "/ticket/shop-1", frenchBody)
			assert.Equal(t, ticket.Treated, good.Status)
			assert.Equal(t, ticket.Error, b.submit(t, "/ticket/shop-2", frenchBody).Status, "another source")
			assert.Equal(t, ticket.Treated, b.submit(t, "/ticket/shop-2", sample(t)).Status)
			assert.Equal(t, "7", *b.ticket(t, good.ID).Order)

			o.ok(t, "tickets", "retry", "--status", "ERROR", "--source", "shop-1", "--yes")
			await(t, "the ticket is mended", func() bool { return b.ticket(t, bad.ID).Status == ticket.Treated })
			b.awaitOrderLines(t)
			assert.Equal(t, []storedLine{{"Café", "c", "2"}}, b.ticket(t, bad.ID).Lines)

			o.ok(t, "dialects", "apply", "*", "--file", dialectFile(t, french), "--yes")
			b.awaitVersion(t, "*", 2)
			assert.Equal(t, ticket.Treated, b.submit(t, "/ticket/shop-2", frenchBody).Status)
			o.ok(t, "dialects", "revert", "*", "--yes")
			b.awaitVersion(t, "*", 0)
			assert.Equal(t, ticket.Error, b.submit(t, "/ticket/shop-2", frenchBody).Status)
			assert.InDelta(t, 3, b.metric(t, "myticket_dialects_newest_version"), 0)
			assert.InDelta(t, 0, b.metric(t, "myticket_dialects_failures_total"), 0)

			shown := o.ok(t, "tickets", "show", good.ID.String())
			assert.Contains(t, shown, "Café")
			var line struct {
				Dialect int `json:"dialect"`
			}
			require.NoError(t, json.Unmarshal([]byte(o.ok(t, "tickets", "show", good.ID.String(), "--output", "json")), &line))
			assert.Equal(t, 1, line.Dialect)
		})
	}
}

// Tickets that are sent back are read in the dialect that counts then, however soon that is after it was applied.
func TestDialects_RetryRightAfterApply_ReadsInTheNewOne(t *testing.T) {
	t.Parallel()
	b := setup(t, "--database-max-conns=7", "--treat-interval=10ms") // the server asks for changes every other second
	o := b.operator()
	for i := range 3 {
		text := strings.Replace(body("7", "Café,c,2"), "Order", fmt.Sprint("Bon ", i), 1)
		bad := b.submit(t, "/ticket/shop-1", text)
		require.Equal(t, ticket.Error, bad.Status)
		o.ok(t, "dialects", "apply", "shop-1", "--file", dialectFile(t, fmt.Sprintf("records: {order: [Bon %d]}", i)), "--yes")
		o.ok(t, "tickets", "retry", "--status", "ERROR", "--source", "shop-1", "--yes")
		await(t, "the ticket is treated", func() bool { return b.ticket(t, bad.ID).Status != ticket.ToTreat })
		require.Equal(t, ticket.Treated, b.ticket(t, bad.ID).Status, "version %d was applied before the ticket was sent back", i+1)
	}
}

func TestDialects_AppliedWhileServersAreCutOff_AreUsedForWhatTheySpooled(t *testing.T) {
	t.Parallel()
	const rounds = 100
	b := &testBundle{databaseURL: pgtest.New(t)}
	b.pool = openPool(t, b.databaseURL)
	o := b.operator()
	proxy, url := newDatabaseProxy(t, b.databaseURL)
	var servers []*testBundle
	for range 2 {
		s := &testBundle{serve(t, url, "--spool-dir", t.TempDir()), b.databaseURL, b.pool}
		s.awaitReady(t)
		servers = append(servers, s)
	}
	o.ok(t, "dialects", "apply", "shop-1", "--file", dialectFile(t, french), "--yes")
	for _, s := range servers {
		s.awaitVersion(t, "shop-1", 1)
		s.awaitStoring(t)
		require.Equal(t, ticket.Treated, s.submit(t, "/ticket/shop-1", frenchBody).Status)
	}

	proxy.cut()
	german := strings.NewReplacer("Commande", "Bestellung", "7", "8").Replace(frenchBody)
	spool := func(body string) {
		for range rounds {
			for _, s := range servers {
				require.Equal(t, http.StatusAccepted, s.post(t, "/ticket/shop-1", body).status)
			}
		}
	}
	spool(frenchBody)
	o.ok(t, "dialects", "apply", "shop-1", "--file", dialectFile(t, strings.Replace(french, "Commande", "Bestellung", 1)), "--yes")
	spool(german)
	for _, s := range servers {
		assert.InDelta(t, 1, s.metric(t, `myticket_dialect_version{source="shop-1"}`), 0, "it goes on with what it has")
		await(t, "the server notices that it cannot read the dialects", func() bool { return s.metric(t, "myticket_dialects_failures_total") > 0 })
	}

	proxy.mend()
	for _, s := range servers {
		s.awaitVersion(t, "shop-1", 2)
		s.awaitStoring(t)
		require.Equal(t, ticket.Treated, s.submit(t, "/ticket/shop-1", german).Status)
		await(t, "the spool is drained", func() bool { return s.metric(t, "myticket_spool_tickets") == 0 })
	}
	// All that was spooled was read in the version that counted when it was drained, which does not know Commande.
	assert.Equal(t, fmt.Sprintf("ERROR 2 %d, TREATED 1 2, TREATED 2 %d", 2*rounds, 2*rounds+2), o.text(t, `
		SELECT string_agg(status || ' ' || dialect || ' ' || n, ', ' ORDER BY status, dialect)
		FROM (SELECT status, dialect, count(*) AS n FROM tickets GROUP BY 1, 2) t`))
}

// A server that has never read the dialects reads no ticket, so it reads none in the wrong one.
func TestDialects_ServerThatStartsWithoutTheDatabase_ReadsNoTicketInTheWrongOne(t *testing.T) {
	t.Parallel()
	b := &testBundle{databaseURL: pgtest.New(t)}
	b.pool = openPool(t, b.databaseURL)
	o := b.operator()
	o.ok(t, "dialects", "apply", "*", "--file", dialectFile(t, french), "--yes")
	proxy, url := newDatabaseProxy(t, b.databaseURL)
	proxy.cut()
	b.server = serve(t, url, "--spool-dir", t.TempDir())
	for range 10 {
		require.Equal(t, http.StatusAccepted, b.post(t, "/ticket/shop-1", frenchBody).status)
	}
	// The database answers, but the dialects cannot be read.
	lock, err := b.pool.Begin(t.Context())
	require.NoError(t, err)
	_, err = lock.Exec(t.Context(), `LOCK TABLE dialects IN ACCESS EXCLUSIVE MODE`)
	require.NoError(t, err)
	proxy.mend()
	await(t, "the server finds the database", func() bool { return b.log.line("the database is there and its schema is right") != nil })
	require.Equal(t, http.StatusAccepted, b.post(t, "/ticket/shop-1", frenchBody).status)
	assert.Zero(t, b.count(t, `SELECT count(*) FROM tickets`))
	require.NoError(t, lock.Rollback(t.Context()))
	await(t, "the spool is drained", func() bool {
		return b.count(t, `SELECT count(*) FROM tickets WHERE status = 'TREATED' AND dialect = 1`) == 11
	})
	b.awaitStoring(t)
	require.Equal(t, ticket.Treated, b.submit(t, "/ticket/shop-1", frenchBody).Status)
}

func TestDialectsCommands_AskShowAndRefuse(t *testing.T) {
	t.Parallel()
	b := setupOperator(t)
	id := b.insert(t, ticket.Error, "shop-1", "1", frenchBody)
	b.insert(t, ticket.Error, "shop-1", "2", "bad")
	b.insert(t, ticket.Treated, "shop-1", "3", "Order: 1\nVAT: 0\nTotal: 2\nCommande: 2\n\nproduct,product_id,price\nCafé,c,2")
	file := dialectFile(t, french)

	tried := b.ok(t, "dialects", "try", "shop-1", "--file", file)
	assert.Contains(t, tried, "ERROR: of 2 tickets, 1 would become TREATED, and 1 would stay ERROR")
	assert.Contains(t, tried, "header_unreadable")
	assert.Contains(t, tried, "TREATED: of 1 tickets, 1 would say something else, and 1 of them would be ERROR")
	assert.Contains(t, tried, "  - Commande: 2")
	var trial postgres.DialectTrial
	require.NoError(t, json.Unmarshal([]byte(b.ok(t, "dialects", "try", "shop-1", "--file", file, "--output", "json")), &trial))
	assert.Equal(t, 1, trial.Errors.Treated)

	code, _, stderr := b.myticket(t, "dialects", "apply", "shop-1", "--file", file)
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "nothing was changed")
	assert.Equal(t, "0", b.text(t, `SELECT count(*)::text FROM dialects`))

	var applied appliedReport
	require.NoError(t, json.Unmarshal([]byte(
		b.ok(t, "dialects", "apply", "shop-1", "--file", file, "--yes", "--by", "alice", "--reason", hostile[:40], "--output", "json")), &applied))
	assert.Equal(t, "alice", applied.Applied.Who)
	assert.Equal(t, 1, applied.Tried.Errors.Treated)
	assert.Equal(t, "alice dialects.apply", b.text(t, `SELECT who || ' ' || action FROM audit`))
	assert.Equal(t, "ERROR", b.text(t, `SELECT status FROM tickets WHERE id = '`+id.String()+`'`), "retry is for the operator")
	code, _, stderr = b.myticket(t, "dialects", "apply", "shop-1", "--file", file, "--yes")
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "says the same")

	shown := b.ok(t, "dialects", "show", "shop-1")
	assertHarmless(t, shown)
	assert.Contains(t, shown, "# Version 1 of shop-1")
	same := dialectFile(t, shown)
	code, _, stderr = b.myticket(t, "dialects", "apply", "shop-1", "--file", same, "--yes")
	assert.Equal(t, 1, code, "what show shows is a file")
	assert.Contains(t, stderr, "says the same")
	assert.Contains(t, b.ok(t, "dialects", "list"), "shop-1")

	code, _, stderr = b.myticket(t, "dialects", "revert", "shop-1")
	assert.Equal(t, 1, code)
	assert.Contains(t, stderr, "nothing was changed")
	assert.Contains(t, b.ok(t, "dialects", "revert", "shop-1", "--yes"), "no dialect of its own")
	assert.NotContains(t, b.ok(t, "dialects", "list"), "shop-1")
	assert.Contains(t, b.ok(t, "dialects", "revert", "shop-1", "--to", "1", "--yes"), "the same as version 1")
	history := b.ok(t, "dialects", "history", "shop-1")
	assert.Contains(t, history, "none: taken away")
	assert.Contains(t, b.ok(t, "dialects", "show", "--version", "2"), "took the dialect away")
	code, _, stderr = b.myticket(t, "dialects", "show", "*")
	assert.Equal(t, 1, code)
	assert.Equal(t, "myticket: \"*\" has no dialect: sources without one of their own are read in the dialect of everyone\n", stderr)

	for name, args := range map[string][]string{
		"no source":       {"apply", "Shop 1", "--file", file, "--yes"},
		"no such dialect": {"show", "shop-2"},
		"no such version": {"show", "--version", "99"},
		"never had one":   {"revert", "shop-2", "--yes"},
		"contradiction":   {"try", "shop-1", "--file", dialectFile(t, "decimal: x")},
		"unknown key":     {"try", "shop-1", "--file", dialectFile(t, "telepathy: true")},
		"no file":         {"try", "shop-1", "--file", "/does/not/exist"},
	} {
		code, _, stderr := b.myticket(t, append([]string{"dialects"}, args...)...)
		assert.NotZero(t, code, name)
		assert.NotEmpty(t, stderr, name)
	}
	assert.Equal(t, "3", b.text(t, `SELECT count(*)::text FROM dialects`))
}
