package intake_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/spool"
	"myticket/internal/ticket"
)

// spooledTickets returns a spool with tickets in it, one file for some of them.
func spooledTickets(t *testing.T, config spool.Config, bodies ...string) *spool.Spool {
	t.Helper()
	config.SegmentBytes = cmp.Or(config.SegmentBytes, 16<<10)
	queue := openSpool(t, config)
	for some := range slices.Chunk(bodies, 10) {
		var entries []*intake.Entry
		for _, body := range some {
			entries = append(entries, &intake.Entry{Ticket: newTicket(t, body)})
		}
		put(t, queue, entries...)
	}
	return queue
}

func is(body string) func(*intake.Entry, bool) bool {
	return func(e *intake.Entry, _ bool) bool { return string(e.Ticket.Body) == body }
}

func TestDrain_TicketThatFails_IsSteppedOver_TriedAgain_AndSetAside(t *testing.T) {
	t.Parallel()
	var bodies []string
	for i := range 300 {
		bodies = append(bodies, fmt.Sprint("ticket ", i))
	}
	const culprit = "ticket 7"
	for name, c := range map[string]struct {
		fails   func(unread bool, try int) bool
		drained intake.Drained
		status  ticket.Status
	}{
		"always":           {func(bool, int) bool { return true }, intake.Drained{Stored: 299, Refused: 1}, ""},
		"when it was read": {func(unread bool, _ int) bool { return !unread }, intake.Drained{Stored: 300}, ticket.ToTreat},
		"for some time":    {func(_ bool, try int) bool { return try < 12 }, intake.Drained{Stored: 300}, ticket.ToTreat},
		"in a large batch": {func(_ bool, try int) bool { return try < 2 }, intake.Drained{Stored: 300}, ticket.Error},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			queue, tries := spooledTickets(t, spool.Config{}, bodies...), 0
			store := &memory{fails: func(e *intake.Entry, unread bool) bool {
				if !is(culprit)(e, unread) {
					return false
				}
				tries++
				return c.fails(unread, tries-1)
			}}
			drained, err := intake.Drain(t.Context(), intake.Config{
				Spool: queue, DrainRetry: time.Millisecond, DrainTries: 8, Logger: slog.New(slog.DiscardHandler),
			}, store)
			require.NoError(t, err)
			require.Equal(t, c.drained, drained)
			require.Zero(t, queue.Stats().Tickets)
			require.Equal(t, drained.Refused, queue.Stats().Aside)
			require.Less(t, tries, 40, "it is bounded")
			stored := store.bodies()
			others := slices.DeleteFunc(slices.Clone(stored), func(body string) bool { return body == culprit })
			require.Equal(t, slices.DeleteFunc(slices.Clone(bodies), func(body string) bool { return body == culprit }), others, "oldest first")
			if i := slices.Index(stored, culprit); c.status != "" {
				require.Equal(t, c.status, store.stored[i].status)
			}
		})
	}
}

func TestDrain_WhatIsSteppedOver_IsKeptByARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	queue := spooledTickets(t, spool.Config{Dir: dir}, "slow", "a", "b", "c")
	store := &memory{fails: is("slow")}
	in := start(t, intake.Config{Spool: queue}, store, nil)
	require.Eventually(t, func() bool { return queue.Stats().Tickets == 1 }, 30*time.Second, time.Millisecond)
	require.True(t, in.Available())
	require.NoError(t, in.Close(t.Context()))
	require.NoError(t, queue.Close())
	queue = openSpool(t, spool.Config{Dir: dir})
	require.Equal(t, 4, queue.Stats().Tickets, "the file goes as a whole, so its tickets come again: that is harmless")
	store.fails = nil
	drained, err := intake.Drain(t.Context(), intake.Config{Spool: queue, Logger: slog.New(slog.DiscardHandler)}, store)
	require.NoError(t, err)
	require.Equal(t, 4, drained.Stored)
}

// A transaction of the drain holds what BatchBytes says that tickets may become, however short they were.
func TestDrain_IsBoundedByWhatTicketsBecome(t *testing.T) {
	t.Parallel()
	lines := "Order: 1\nVAT: 0\nTotal: 2\n\nproduct,product_id,price\n" + strings.Repeat("x,aaaa,1\n", 1000)
	bodies := slices.Repeat([]string{lines}, 10)
	bodies[5] = lines + strings.Repeat("x,aaaa,1\n", 8000) // more than a transaction may hold: it goes alone
	read := ticket.Ticket{Body: []byte(lines)}
	read.Order, _ = ticket.Parse(read.Body)
	queue, store := spooledTickets(t, spool.Config{}, bodies...), &memory{}
	drained, err := intake.Drain(t.Context(), intake.Config{
		Spool: queue, BatchBytes: 3*read.Cost() + 1000, Logger: slog.New(slog.DiscardHandler),
	}, store)
	require.NoError(t, err)
	require.Equal(t, 10, drained.Stored)
	require.Equal(t, []int{3, 2, 1, 3, 1}, store.batches)
}

