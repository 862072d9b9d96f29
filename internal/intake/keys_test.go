package intake_test

import (
	"crypto/sha256"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/spool"
	"myticket/internal/ticket"
)

// answered is what Accept returned, and when.
type answered struct {
	receipt intake.Receipt
	err     error
	after   time.Duration
}

// accept delivers in a goroutine of its own.
func accept(in *intake.Intake, body, key string) <-chan answered {
	answer := make(chan answered, 1)
	go func() {
		start := time.Now()
		d := delivery(body)
		d.IdempotencyKey = key
		r, err := in.Accept(d)
		answer <- answered{r, err, time.Since(start)}
	}()
	return answer
}

// earlierSpool is a spool that holds the ticket of an earlier process with the key k. Its file is not verified: Peek, which
// would do so, hangs until it is released.
type earlierSpool struct {
	*spool.Spool
	first   ticket.Ticket
	release chan struct{}
}

func (s *earlierSpool) Peek(n int, b int64, skip func(uuid.UUID) bool) ([]intake.Spooled, error) {
	<-s.release
	return s.Spool.Peek(n, b, skip)
}

func openEarlierSpool(t *testing.T) *earlierSpool {
	t.Helper()
	config := spool.Config{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)}
	s := &earlierSpool{first: newTicket(t, sample), release: make(chan struct{})}
	earlier, err := spool.Open(config)
	require.NoError(t, err)
	put(t, earlier, &intake.Entry{
		Ticket: s.first, Key: "k", KeyExpiresAt: time.Now().Add(1000 * time.Hour), BodySHA256: sha256.Sum256([]byte(sample)),
	})
	require.NoError(t, earlier.Close())
	s.Spool = openSpool(t, config)
	return s
}

// A bubble has a clock of its own, which goes on only when everything waits.
func TestIntake_DeliveryWithAKey_WaitsUntilTheKeysOfTheSpoolAreRead(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		queue, store := openEarlierSpool(t), &memory{}
		in := start(t, intake.Config{Spool: queue, Timeout: time.Hour}, store, nil)
		defer close(queue.release)
		r := <-accept(in, "no key", "")
		require.NoError(t, r.err)
		require.Zero(t, r.after, "one without a key does not wait")

		again, reused, other := accept(in, sample, "k"), accept(in, "another", "k"), accept(in, sample, "another key")
		time.Sleep(time.Minute)
		require.Empty(t, again)
		require.Empty(t, reused)
		require.Empty(t, other)
		require.NoError(t, queue.Verify(t.Context()))
		require.Equal(t, intake.Receipt{ID: queue.first.ID, Status: ticket.Spooled, Duplicate: true}, (<-again).receipt)
		require.ErrorIs(t, (<-reused).err, intake.ErrKeyReused)
		require.Equal(t, ticket.Treated, (<-other).receipt.Status)
		require.Equal(t, 1, queue.Stats().Tickets)
		require.Equal(t, []string{"no key", sample}, store.bodies())
	})
}

func TestIntake_KeysOfTheSpoolAreNotRead_DeliveriesAreTakenAfterHalfOfTheTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const timeout = 4 * time.Second
		queue, store := openEarlierSpool(t), &memory{}
		in := start(t, intake.Config{Spool: queue, Timeout: timeout}, store, nil)
		defer close(queue.release)
		time.Sleep(time.Second)
		r := <-accept(in, sample, "k")
		require.NoError(t, r.err)
		require.Equal(t, ticket.Treated, r.receipt.Status, "the store, which knows keys too, has the ticket")
		require.Equal(t, timeout/2-time.Second, r.after, "half of the time since the start")
		r = <-accept(in, sample, "k2")
		require.NoError(t, r.err)
		require.Zero(t, r.after, "no delivery waits any more")
		require.NoError(t, queue.Verify(t.Context()))
		r = <-accept(in, sample, "k")
		require.Equal(t, intake.Receipt{ID: queue.first.ID, Status: ticket.Spooled, Duplicate: true}, r.receipt)
	})
}

func TestIntake_KeysAreNotRead_AndNeitherStoreNorDiskAnswers_NoSenderWaitsBeyondTheTimeout(t *testing.T) {
	t.Parallel()
	for name, away := range map[string]bool{"it is known that the store is away": true, "it is not": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { requireAnswersInTime(t, away) })
		})
	}
}

func requireAnswersInTime(t *testing.T, away bool) {
	t.Helper()
	const timeout = 4 * time.Second
	queue, store, held := openEarlierSpool(t), &memory{}, make(chan struct{})
	if store.away.Store(away); !away {
		store.hold.Store(&held)
	}
	disk := hangingSpool{queue.Spool, make(chan struct{})}
	in := start(t, intake.Config{Spool: struct {
		*earlierSpool
		putter
	}{queue, disk}, Timeout: timeout}, store, nil)
	defer close(disk.release)
	defer close(queue.release)
	defer close(held)
	if away {
		accept(in, "no key", "") // finds out
	}
	r := <-accept(in, sample, "k")
	require.ErrorIs(t, r.err, ticket.ErrUnavailable)
	require.Equal(t, timeout, r.after)
}

// putter makes the Put of another spool one's own.
type putter interface {
	Put(entries []*intake.Entry) (intake.Saved, error)
}

func TestIntake_Close_EndsTheWaitForKeys_AndDrainsWhatIsNotVerified(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		queue, store := openEarlierSpool(t), &memory{}
		in := start(t, intake.Config{Spool: queue, Timeout: time.Hour}, store, nil)
		waiting := accept(in, sample, "k")
		time.Sleep(time.Second)
		require.Empty(t, waiting)
		closed := make(chan error, 1)
		go func() { closed <- in.Close(t.Context()) }()
		r := <-waiting
		require.ErrorIs(t, r.err, intake.ErrDraining)
		require.Equal(t, time.Second, r.after)
		close(queue.release)
		require.NoError(t, <-closed)
		require.Equal(t, []string{sample}, store.bodies())
		require.Zero(t, queue.Stats())
	})
}
