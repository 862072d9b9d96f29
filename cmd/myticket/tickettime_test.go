package main

import (
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/ticket"
)

// A header says when a ticket was, so an old ticket that comes late does not overrule a newer one.
func TestTicketTime_DecidesWhichPriceCounts(t *testing.T) {
	t.Parallel()
	b := setupSources(t)
	submit := func(at time.Time, lines ...string) receipt {
		return b.submit(t, "/ticket/any", body("1", lines...), "Authorization", "Bearer "+bearerToken, "Ticket-Time", at.Format(time.RFC3339Nano))
	}
	receivedAt := func(r receipt) (at time.Time) {
		require.NoError(t, b.pool.QueryRow(t.Context(), `SELECT received_at FROM tickets WHERE id = $1`, r.ID).Scan(&at))
		require.Equal(t, ticket.IDTime(r.ID), at.UTC(), "the id has the time of the ticket")
		return at.UTC()
	}
	now := time.Now()
	require.Equal(t, ticket.Treated, b.submit(t, "/ticket/any", body("1", "Café,a,3"), "Authorization", "Bearer "+bearerToken).Status)
	hourAgo := now.Add(-time.Hour).In(time.FixedZone("", 2*3600))
	require.Equal(t, hourAgo.UTC().Truncate(time.Millisecond), receivedAt(submit(hourAgo, "Kaffee,a,2", "Tee,b,4")))
	require.Equal(t, map[string]string{"a": "Café 3", "b": "Tee 4"}, b.products(t))
	submit(now.Add(-2*time.Hour), "Tea,b,1")
	require.Equal(t, "Tee 4", b.products(t)["b"])
	submit(now.Add(-time.Minute), "Thé,b,5")
	require.Equal(t, "Thé 5", b.products(t)["b"])

	old := receivedAt(submit(time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), "Café,a,1", "Eau,c,1"))
	assert.WithinDuration(t, time.Now().Add(-30*24*time.Hour), old, time.Minute, "no ticket is older than the limit")
	require.Equal(t, map[string]string{"a": "Café 3", "b": "Thé 5", "c": "Eau 1"}, b.products(t))
	leap := b.submit(t, "/ticket/any", body("1", "Eau,c,1"), "Authorization", "Bearer "+bearerToken, "Ticket-Time", "2016-12-31T23:59:60.5Z")
	require.Equal(t, ticket.Treated, leap.Status, "a leap second is a time")
	ahead := receivedAt(submit(now.Add(24*time.Hour), "Café,a,9"))
	assert.WithinDuration(t, time.Now(), ahead, time.Minute, "no ticket is of the future")
	require.Equal(t, "Café 9", b.products(t)["a"])
	require.Equal(t, 7, b.count(t, `SELECT count(*) FROM tickets`))
}

func TestTicketTime_SentAgain_IsOneTicket_ForAsLongAsAKeyIsKept(t *testing.T) {
	t.Parallel()
	b := setupSources(t)
	headers := []string{"Authorization", "Bearer " + bearerToken, "Idempotency-Key", "k", "Ticket-Time"}
	first := b.submit(t, "/ticket/any", sample(t), append(headers, "2001-01-01t00:00:00z")...)
	again := b.submit(t, "/ticket/any", sample(t), append(headers, time.Now().Format(time.RFC3339))...)
	require.Equal(t, first.ID, again.ID)
	require.True(t, again.Duplicate)
	require.Equal(t, 1, b.count(t, `SELECT count(*) FROM deliveries WHERE expires_at > now() + interval '167 hours'`))
}

func TestTicketTime_ThatDoesNotCount_IsRefused(t *testing.T) {
	t.Parallel()
	b := setupSources(t)
	now := time.Now().Format(time.RFC3339)
	token := []string{"Authorization", "Bearer " + bearerToken}
	requireProblem(t, b.post(t, "/ticket/open", sample(t), "Ticket-Time", now), http.StatusBadRequest, "ticket_time_unauthenticated")
	requireProblem(t, b.post(t, "/ticket/any", sample(t), "Ticket-Time", now), http.StatusUnauthorized, "unauthorized")
	requireProblem(t, b.post(t, "/ticket/open", sample(t), "Ticket-Time", ""), http.StatusBadRequest, "ticket_time_unauthenticated")
	for _, wrong := range []string{"", "yesterday", "2026-11-24", "2026-11-24T18:50:00", "1732470600", "2026-13-24T18:50:00Z", now + " "} {
		a := b.post(t, "/ticket/any", sample(t), append(token, "Ticket-Time", wrong)...)
		if wrong == now+" " { // spaces around a value do not count (RFC 9110, section 5.5)
			require.Equal(t, http.StatusOK, a.status)
			continue
		}
		requireProblem(t, a, http.StatusBadRequest, "ticket_time_invalid")
	}
	require.Equal(t, 1, b.count(t, `SELECT count(*) FROM tickets`))
}

func TestTicketTime_OfATicketInTheSpool_IsKept(t *testing.T) {
	t.Parallel()
	b := setup(t, "--spool-dir", t.TempDir(), "--overflow-wait=200ms", "--sources-file", write(t, "sources.json", sourcesFile))
	release := b.lockTickets(t)
	at := time.Now().Add(-48 * time.Hour).UTC().Truncate(time.Millisecond)
	a := b.post(t, "/ticket/any", sample(t), "Authorization", "Bearer "+bearerToken, "Ticket-Time", at.Format(time.RFC3339Nano))
	require.Equal(t, http.StatusAccepted, a.status)
	require.Less(t, b.metric(t, "myticket_spool_oldest_age_seconds"), 3600.0, "it came a moment ago")
	release()
	await(t, "the ticket is drained", func() bool { return b.count(t, `SELECT count(*) FROM tickets`) == 1 })
	require.Equal(t, 1, b.count(t, `SELECT count(*) FROM tickets WHERE received_at = $1`, at))
}

func TestSend_Modified_SaysHowOldAFileIs(t *testing.T) {
	t.Parallel()
	b := setupSources(t)
	token := write(t, "token", bearerToken)
	path := filepath.Join(t.TempDir(), "old.txt")
	require.NoError(t, os.WriteFile(path, []byte(body("1", "Café,a,1")), 0o600))
	at := time.Now().Add(-72 * time.Hour).Truncate(time.Millisecond)
	require.NoError(t, os.Chtimes(path, at, at))
	b.submit(t, "/ticket/any", body("2", "Café,a,2"), "Authorization", "Bearer "+bearerToken)
	o := runCommand(t, nil, "send", "--url", b.webhook+"/ticket/any", "--bearer-file", token, "--modified", path)
	require.Zero(t, o.code, "%s%s", o.stdout, o.stderr)
	require.Equal(t, map[string]string{"a": "Café 2"}, b.products(t))
	require.Equal(t, 1, b.count(t, `SELECT count(*) FROM tickets WHERE order_number = '1' AND received_at = $1`, at))

	for _, args := range [][]string{{"--modified", path}, {"--modified", "--bearer-file", token}, {"--modified", "--bearer-file", token, "-"}} {
		o := runCommand(t, nil, append([]string{"send", "--url", b.webhook + "/ticket/any"}, args...)...)
		require.Equal(t, 1, o.code)
		require.Contains(t, o.stderr, "--modified needs ")
		require.Contains(t, o.stderr, "nothing was sent")
	}
}
