package intake_test

import (
	"bytes"
	"context"
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

// large is a ticket that becomes many times as much as it is long.
func large(bytesLong int) intake.Delivery {
	head := []byte("Order: 1\nVAT: 0\nTotal: 2\n\nproduct,product_id,price\n")
	return intake.Delivery{Source: ticket.DefaultSource, Body: append(head, bytes.Repeat([]byte("x,aaaa,1\n"), bytesLong/9)...)}
}

// Many large tickets come at once: they are read one after the other, and small ones are not held up by them.
func TestIntake_LargeTickets_TakeTurns_AndSmallOnesPass(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var reading atomic.Int32
	var most int32
	release := make(chan struct{})
	parse := func(source string, body []byte) (ticket.Order, []ticket.Problem, int) {
		if len(body) > 64<<10 {
			n := reading.Add(1)
			defer reading.Add(-1)
			mu.Lock()
			most = max(most, n)
			mu.Unlock()
			<-release
		}
		return ticket.ParseAny(source, body)
	}
	queue, store := openSpool(t, spool.Config{}), &memory{}
	in := start(t, intake.Config{Spool: queue, Parse: parse, OverflowWait: 50 * time.Millisecond, Timeout: time.Minute}, store, nil)
	var group sync.WaitGroup
	var treated, spooled atomic.Int32
	const tickets = 24
	for range tickets {
		group.Go(func() {
			r, err := in.Accept(large(1<<20 - 1000))
			if assert.NoError(t, err) && r.Status == ticket.Spooled {
				spooled.Add(1)
			} else {
				treated.Add(1)
			}
		})
	}
	require.Eventually(t, func() bool { return spooled.Load() == tickets-1 }, time.Minute, time.Millisecond,
		"a ticket that has no turn in time is kept unread")
	for range 100 {
		r, err := in.Accept(delivery(sample))
		require.NoError(t, err)
		require.Equal(t, ticket.Treated, r.Status)
	}
	close(release)
	group.Wait()
	mu.Lock() // the drain may still read
	defer mu.Unlock()
	require.LessOrEqual(t, most, int32(2), "one of a delivery and one of the drain: more might become more than may wait")
	require.Equal(t, int32(1), treated.Load())
}

// Large tickets never take all of what may wait.
func TestIntake_LargeTicketsThatWait_LeaveRoomForSmallOnes(t *testing.T) {
	t.Parallel()
	saving, commit := make(chan struct{}, 100), make(chan struct{})
	in := start(t, intake.Config{BatchesInFlight: 1, WaitingBytes: 8 << 20}, &scriptedStore{save: func(context.Context, intake.Batch) error {
		saving <- struct{}{}
		<-commit
		return nil
	}}, nil)
	var group sync.WaitGroup
	accept := func(d intake.Delivery, want error) {
		group.Go(func() {
			_, err := in.Accept(d)
			assert.ErrorIs(t, err, want)
		})
	}
	accept(delivery(sample), nil)
	<-saving
	accept(large(90_000), nil) // becomes 1.9 MiB, and so does the next
	awaitWaiting(t, in, 1)
	accept(large(90_000), nil)
	awaitWaiting(t, in, 2)
	for range 3 {
		_, err := in.Accept(large(90_000))
		require.ErrorIs(t, err, intake.ErrOverloaded)
	}
	for range 100 {
		accept(delivery(sample), nil)
	}
	awaitWaiting(t, in, 102)
	close(commit)
	group.Wait()
}

// slowSpool is a disk that takes its time.
type slowSpool struct{ *spool.Spool }

func (s slowSpool) Put(entries []*intake.Entry) (intake.Saved, error) {
	time.Sleep(500 * time.Millisecond)
	return s.Spool.Put(entries)
}

// However many tickets of more than 8 KiB come at once, and however slow Postgres and the disk are, they leave room for
// smaller ones, whether they were read or not.
func TestIntake_TicketsOfMiddleSize_LeaveRoomForSmallOnes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, requireRoomForSmallOnes)
}

func requireRoomForSmallOnes(t *testing.T) {
	store := &scriptedStore{save: func(context.Context, intake.Batch) error {
		time.Sleep(time.Second)
		return nil
	}}
	in := start(t, intake.Config{Spool: slowSpool{openSpool(t, spool.Config{})}, WaitingBytes: 8 << 20}, store, nil)
	var group sync.WaitGroup
	for i := range 400 {
		group.Go(func() {
			_, _ = in.Accept(large([]int{9_000, 20_000, 60_000}[i%3])) // some are refused, or their time is up
		})
	}
	for range 60 {
		time.Sleep(50 * time.Millisecond)
		group.Go(func() {
			_, err := in.Accept(delivery(sample))
			assert.NoError(t, err)
		})
	}
	group.Wait()
}

// The parser should never panic. If it does, only the sender of that ticket is affected.
func TestIntake_ParserThatPanics_KeepsNoTurn(t *testing.T) {
	t.Parallel()
	in := start(t, intake.Config{
		WaitingBytes: 1, // one at a time is read
		Timeout:      2 * time.Second,
		Parse: func(source string, body []byte) (ticket.Order, []ticket.Problem, int) {
			if string(body) == "fault" {
				panic("a fault of the parser")
			}
			return ticket.ParseAny(source, body)
		},
	}, &memory{}, nil)
	assert.Panics(t, func() { _, _ = in.Accept(delivery("fault")) })
	_, err := in.Accept(delivery(sample))
	require.NoError(t, err)
}
