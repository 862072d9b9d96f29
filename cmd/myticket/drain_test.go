package main

import (
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb/pgtest"
	"myticket/internal/intake"
	"myticket/internal/postgres"
	"myticket/internal/spool"
	"myticket/internal/ticket"
)

// slowTickets makes Postgres slow for tickets whose text contains "slow", in every form. A statement timeout ends the statement,
// because roles often have one.
const slowTickets = `
	CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(3600); RETURN NEW; END $$;
	CREATE TRIGGER slow BEFORE INSERT ON tickets FOR EACH ROW
	WHEN (position('slow'::bytea IN NEW.body) > 0) EXECUTE FUNCTION slow();`

// slowProducts does so only for tickets that have been read, by the product that they name.
const slowProducts = `
	CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(3600); RETURN NEW; END $$;
	CREATE TRIGGER slow BEFORE INSERT ON products FOR EACH ROW WHEN (NEW.product_id = 'slow') EXECUTE FUNCTION slow();`

const statementTimeout = `
	DO $$ BEGIN EXECUTE format('ALTER ROLE %I IN DATABASE %I SET statement_timeout = ''500ms''', current_user, current_database()); END $$;`

// Postgres never takes the oldest ticket of the spool in time. This must not affect the other tickets.
func TestSpool_SlowTicketAtItsHead_HoldsUpNoOther(t *testing.T) {
	t.Parallel()
	for name, sql := range map[string]string{
		"takes for ever":                    slowTickets,
		"takes longer than a role may":      slowTickets + statementTimeout,
		"takes for ever when it was read":   slowProducts,
		"and longer than a role may, if so": slowProducts + statementTimeout,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			database, databaseURL := pgtest.NewServer(t)
			b := &testBundle{pool: openPool(t, databaseURL)}
			b.exec(t, sql)
			s := serve(t, databaseURL, "--spool-dir", t.TempDir(), "--database-timeout=300ms")
			s.awaitReady(t)
			require.NoError(t, database.Kill())
			slow := spooled(t, s.post(t, "/ticket", body("slow", "Slow,slow,1")))
			want := map[string]string{}
			for i := range 20 {
				text := body(fmt.Sprint(i), "Coffee,c,2")
				want[spooled(t, s.post(t, "/ticket", text)).ID.String()] = text
			}
			require.NoError(t, database.Restart(t.Context()))

			await(t, "the database takes tickets", func() bool { return s.metric(t, "myticket_intake_database_away") == 0 })
			await(t, "deliveries go to it", func() bool { return s.post(t, "/ticket", sample(t)).status == http.StatusOK })
			await(t, "the others are drained", func() bool { return s.metric(t, "myticket_spool_drained_total") >= 20 })
			require.Zero(t, s.metric(t, "myticket_intake_database_away"), "Postgres is well, so it is not away")
			stored := storedBodies(t, databaseURL)
			for id, text := range want {
				found := false
				for storedID, body := range stored {
					found = found || storedID.String() == id && body == text
				}
				require.True(t, found, "an acknowledged ticket is missing")
			}
			if strings.HasPrefix(sql, slowProducts) {
				await(t, "the slow one is stored unread", func() bool { return s.metric(t, "myticket_spool_tickets") == 0 })
				require.Contains(t, storedBodies(t, databaseURL), slow.ID)
				return
			}
			await(t, "the slow one is stepped over", func() bool { return s.metric(t, "myticket_spool_stepped_over_total") > 0 })
			require.InDelta(t, 1, s.metric(t, "myticket_spool_tickets"), 0, "it is kept")
		})
	}
}