// asking is a spool that notes how many tickets it was asked for.
type asking struct {
	*spool.Spool
	asked []int
}

func (s *asking) Peek(n int, b int64, skip func(uuid.UUID) bool) ([]intake.Spooled, error) {
	s.asked = append(s.asked, n)
	return s.Spool.Peek(n, b, skip)
}

// What does not fit into a transaction was decoded for nothing. Of tickets of forty lines that was two of three.
func TestDrain_TakesFewMoreFromTheSpoolThanFit(t *testing.T) {
	t.Parallel()
	body := "Order: 1\nVAT: 0\nTotal: 2\n\nproduct,product_id,price\n" + strings.Repeat("x,aaaa,1\n", 40)
	read := ticket.Ticket{Body: []byte(body)}
	read.Order, _ = ticket.Parse(read.Body)
	queue, store := &asking{Spool: spooledTickets(t, spool.Config{SegmentBytes: 1 << 20}, slices.Repeat([]string{body}, 500)...)}, &memory{}
	drained, err := intake.Drain(t.Context(), intake.Config{
		Spool: queue, BatchBytes: 100*read.Cost() + read.Cost()/2, Logger: slog.New(slog.DiscardHandler),
	}, store)
	require.NoError(t, err)
	require.Equal(t, 500, drained.Stored)
	require.Equal(t, []int{100, 100, 100, 100, 100}, store.batches)
	require.Equal(t, []int{1024, 112, 112, 112, 112, 112, 112}, queue.asked, "the last two find none: one ahead, and one to see the end")
}

// peeking is a spool that tells when Peek has found tickets.
type peeking struct {
	*spool.Spool
	found chan []string
}

func (s *peeking) Peek(n int, b int64, skip func(uuid.UUID) bool) ([]intake.Spooled, error) {
	tickets, err := s.Spool.Peek(n, b, skip)
	var bodies []string
	for i := range tickets {
		bodies = append(bodies, string(tickets[i].Ticket.Body))
	}
	if len(bodies) > 0 {
		s.found <- bodies
	}
	return tickets, err
}

// While Postgres stores tickets, the server reads the next ones, and gives way to neither: order lines wait. What was read
// ahead of a transaction that fails is left in the spool, and comes after those that come before it.
func TestDrain_ReadsTheNextTicketsWhileItStores(t *testing.T) {
	t.Parallel()
	queue := &peeking{spooledTickets(t, spool.Config{}, "a", "b"), make(chan []string, 10)}
	hold := make(chan struct{})
	store := &memory{}
	store.hold.Store(&hold)
	one := ticket.Ticket{Body: []byte("a")}
	one.Order, one.Problems = ticket.Parse(one.Body)
	in := start(t, intake.Config{Spool: queue, BatchBytes: one.Cost(), StoreTimeout: time.Hour, DrainTimeout: time.Hour}, store, nil)
	release := sync.OnceFunc(func() { close(hold) })
	t.Cleanup(release)
	require.Equal(t, []string{"a", "b"}, <-queue.found, "one of them is too much, once it is read")
	require.Equal(t, []string{"b"}, <-queue.found, "its turn comes while the other one is stored")
	require.Empty(t, store.bodies())
	require.True(t, in.Busy(), "tickets of the spool are being stored")

	store.away.Store(true)
	release()
	require.Eventually(t, func() bool { return !in.Available() }, time.Minute, time.Millisecond)
	require.Equal(t, 2, queue.Stats().Tickets)
	store.away.Store(false)
	require.Eventually(t, func() bool { return queue.Stats().Tickets == 0 }, time.Minute, time.Millisecond)
	require.Equal(t, []string{"a", "b"}, store.bodies(), "oldest first, and each once")
	require.Eventually(t, func() bool { return !in.Busy() }, time.Minute, time.Millisecond)
}

// reused is a store in which another server has used the key of a ticket. When it is to be stored without the key, the store is
// away for a moment.
type reused struct {
	*memory
	away, pinged atomic.Bool
}

