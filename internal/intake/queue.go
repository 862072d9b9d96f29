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
	expired chan struct{} // closed when its oldest entry's time is up
	timer   *time.Timer   // that closes expired
}

// close wakes whoever waits for the batch.
func (b *batch) close() {
	b.timer.Stop()
	close(b.done)
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
	timeout                        time.Duration
	pressed                        chan struct{} // gets a value when something may be for the spool

	mu      sync.Mutex
	changed sync.Cond // signalled when a batch can be taken, broadcast when the queue closes or the store is back
	held    bool      // the store is away: what waits is for the spool
	flushed bool      // nobody takes for the store any more
	batches []*batch
	tickets int
	bytes   int
	closed  bool
}

func newQueue(config Config) *queue {
	q := &queue{
		maxBatchTickets: config.BatchTickets, maxBatchBytes: config.BatchBytes,
		maxTickets: config.WaitingTickets, maxBytes: config.WaitingBytes, timeout: config.Timeout,
		pressed: make(chan struct{}, 1),
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
	if q.held || q.crowded() {
		q.press()
	}
	return b, nil
}

// crowded tells that half of what may wait does.
func (q *queue) crowded() bool { return q.tickets*2 > q.maxTickets || q.bytes*2 > q.maxBytes }

func (q *queue) press() {
	select {
	case q.pressed <- struct{}{}:
	default:
	}
}

// hold keeps batches for the spool, or gives them back to the store.
func (q *queue) hold(held bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.held = held
	q.changed.Broadcast()
	q.press()
}

// flush gives all that still waits to the spool.
func (q *queue) flush() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.flushed = true
}

// Why tickets go to the spool: the store is away, a transaction failed or was not answered, they waited too long, or too
// much waits.
const (
	overflowAway   = "away"
	overflowFailed = "failed"
	overflowWait   = "wait"
	overflowFull   = "full"
)

// What is spooled at once, at most: one fsync for all.
const (
	spoolTickets = 4096
	spoolBytes   = 8 << 20
)

// overflow takes the oldest batches that are for the spool, with the reason; none when all may wait.
func (q *queue) overflow(wait time.Duration) (taken []*batch, reason string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	tickets, bytes := 0, 0
	for len(q.batches) > 0 && tickets < spoolTickets && bytes < spoolBytes {
		switch {
		case q.held || q.flushed:
			reason = overflowAway
		case time.Since(q.batches[0].since) > wait:
			reason = overflowWait
		case q.crowded():
			reason = overflowFull
		default:
			return taken, reason
		}
		b := q.take()
		tickets += len(b.entries)
		bytes += b.bytes
		taken = append(taken, b)
	}
	return taken, reason
}

// open returns a batch that has room for size more bytes.
func (q *queue) open(size int) *batch {
	if n := len(q.batches); n > 0 {
		last := q.batches[n-1]
		if len(last.entries) < q.maxBatchTickets && last.bytes+size <= q.maxBatchBytes {
			return last
		}
	}
	b := &batch{since: time.Now(), done: make(chan struct{}), expired: make(chan struct{})}
	b.timer = time.AfterFunc(q.timeout, func() { close(b.expired) })
	q.batches = append(q.batches, b)
	q.changed.Signal()
	return b
}

// next takes the oldest batch for the store, and waits while there is none. It returns nil when the queue is closed and
// has none.
func (q *queue) next() *batch {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.batches) == 0 || q.held {
		if q.closed {
			return nil
		}
		q.changed.Wait()
	}
	return q.take()
}

func (q *queue) take() *batch {
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

// oldestWait returns how long the oldest batch has waited, and 0 when none waits.
func (q *queue) oldestWait() time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.batches) == 0 {
		return 0
	}
	return time.Since(q.batches[0].since)
}
