package postgres_test

import (
	"context"
	"crypto/sha256"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/devdb"
	"myticket/internal/devdb/pgtest"
	"myticket/internal/intake"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

// pair is a store on a primary whose commits wait for a standby.
type pair struct {
	*testBundle
	primary, standby *devdb.Server
}

func setupPair(t *testing.T) *pair {
	t.Helper()
	primary, standby, url := pgtest.NewPair(t)
	return &pair{testBundle: &testBundle{url: url, store: open(t, url), pool: openPool(t, url)}, primary: primary, standby: standby}
}

// failOver lets the primary die, and returns a look at what the standby has.
func (p *pair) failOver(t *testing.T) *testBundle {
	t.Helper()
	require.NoError(t, p.primary.Kill())
	require.NoError(t, p.standby.Promote(t.Context()))
	url := p.standby.URL(pgtest.Database)
	return &testBundle{url: url, store: open(t, url), pool: openPool(t, url)}
}

func (p *pair) stored(t *testing.T, e *intake.Entry) bool {
	t.Helper()
	return one[bool](t, p.testBundle, `SELECT EXISTS (SELECT FROM tickets WHERE id = $1)`, e.Ticket.ID)
}

// waiting returns a process of Postgres that waits for the standby, and its transaction; 0 for none.
func (p *pair) waiting(t *testing.T) (pid int, transaction string) {
	t.Helper()
	require.NoError(t, p.pool.QueryRow(t.Context(), `SELECT coalesce(max(pid), 0), coalesce(max(backend_xid::text), '')
		FROM pg_stat_activity WHERE backend_type = 'client backend' AND wait_event = 'SyncRep'`).Scan(&pid, &transaction))
	return pid, transaction
}

func keyed(t *testing.T, key, body string) *intake.Entry {
	t.Helper()
	e := entry(t, body)
	e.Key, e.KeyExpiresAt, e.BodySHA256 = key, e.Ticket.ReceivedAt.Add(time.Hour), sha256.Sum256(e.Ticket.Body)
	return e
}

// briefly runs what must not succeed while the standby is missing.
func briefly(t *testing.T, what string, do func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, do(ctx), ticket.ErrUnavailable, "%s: no standby has it, so no sender may be told that it is stored", what)
}

func TestFailover_TicketSentAgainWhileTheStandbyIsMissing_IsNotStoredUntilAStandbyHasIt(t *testing.T) {
	t.Parallel()
	p := setupPair(t)
	save(t, p.testBundle, entry(t, body("0", "Café,a,2"))) // products are as they will be
	require.NoError(t, p.standby.Kill())

	unread := entry(t, "unread")
	of := func(entries ...*intake.Entry) intake.Batch { return intake.Batch{Entries: entries} }
	batches := map[string]intake.Batch{
		"plain":     of(entry(t, body("1", "Café,a,2")), entry(t, "no ticket")),
		"with keys": of(keyed(t, "k", body("2", "Café,a,2")), keyed(t, "l", body("3", "Café,a,2"))),
		"mixed":     of(entry(t, body("4", "Café,a,2")), keyed(t, "m", body("5", "Café,a,2"))),
		"unread":    {Entries: []*intake.Entry{unread}, Unread: true, ClaimFor: time.Minute},
	}
	store := func(store *postgres.Store, batch intake.Batch) func(context.Context) error {
		return func(ctx context.Context) error { _, err := store.Save(ctx, batch); return err }
	}
	for name, batch := range batches {
		// A wait that is given up leaves what the primary alone has.
		require.Eventually(t, func() bool {
			briefly(t, name, store(p.store, batch))
			return !slices.ContainsFunc(batch.Entries, func(e *intake.Entry) bool { return !p.stored(t, e) })
		}, 30*time.Second, 50*time.Millisecond, name)
	}
	duplicate := keyed(t, "k", body("2", "Café,a,2"))
	other := open(t, p.url)
	for name, batch := range batches {
		briefly(t, name+", again", store(p.store, batch))
		briefly(t, name+", by another server", store(other, batch))
	}
	briefly(t, "a duplicate by its key", store(p.store, of(duplicate)))

	require.NoError(t, p.standby.Restart(t.Context()))
	for _, batch := range batches {
		saveBatch(t, p.testBundle, batch)
	}
	require.True(t, save(t, p.testBundle, duplicate)[0].Duplicate)
	b := p.failOver(t)
	for name, batch := range batches {
		for _, e := range batch.Entries {
			assert.True(t, one[bool](t, b, `SELECT EXISTS (SELECT FROM tickets WHERE id = $1)`, e.Ticket.ID), name)
		}
	}
	assert.Equal(t, 8, one[int](t, b, `SELECT count(*) FROM tickets`))
}

