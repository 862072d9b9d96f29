package intake_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/spool"
	"myticket/internal/ticket"
)

func openSpool(t *testing.T, config spool.Config) *spool.Spool {
	t.Helper()
	if config.Dir == "" {
		config.Dir = t.TempDir()
	}
	config.Logger = slog.New(slog.DiscardHandler)
	s, err := spool.Open(config)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.Close()) })
	return s
}

// memory is a store that keeps what it is given, unless a test says otherwise.
type memory struct {
	away    atomic.Bool
	hold    atomic.Pointer[chan struct{}] // saves wait for it
	refuses func(e *intake.Entry, unread bool) bool
	fails   func(e *intake.Entry, unread bool) bool // in time alone

	deliveries atomic.Int32 // Saves of tickets whose senders wait

	mu      sync.Mutex
	stored  []kept
	batches []int // tickets of each Save that was well
}

// kept is a ticket that the store has.
type kept struct {
	body   string
	status ticket.Status
}

func (m *memory) Save(ctx context.Context, b intake.Batch) (intake.Saved, error) {
	if err := m.save(ctx, b); err != nil {
		return intake.Saved{}, err
	}
	return stored(b), nil
}

func (m *memory) save(ctx context.Context, b intake.Batch) error {
	if !b.Drained {
		m.deliveries.Add(1)
	}
	if hold := m.hold.Load(); hold != nil {
		select {
		case <-*hold:
		case <-ctx.Done():
			return fmt.Errorf("no answer: %w", ticket.ErrUnavailable)
		}
	}
	if m.away.Load() {
		return fmt.Errorf("away: %w", ticket.ErrUnavailable)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range b.Entries {
		if m.refuses != nil && m.refuses(e, b.Unread) {
			return fmt.Errorf("refused: %w", ticket.ErrRefused)
		}
		if m.fails != nil && m.fails(e, b.Unread) {
			return fmt.Errorf("too slow: %w", ticket.ErrUnavailable)
		}
	}
	m.batches = append(m.batches, len(b.Entries))
	for i, o := range stored(b).Outcomes {
		m.stored = append(m.stored, kept{string(b.Entries[i].Ticket.Body), o.Status})
	}
	return nil
}

// Ping tries what Save needs, as that of Postgres does.
func (m *memory) Ping(ctx context.Context) error {
	if hold := m.hold.Load(); hold != nil {
		select {
		case <-*hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if m.away.Load() {
		return errors.New("away")
	}
	return nil
}

func (m *memory) bodies() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []string
	for _, e := range m.stored {
		all = append(all, e.body)
	}
	return all
}

func TestIntake_StoreAway_TicketsAreSpooled_AndDrainedInOrder(t *testing.T) {
	t.Parallel()
	queue, store := openSpool(t, spool.Config{}), &memory{}
	in := start(t, intake.Config{Spool: queue}, store, nil)
	store.away.Store(true)
	var want []string
	for i := range 50 {
		body := fmt.Sprintf("ticket %d", i)
		r, err := in.Accept(delivery(body))
		require.NoError(t, err)
		require.Equal(t, ticket.Spooled, r.Status)
		require.Empty(t, r.Problems)
		want = append(want, body)
	}
	require.False(t, in.Available())
	require.Equal(t, 50, queue.Stats().Tickets)
	require.Empty(t, store.bodies())
	store.away.Store(false)
	require.Eventually(t, func() bool { return queue.Stats().Tickets == 0 }, 30*time.Second, time.Millisecond)
	require.Equal(t, want, store.bodies())
	require.Equal(t, ticket.Error, store.stored[0].status, "they are read when they are drained")
	r, err := in.Accept(delivery(sample))
	require.NoError(t, err)
	require.Equal(t, ticket.Treated, r.Status)
}

// A database that answers and commits nothing (its standbys are gone, or its table is locked) must not make one sender after
// the other wait for it.
func TestIntake_StoreAnswersAndTakesNothing_IsAwayUntilItTakesSomething(t *testing.T) {
	t.Parallel()
	queue, store := openSpool(t, spool.Config{}), &memory{}
	held := make(chan struct{})
	store.hold.Store(&held)
	in := start(t, intake.Config{Spool: queue, StoreTimeout: 50 * time.Millisecond, Timeout: time.Minute, OverflowWait: time.Minute}, store, nil)
	for i := range 20 {
		r, err := in.Accept(delivery(sample))
		require.NoError(t, err)
		require.Equal(t, ticket.Spooled, r.Status)
		require.False(t, in.Available())
		time.Sleep(20 * time.Millisecond) // many times longer than a probe that believed an answer would take
		require.Equal(t, int32(1), store.deliveries.Load(), "ticket %d was held up by a store that takes none", i)
	}
	store.hold.Store(nil)
	close(held)
	require.Eventually(t, func() bool { return in.Available() && queue.Stats().Tickets == 0 }, 30*time.Second, time.Millisecond)
	require.Len(t, store.bodies(), 20)
	r, err := in.Accept(delivery(sample))
	require.NoError(t, err)
	require.Equal(t, ticket.Treated, r.Status)
}

func TestIntake_SameKeyWhileSpooled_IsADuplicate(t *testing.T) {
	t.Parallel()
	queue, store := openSpool(t, spool.Config{}), &memory{}
	store.away.Store(true)
	in := start(t, intake.Config{Spool: queue}, store, nil)
	keyed := delivery(sample)
	keyed.IdempotencyKey = "k"
	first, err := in.Accept(keyed)
	require.NoError(t, err)
	again, err := in.Accept(keyed)
	require.NoError(t, err)
	require.Equal(t, intake.Receipt{ID: first.ID, Status: ticket.Spooled, Duplicate: true}, again)
	keyed.Body = []byte("another")
	_, err = in.Accept(keyed)
	require.ErrorIs(t, err, intake.ErrKeyReused)
	require.Equal(t, 1, queue.Stats().Tickets)
}

func TestIntake_StoreBehind_OverflowsAfterTheWait_AndBeforeTheTimeout(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]intake.Config{
		"waits too long":    {OverflowWait: 50 * time.Millisecond, StoreTimeout: time.Minute, Timeout: time.Minute},
		"too many wait":     {OverflowWait: time.Minute, StoreTimeout: time.Minute, Timeout: time.Minute, WaitingTickets: 20},
		"does not answer":   {OverflowWait: time.Minute, StoreTimeout: 50 * time.Millisecond, Timeout: time.Minute},
		"must be answered":  {OverflowWait: time.Minute, StoreTimeout: time.Minute, Timeout: 2 * time.Second},
		"too many bytes do": {OverflowWait: time.Minute, StoreTimeout: time.Minute, Timeout: time.Minute, WaitingBytes: 20 * sampleCost()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// In a bubble no time passes while the disk works, however busy the machine is.
			synctest.Test(t, func(t *testing.T) { requireOverflow(t, config) })
		})
	}
}

