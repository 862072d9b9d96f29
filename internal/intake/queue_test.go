package intake

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/ticket"
)

func openQueue(t *testing.T) (q *queue, add func(tickets int)) {
	t.Helper()
	var config Config
	config.setDefaults()
	q = newQueue(config)
	t.Cleanup(func() { q.close() })
	return q, func(tickets int) {
		for range tickets {
			e := &Entry{Ticket: ticket.Ticket{Body: []byte("x")}}
			_, _, err := q.add(e, e.Ticket.Cost())
			require.NoError(t, err)
		}
	}
}

func TestQueue_ABatchWaitsForNothing_WhileNoOtherIsUnderWay(t *testing.T) {
	t.Parallel()
	q, add := openQueue(t)
	for range 3 {
		add(1)
		q.mu.Lock()
		due := q.due()
		q.mu.Unlock()
		require.True(t, due)
		require.Len(t, q.next().entries, 1)
		q.done()
	}
}

// The store was away for some time, and is back now.
func TestQueue_ABatchWhoseTimeIsHalfUp_GetsNoMoreEntries(t *testing.T) {
	t.Parallel()
	q, add := openQueue(t)
	q.storeAway()
	add(2)
	q.mu.Lock()
	q.forStore[0].since = q.forStore[0].since.Add(-q.timeout / 2)
	q.mu.Unlock()
	q.storeBack()
	add(1)
	require.Len(t, q.next().entries, 2)
	require.Len(t, q.next().entries, 1)
}

func TestQueue_ASmallBatchWaitsForCompany_AndNotForTheEndOfALargerOne(t *testing.T) {
	t.Parallel()
	q, add := openQueue(t)
	add(3)
	require.Len(t, q.next().entries, 3) // under way until the end of the test
	newest := 3
	for _, tickets := range []int{1, 2, 5, companyTickets} {
		taken := make(chan *batch, 1)
		go func() { taken <- q.next() }()
		add(1)
		for range tickets - 1 {
			add(1)
		}
		select {
		case b := <-taken:
			assert.True(t, len(b.entries) >= max(newest, companyTickets) || time.Since(b.since) >= company,
				"%d tickets went beside %d, and had not waited", len(b.entries), newest)
			newest = len(b.entries)
			for n := len(b.entries); n < tickets; { // they came so slowly that the first went without the others
				q.done()
				newest = len(q.next().entries)
				n += newest
			}
		case <-time.After(time.Minute):
			require.Fail(t, "a batch waits for ever")
		}
		q.done()
	}
}

// While both lanes are busy no lane waits for the timer, so a lane that becomes free must not wait for ever.
func TestQueue_ABatchThatCameWhileAllLanesWereBusy_IsTaken(t *testing.T) {
	t.Parallel()
	q, add := openQueue(t)
	add(2)
	require.Len(t, q.next().entries, 2)
	add(1)
	time.Sleep(2 * company) // its timer has fired, and there was no lane
	taken := make(chan *batch, 1)
	go func() { taken <- q.next() }()
	select {
	case b := <-taken:
		require.Len(t, b.entries, 1)
	case <-time.After(time.Minute):
		require.Fail(t, "a batch waits for ever")
	}
}