// spoolOf returns a spool folder with tickets that no server uses.
func spoolOf(t *testing.T, bodies ...string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	queue, err := spool.Open(spool.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	var entries []*intake.Entry
	for _, body := range bodies {
		id, at, err := ticket.NewID()
		require.NoError(t, err)
		entries = append(entries, &intake.Entry{Ticket: ticket.Ticket{ID: id, ReceivedAt: at, Source: ticket.DefaultSource, Body: []byte(body)}})
	}
	_, err = queue.Put(entries)
	require.NoError(t, err)
	require.NoError(t, queue.Close())
	return dir
}

func TestDrain_ATicketThatIsNeverTaken_IsSetAside_AndTriedAgainByTheNext(t *testing.T) {
	t.Parallel()
	databaseURL := pgtest.New(t)
	b := &testBundle{pool: openPool(t, databaseURL)}
	b.exec(t, slowTickets)
	var bodies []string
	for i := range 100 {
		bodies = append(bodies, body(fmt.Sprint(i), "Coffee,c,2"))
	}
	bodies[0], bodies[50], bodies[99] = "slow 0", "slow 50", "slow 99"
	dir := spoolOf(t, bodies...)
	store, err := postgres.Open(t.Context(), postgres.Config{URL: databaseURL, Logger: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	defer store.Close()
	drain := func() (intake.Drained, spool.Stats) {
		queue, err := spool.Open(spool.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
		require.NoError(t, err)
		defer queue.Close()
		drained, err := intake.Drain(t.Context(), intake.Config{
			Spool: queue, Logger: slog.New(slog.DiscardHandler),
			StoreTimeout: 10 * time.Second, DrainTimeout: 300 * time.Millisecond, DrainRetry: time.Millisecond, DrainTries: 3,
		}, store)
		require.NoError(t, err)
		return drained, queue.Stats()
	}
	drained, left := drain()
	require.Equal(t, intake.Drained{Stored: 97, Refused: 3}, drained)
	require.Zero(t, left.Tickets)
	require.Equal(t, 1, left.Aside)
	require.Len(t, storedBodies(t, databaseURL), 97)

	b.exec(t, `DROP TRIGGER slow ON tickets`)
	drained, left = drain()
	require.Equal(t, intake.Drained{Stored: 3}, drained)
	require.Zero(t, left.Aside)
	require.Len(t, storedBodies(t, databaseURL), 100)
}

// The command drains as a server does, and says how many tickets are left.
func TestDrainCommand_StoresTheOthers_AndFailsForWhatIsLeft(t *testing.T) {
	t.Parallel()
	databaseURL := pgtest.New(t)
	b := &testBundle{pool: openPool(t, databaseURL)}
	b.exec(t, `ALTER TABLE tickets ADD CONSTRAINT no_poison CHECK (body <> 'poison')`)
	dir := spoolOf(t, "poison", sample(t), "unreadable")
	out, code := command(t, "spool", "drain", "--database-url", databaseURL, dir)
	require.Equal(t, 1, code, out)
	require.Contains(t, out, "2 tickets are in the database now, 0 are left in the spool")
	require.Contains(t, out, "the database refuses 1 tickets in every form; they are kept in a .refused file in ")
	require.Len(t, storedBodies(t, databaseURL), 2)
	b.exec(t, `ALTER TABLE tickets DROP CONSTRAINT no_poison`)
	out, code = command(t, "spool", "drain", "--database-url", databaseURL, dir)
	require.Zero(t, code, out)
	require.Len(t, storedBodies(t, databaseURL), 3)
}

// A database without a schema answers, but takes no tickets.
func TestUnmigratedDatabase_WithoutASpool_StaysAway(t *testing.T) {
	t.Parallel()
	databaseURL := pgtest.Empty(t)
	s, since := serve(t, databaseURL), time.Now()
	requireProblem(t, s.post(t, "/ticket", sample(t)), http.StatusServiceUnavailable, "database_unavailable")
	await(t, "it has been asked many times", func() bool {
		requireProblem(t, s.post(t, "/ticket", sample(t)), http.StatusServiceUnavailable, "database_unavailable")
		assert.InDelta(t, 1, s.metric(t, "myticket_intake_database_away"), 0)
		return time.Since(since) > 3*time.Second
	})
	require.Nil(t, s.log.line("the database takes tickets again"))
	require.Len(t, s.log.lines("the database does not take tickets; senders are asked to send again (503)"), 1)
	require.NoError(t, postgres.MigrateUp(t.Context(), databaseURL))
	await(t, "it comes back by itself", func() bool { return s.post(t, "/ticket", sample(t)).status == http.StatusOK })
}