func requireOverflow(t *testing.T, config intake.Config) {
	t.Helper()
	queue, store := openSpool(t, spool.Config{}), &memory{}
	held := make(chan struct{})
	store.hold.Store(&held)
	config.Spool, config.BatchesInFlight, config.BatchTickets = queue, 1, 1
	in := start(t, config, store, nil)
	var group sync.WaitGroup
	var spooled, treated atomic.Int32
	for range 16 {
		group.Go(func() {
			r, err := in.Accept(delivery(sample))
			switch {
			case err != nil:
				t.Error(err)
			case r.Status == ticket.Spooled:
				spooled.Add(1)
			default:
				treated.Add(1)
			}
		})
	}
	require.Eventually(t, func() bool { return spooled.Load() >= 5 }, 30*time.Second, time.Millisecond)
	close(held)
	group.Wait()
	assert.Equal(t, int32(16), spooled.Load()+treated.Load())
}

// TestIntake_SpoolFails_WhatTheStoreTakesIsStored: a burst finds the spool's disk full, and the store slow but well.
func TestIntake_SpoolFull_TheStoreIsStillAsked(t *testing.T) {
	t.Parallel()
	queue, store := openSpool(t, spool.Config{MaxTickets: 1}), &memory{}
	put(t, queue, &intake.Entry{Ticket: newTicket(t, "fills it")})
	held := make(chan struct{})
	store.hold.Store(&held)
	in := start(t, intake.Config{
		Spool: queue, BatchesInFlight: 1, OverflowWait: 10 * time.Millisecond, StoreTimeout: time.Minute, Timeout: time.Minute,
	}, store, nil)
	var group sync.WaitGroup
	for range 10 {
		group.Go(func() {
			r, err := in.Accept(delivery(sample))
			assert.True(t, err == nil && r.Status == ticket.Treated, "%v %v", r, err)
		})
	}
	time.Sleep(100 * time.Millisecond) // ten times what they wait before they overflow
	close(held)
	group.Wait()
	require.Eventually(t, func() bool { return queue.Stats().Tickets == 0 }, 30*time.Second, time.Millisecond,
		"what filled the spool is drained: else there is no room to fill it again")
	store.away.Store(true)
	put(t, queue, &intake.Entry{Ticket: newTicket(t, "fills it again")})
	_, err := in.Accept(delivery(sample))
	require.ErrorIs(t, err, intake.ErrSpoolFull)
}