func TestFailover_WaitForTheStandbyIsCanceled_DoesNotCount(t *testing.T) {
	t.Parallel()
	p := setupPair(t)
	save(t, p.testBundle, entry(t, body("0", "Café,a,2")))
	exec(t, p.testBundle, `INSERT INTO tickets (id, received_at, source, body, status, next_attempt_at)
		SELECT gen_random_uuid(), now() - i * interval '1 s', 's', 'x', 'TO_TREAT', now() FROM generate_series(1, 6) i`)
	claims, err := p.store.Claim(t.Context(), 4, time.Hour)
	require.NoError(t, err)
	require.Len(t, claims, 4)
	var failed, kept []*intake.Entry
	for range 4 {
		failed = append(failed, entry(t, "no ticket"))
	}
	failed[1].Ticket.Source, failed[3].Ticket.Source = "pg_cancel_backend", "pg_terminate_backend"
	save(t, p.testBundle, failed...)

	for i, how := range []string{"pg_cancel_backend", "pg_terminate_backend"} {
		for _, c := range claims[2*i:] {
			c.Ticket.Status, c.Ticket.Problems = ticket.Error, []ticket.Problem{{Code: "x"}}
		}
		plain, withKey := entry(t, body("1", "Café,a,2")), keyed(t, "k"+how, body("2", "Café,a,2"))
		kept = append(kept, plain, withKey)
		for _, test := range []struct {
			name string
			do   func(ctx context.Context) error
		}{
			{"Save", func(ctx context.Context) error { return trySave(ctx, p.store, plain) }},
			{"Save with a key", func(ctx context.Context) error { return trySave(ctx, p.store, withKey) }},
			{"Finish", func(ctx context.Context) error { _, _, err := p.store.Finish(ctx, claims[2*i]); return err }},
			{"Postpone", func(ctx context.Context) error { return p.store.Postpone(ctx, claims[2*i+1], time.Hour) }},
			{"Claim", func(ctx context.Context) error { _, err := p.store.Claim(ctx, 1, time.Hour); return err }},
			{"RetryTicket", func(ctx context.Context) error {
				return p.store.ChangeTicket(ctx, tester, postgres.Retry, failed[2*i].Ticket.ID)
			}},
			{"RetryTickets", func(ctx context.Context) error {
				_, err := p.store.ChangeTickets(ctx, tester, postgres.Retry, postgres.Bulk{Filter: postgres.TicketFilter{Sources: []string{how}}})
				return err
			}},
		} {
			require.NoError(t, p.standby.Kill())
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			done := make(chan error, 1)
			go func() { done <- test.do(ctx) }()
			var pid int
			var canceled string
			require.Eventually(t, func() bool {
				pid, canceled = p.waiting(t)
				return canceled != "" // Postgres may show a wait before it shows whose transaction waits
			}, 20*time.Second, 5*time.Millisecond, "%s does not wait for the standby", test.name)
			require.True(t, one[bool](t, p.testBundle, `SELECT `+how+`($1)`, pid))
			// Either it waits anew, or it has failed. It has not succeeded.
			ended := false
			require.Eventually(t, func() bool {
				select {
				case err = <-done:
					ended = true
					return true
				default:
					_, now := p.waiting(t)
					return now != "" && now != canceled
				}
			}, 20*time.Second, 5*time.Millisecond, "%s, %s", test.name, how)
			if ended {
				require.ErrorIs(t, err, ticket.ErrUnavailable, "%s, %s: it ended although no standby had it", test.name, how)
				require.NoError(t, p.standby.Restart(t.Context()))
			} else {
				require.NoError(t, p.standby.Restart(t.Context()))
				require.NoError(t, <-done, "%s, %s", test.name, how)
			}
			cancel()
		}
	}
	save(t, p.testBundle, entry(t, body("3", "Café,a,2"))) // what failed has promised nothing: the standby gets it with this
	b := p.failOver(t)
	for _, e := range kept {
		assert.True(t, one[bool](t, b, `SELECT EXISTS (SELECT FROM tickets WHERE id = $1)`, e.Ticket.ID))
	}
	for i := range 2 {
		assert.Equal(t, "ERROR", one[string](t, b, `SELECT status FROM tickets WHERE id = $1`, claims[2*i].Ticket.ID))
		assert.Equal(t, "TO_TREAT", one[string](t, b, `SELECT status FROM tickets WHERE id = $1`, failed[2*i].Ticket.ID))
	}
}