func (s *reused) Save(ctx context.Context, b intake.Batch) (intake.Saved, error) {
	first := b.Entries[0]
	switch {
	case string(first.Ticket.Body) != "a":
	case first.Key != "":
		return intake.Saved{Outcomes: []intake.Outcome{{KeyReused: true}}}, nil
	case s.away.CompareAndSwap(false, true):
		return intake.Saved{}, fmt.Errorf("away: %w", ticket.ErrUnavailable)
	}
	return s.memory.Save(ctx, b)
}

func (s *reused) Ping(ctx context.Context) error {
	if s.pinged.CompareAndSwap(false, true) {
		return ticket.ErrUnavailable
	}
	return s.memory.Ping(ctx)
}

// What was read ahead of a transaction that was well, but whose tickets are not all out of the spool, waits for these.
func TestDrain_WhatWasReadAhead_ComesAfterWhatIsLeft(t *testing.T) {
	t.Parallel()
	queue, store := openSpool(t, spool.Config{}), &reused{memory: &memory{}}
	var entries []*intake.Entry
	for _, body := range []string{"a", "b", "c"} {
		entries = append(entries, &intake.Entry{Ticket: newTicket(t, body)})
	}
	entries[0].Key, entries[0].KeyExpiresAt = "key", time.Now().Add(time.Hour)
	put(t, queue, entries...)
	one := entries[0].Ticket
	one.Order, one.Problems = ticket.Parse(one.Body)
	start(t, intake.Config{Spool: queue, BatchBytes: one.Cost()}, store, nil)
	require.Eventually(t, func() bool { return queue.Stats().Tickets == 0 }, time.Minute, time.Millisecond)
	require.Equal(t, []string{"a", "b", "c"}, store.bodies())
}

// A transaction whose only ticket is refused has emptied the spool by one, so the drain goes on.
func TestDrain_DoesNotEndAtARefusedTicket(t *testing.T) {
	t.Parallel()
	queue, store := spooledTickets(t, spool.Config{}, "poison", "a", "b"), &memory{refuses: is("poison")}
	drained, err := intake.Drain(t.Context(), intake.Config{Spool: queue, BatchBytes: 1, Logger: slog.New(slog.DiscardHandler)}, store)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, store.bodies())
	require.Equal(t, intake.Drained{Stored: 2, Refused: 1}, drained)
}

func TestDrain_StoreAway_EndsAtOnce_AndKeepsAll(t *testing.T) {
	t.Parallel()
	queue, store := spooledTickets(t, spool.Config{}, "a", "b"), &memory{}
	store.away.Store(true)
	drained, err := intake.Drain(t.Context(), intake.Config{Spool: queue, Logger: slog.New(slog.DiscardHandler)}, store)
	require.ErrorIs(t, err, ticket.ErrUnavailable)
	require.Zero(t, drained)
	require.Equal(t, 2, queue.Stats().Tickets)
}

// fullDisk is a spool whose disk takes nothing.
type fullDisk struct{ *spool.Spool }

func (fullDisk) Refuse(*intake.Entry) error { return errors.New("no space left on device") }

func TestDrain_TicketThatCannotBeSetAside_StaysInTheSpool_AndHoldsUpNoOther(t *testing.T) {
	t.Parallel()
	queue := fullDisk{spooledTickets(t, spool.Config{}, "slow", "poison", "a", "b", "c")}
	store := &memory{fails: is("slow"), refuses: is("poison")}
	_, err := intake.Drain(t.Context(), intake.Config{
		Spool: queue, DrainRetry: time.Millisecond, DrainTries: 2, Logger: slog.New(slog.DiscardHandler),
	}, store)
	require.ErrorContains(t, err, "no space left")
	require.Equal(t, []string{"a", "b", "c"}, store.bodies())
	require.Equal(t, 2, queue.Stats().Tickets)
}

// Tickets that the store does not take, and says so at once, leave the others most of the time.
func TestDrain_ManyTicketsThatFailAtOnce_HoldUpTheOthersForMoments(t *testing.T) {
	t.Parallel()
	var bodies []string
	for i := range 40 {
		bodies = append(bodies, fmt.Sprint("broken ", i))
	}
	for i := range 40 {
		bodies = append(bodies, fmt.Sprint("well ", i))
	}
	queue := spooledTickets(t, spool.Config{}, bodies...)
	store := &memory{fails: func(e *intake.Entry, _ bool) bool { return strings.HasPrefix(string(e.Ticket.Body), "broken") }}
	in := start(t, intake.Config{Spool: queue}, store, nil)
	require.Eventually(t, func() bool { return len(store.bodies()) == 40 }, time.Minute, 10*time.Millisecond)
	require.True(t, in.Available())
}