func put(t *testing.T, queue *spool.Spool, entries ...*intake.Entry) {
	t.Helper()
	_, err := queue.Put(entries)
	require.NoError(t, err)
}

func newTicket(t *testing.T, body string) ticket.Ticket {
	t.Helper()
	id, at, err := ticket.NewID()
	require.NoError(t, err)
	return ticket.Ticket{ID: id, ReceivedAt: at, Source: ticket.DefaultSource, Body: []byte(body)}
}

// hangingSpool is a disk that does not come back.
type hangingSpool struct {
	*spool.Spool
	release chan struct{}
}

func (s hangingSpool) Put([]*intake.Entry) (intake.Saved, error) {
	<-s.release
	return intake.Saved{}, errors.New("too late")
}

func TestIntake_DiskThatHangs_NoSenderWaitsBeyondTheTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, requireAnswersWhileTheDiskHangs) // its clock stands still while the machine is busy
}

func requireAnswersWhileTheDiskHangs(t *testing.T) {
	queue, store := hangingSpool{openSpool(t, spool.Config{}), make(chan struct{})}, &memory{}
	store.away.Store(true)
	const timeout = 200 * time.Millisecond
	in := start(t, intake.Config{Spool: queue, Timeout: timeout}, store, nil)
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			begin := time.Now()
			_, err := in.Accept(delivery(sample))
			assert.ErrorIs(t, err, ticket.ErrUnavailable) //nolint:testifylint // not the test's goroutine
			assert.LessOrEqual(t, time.Since(begin), timeout)
		})
	}
	group.Wait()
	close(queue.release)
}

// A disk hangs, and Postgres is away for a moment and comes back, again and again: deliveries go to it, and none waits for the disk.
func TestIntake_DiskThatHangs_KeepsNothingFromAStoreThatIsBack(t *testing.T) {
	t.Parallel()
	queue, store := hangingSpool{openSpool(t, spool.Config{}), make(chan struct{})}, &memory{}
	const timeout = 500 * time.Millisecond
	in := start(t, intake.Config{Spool: queue, Timeout: timeout, BatchesInFlight: 2, WaitingTickets: 50}, store, nil)
	for range 4 { // more often than there are lanes that could be stuck
		store.away.Store(true)
		var group sync.WaitGroup
		for range 10 {
			group.Go(func() {
				_, err := in.Accept(delivery(sample))
				assert.ErrorIs(t, err, ticket.ErrUnavailable)
			})
		}
		group.Wait()
		store.away.Store(false)
		require.Eventually(t, in.Available, 30*time.Second, time.Millisecond, "it is noticed that Postgres is back")
		begin := time.Now()
		r, err := in.Accept(delivery(sample))
		require.NoError(t, err)
		require.Equal(t, ticket.Treated, r.Status)
		require.Less(t, time.Since(begin), timeout)
	}
	close(queue.release)
}

