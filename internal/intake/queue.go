package intake

import (
	"sync"
	"time"
)

// batch is a group of entries that is committed together.
type batch struct {
	entries []*Entry
	bytes   int
	since   time.Time     // when its first entry came
	done    chan struct{} // closed when each entry knows what became of it
}

func (b *batch) fail(err error) {
	for _, e := range b.entries {
		e.err = err
	}
}

// queue is where entries wait, already grouped into batches: the last one is open for more, those before it are full.
// It is bounded in tickets and in bytes.
type queue struct {
	maxBatchTickets, maxBatchBytes int
	maxTickets, maxBytes           int

	mu      sync.Mutex
	changed sync.Cond // signalled when a batch can be taken, broadcast when the queue closes
	batches []*batch
	tickets int
	bytes   int
	closed  bool
}

func newQueue(config Config) *queue {
	q := &queue{
		maxBatchTickets: config.BatchTickets, maxBatchBytes: config.BatchBytes,
		maxTickets: config.WaitingTickets, maxBytes: config.WaitingBytes,
	}
	q.changed.L = &q.mu
	return q
}

// add puts an entry into the open batch and returns that batch. It never waits: a full queue is ErrOverloaded.
func (q *queue) add(e *Entry) (*batch, error) {
	size := len(e.Ticket.Body)
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.closed:
		return nil, ErrDraining
	case q.tickets+1 > q.maxTickets, q.bytes+size > q.maxBytes && q.tickets > 0:
		return nil, ErrOverloaded
	}
	b := q.open(size)
	b.entries = append(b.entries, e)
	b.bytes += size
	q.tickets++
	q.bytes += size
	return b, nil
}

// open returns a batch that has room for size more bytes.
func (q *queue) open(size int) *batch {
	if n := len(q.batches); n > 0 {
		last := q.batches[n-1]
		if len(last.entries) < q.maxBatchTickets && last.bytes+size <= q.maxBatchBytes {
			return last
		}
	}
	b := &batch{since: time.Now(), done: make(chan struct{})}
	q.batches = append(q.batches, b)
	q.changed.Signal()
	return b
}

// next takes the oldest batch, and waits while there is none. It returns nil when the queue is closed and empty.
func (q *queue) next() *batch {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.batches) == 0 {
		if q.closed {
			return nil
		}
		q.changed.Wait()
	}
	b := q.batches[0]
	q.batches[0] = nil
	q.batches = q.batches[1:]
	q.tickets -= len(b.entries)
	q.bytes -= b.bytes
	return b
}

// close refuses further entries; those that wait are still taken. It tells whether it was open before.
func (q *queue) close() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	wasOpen := !q.closed
	q.closed = true
	q.changed.Broadcast()
	return wasOpen
}

// waiting returns how many tickets and body bytes wait for a transaction.
func (q *queue) waiting() (tickets, bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.tickets, q.bytes
}
