package postgres_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/postgres"
	"myticket/internal/ticket"
)

func keyOf(e *intake.Entry) postgres.StoredKey {
	return postgres.StoredKey{
		Source: e.Ticket.Source, Key: e.Key, BodySHA256: e.BodySHA256, TicketID: e.Ticket.ID,
		ReceivedAt: e.Ticket.ReceivedAt, ExpiresAt: e.KeyExpiresAt,
	}
}

func exported(t *testing.T, b *testBundle, source string) (keys []postgres.StoredKey) {
	t.Helper()
	require.NoError(t, b.store.ExportKeys(t.Context(), source, func(k postgres.StoredKey) error {
		keys = append(keys, k)
		return nil
	}))
	return keys
}

func TestImportKeys_CountOnlyOnceAStandbyHasThem(t *testing.T) {
	t.Parallel()
	p := setupPair(t)
	keys := []postgres.StoredKey{keyOf(keyed(t, "k", "1")), keyOf(keyed(t, "l", "2"))}
	require.NoError(t, p.standby.Kill())
	importKeys := func(ctx context.Context) error { _, err := p.store.ImportKeys(ctx, keys); return err }
	require.Eventually(t, func() bool { // a wait that is given up leaves what the primary alone has
		briefly(t, "first", importKeys)
		return one[int](t, p.testBundle, `SELECT count(*) FROM deliveries`) == len(keys)
	}, 30*time.Second, 50*time.Millisecond)
	briefly(t, "again: the keys are there already, but only on the primary", importKeys)
	require.NoError(t, p.standby.Restart(t.Context()))
	done, err := p.store.ImportKeys(t.Context(), keys)
	require.NoError(t, err)
	require.Equal(t, postgres.ImportedKeys{There: 2}, done)
	require.Equal(t, 2, one[int](t, p.failOver(t), `SELECT count(*) FROM deliveries`))
}

// A server that was killed while its commit waited for a standby leaves a transaction that nobody can see yet. Its sender was not
// answered, and will send the ticket to the other database.
func TestExportKeys_WaitForTheCommitsThatAreNotOver(t *testing.T) {
	t.Parallel()
	p := setupPair(t)
	save(t, p.testBundle, keyed(t, "before", "1"))
	require.NoError(t, p.standby.Kill())
	late := keyed(t, "late", "2")
	ctx, cancel := context.WithCancel(t.Context())
	saved := make(chan error, 1)
	go func() {
		_, err := p.store.Save(ctx, intake.Batch{Entries: []*intake.Entry{late}})
		saved <- err
	}()
	require.Eventually(t, func() bool { pid, _ := p.waiting(t); return pid != 0 }, 30*time.Second, 10*time.Millisecond)
	short, end := context.WithTimeout(t.Context(), time.Second)
	defer end()
	err := p.store.ExportKeys(short, "default", func(postgres.StoredKey) error { panic("no key may be exported yet") })
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NoError(t, p.standby.Restart(t.Context()))
	require.NoError(t, <-saved)
	cancel()
	keys := exported(t, p.testBundle, late.Ticket.Source)
	require.Len(t, keys, 2)
	assert.Equal(t, keyOf(late).TicketID, keys[1].TicketID)
}

// A batch whose wait for a standby was given up can be seen, but is lost in a failover. The other database would tell its sender
// that the ticket is stored.
func TestExportKeys_WaitUntilAStandbyHasThem(t *testing.T) {
	t.Parallel()
	p := setupPair(t)
	require.NoError(t, p.standby.Kill())
	lonely := keyed(t, "lonely", "1")
	require.Eventually(t, func() bool {
		briefly(t, "save", func(ctx context.Context) error {
			_, err := p.store.Save(ctx, intake.Batch{Entries: []*intake.Entry{lonely}})
			return err
		})
		return one[int](t, p.testBundle, `SELECT count(*) FROM deliveries`) == 1
	}, 30*time.Second, 50*time.Millisecond)
	for range 2 {
		briefly(t, "export", func(ctx context.Context) error {
			return p.store.ExportKeys(ctx, lonely.Ticket.Source, func(postgres.StoredKey) error { panic("only the primary has the key") })
		})
	}
	require.NoError(t, p.standby.Restart(t.Context()))
	require.Equal(t, lonely.Ticket.ID, exported(t, p.testBundle, lonely.Ticket.Source)[0].TicketID)
	require.Equal(t, 1, one[int](t, p.failOver(t), `SELECT count(*) FROM deliveries`))
}

func TestImportKeys_TakeOverOnlyWhatHadExpired(t *testing.T) {
	t.Parallel()
	b := setup(t)
	first := keyed(t, "k", "first")
	save(t, b, first)
	live := keyOf(keyed(t, "k", "second"))
	done, err := b.store.ImportKeys(t.Context(), []postgres.StoredKey{live})
	require.NoError(t, err)
	require.Equal(t, postgres.ImportedKeys{
		Others: []postgres.KeyTaken{{Source: live.Source, Key: "k", Imported: live.TicketID, Holder: first.Ticket.ID}},
	}, done)
	live.ReceivedAt, live.ExpiresAt = first.KeyExpiresAt, first.KeyExpiresAt.Add(time.Hour)
	done, err = b.store.ImportKeys(t.Context(), []postgres.StoredKey{live})
	require.NoError(t, err)
	require.Equal(t, postgres.ImportedKeys{Stored: 1}, done)
	require.Equal(t, live.TicketID, exported(t, b, live.Source)[0].TicketID)
	_, err = b.store.ImportKeys(t.Context(), []postgres.StoredKey{live, live})
	require.ErrorIs(t, err, ticket.ErrRefused)
}