// Lanes that fail and probes that succeed run into each other: in the end the store is there, so deliveries go to it.
func TestIntake_StoreThatComesAndGoes_IsNeverLeftHalfAway(t *testing.T) {
	t.Parallel()
	for name, queue := range map[string]intake.Spool{"with a spool": openSpool(t, spool.Config{}), "without": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var saves atomic.Int32
			store := &scriptedStore{save: func(context.Context, intake.Batch) error {
				if saves.Add(1)%3 == 0 && saves.Load() < 60 {
					return ticket.ErrUnavailable
				}
				return nil
			}}
			in := start(t, intake.Config{Spool: queue, BatchesInFlight: 8, BatchTickets: 1}, store, nil)
			var group sync.WaitGroup
			for range 8 {
				group.Go(func() {
					for saves.Load() < 60 {
						if _, err := in.Accept(delivery(sample)); err != nil {
							time.Sleep(time.Millisecond)
						}
					}
				})
			}
			group.Wait()
			require.Eventually(t, func() bool {
				r, err := in.Accept(delivery(sample))
				return err == nil && r.Status == ticket.Treated
			}, 30*time.Second, 10*time.Millisecond)
		})
	}
}

func TestIntake_Drain_LosesNothingThatTheStoreRefuses(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	queue := openSpool(t, spool.Config{Dir: dir})
	bodies := []string{"well", "poison", "unreadable even raw", "well, too"}
	for _, body := range bodies {
		put(t, queue, &intake.Entry{Ticket: newTicket(t, body)})
	}
	store := &memory{refuses: func(e *intake.Entry, unread bool) bool {
		return string(e.Ticket.Body) == "poison" && !unread || string(e.Ticket.Body) == "unreadable even raw"
	}}
	config := intake.Config{Spool: queue, Logger: slog.New(slog.DiscardHandler)}
	drained, err := intake.Drain(t.Context(), config, store)
	require.NoError(t, err)
	require.Equal(t, intake.Drained{Stored: 3, Refused: 1}, drained)
	require.Equal(t, []string{"well", "poison", "well, too"}, store.bodies())
	require.Equal(t, ticket.ToTreat, store.stored[1].status)
	require.Equal(t, 1, queue.Stats().Aside)

	require.NoError(t, queue.Close())
	config.Spool = openSpool(t, spool.Config{Dir: dir})
	store.refuses = nil // an operator has mended the database
	drained, err = intake.Drain(t.Context(), config, store)
	require.NoError(t, err)
	require.Equal(t, intake.Drained{Stored: 1}, drained)
	require.Equal(t, "unreadable even raw", store.bodies()[3])
}

func TestIntake_Close_SpoolsWhatTheStoreDoesNotTake_AndDrainsWhatItDoes(t *testing.T) {
	t.Parallel()
	queue, store := openSpool(t, spool.Config{}), &memory{}
	in := start(t, intake.Config{Spool: queue}, store, nil)
	store.away.Store(true)
	r, err := in.Accept(delivery(sample))
	require.NoError(t, err)
	require.Equal(t, ticket.Spooled, r.Status)
	require.NoError(t, in.Close(t.Context()))
	require.Equal(t, 1, queue.Stats().Tickets)

	store.away.Store(false)
	in = start(t, intake.Config{Spool: queue}, store, nil)
	require.NoError(t, in.Close(t.Context()))
	require.Zero(t, queue.Stats().Tickets, "at the latest before a stop")
	require.Len(t, store.bodies(), 1)
}
