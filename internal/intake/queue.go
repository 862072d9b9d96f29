package intake

import (
	"slices"
	"sync"
	"time"

	"myticket/internal/ticket"
)

// largeCost is the cost from which a ticket that was read counts as large. Large tickets may take half of the room in the
// queue, so they never keep out all others. A usual ticket of largeBody, with lines of 30 bytes, is not large. One of 64 KiB
// with the shortest lines becomes 1.4 MiB.
const largeCost = 128 << 10

// company is how long a batch that is smaller than the one under way waits for more tickets. With few senders, two lanes would
// take half-full batches from each other otherwise, and each costs a commit. A transaction that takes longer than this holds up
// nothing: the next batch starts beside it.
const company = 5 * time.Millisecond

// A batch of fewer tickets or less cost than these waits for company however small the one under way is: what a transaction costs
// for itself is more than what its tickets do.
const (
	companyTickets = 32
	companyCost    = 128 << 10
)

// queue is where entries wait, grouped into batches. The last batch of a list is open for more entries, and those before it
// are full. The queue is bounded in tickets and in bytes (Ticket.Cost). It also knows whether the store is away, because that
// decides which lane takes a batch.
type queue struct {
	maxBatchTickets, maxBatchCost int
	maxTickets, maxCost           int
	timeout                       time.Duration
	spools                        bool          // there is a spool
	pressed                       chan struct{} // gets a value when there may be a batch for the spool

	mu       sync.Mutex // guards all fields below
	changed  sync.Cond  // signaled for a batch that is due; broadcast when the queue closes, or the store goes or comes back
	away     time.Time  // since when the store takes no tickets; zero while it takes them
	flushed  bool       // the lanes of the store have ended
	closed   bool
	forStore []*batch // also while the store is away: it may be back before the spool takes them
	forSpool []*batch // batches that only the spool can take
	tickets  int
	cost     int
	large    int
	underWay int         // batches that lanes of the store have taken and not finished
	newest   int         // tickets in the last of them
	waited   *time.Timer // signals changed when the first batch has waited for company
}

func newQueue(config Config) *queue {
	q := &queue{
		maxBatchTickets: config.BatchTickets, maxBatchCost: config.BatchBytes,
		maxTickets: config.WaitingTickets, maxCost: config.WaitingBytes, timeout: config.Timeout,
		spools: config.Spool != nil, pressed: make(chan struct{}, 1),
	}
	q.changed.L = &q.mu
	q.waited = time.AfterFunc(company, func() {
		q.mu.Lock() // or else a lane that is about to wait would miss the signal
		defer q.mu.Unlock()
		q.changed.Signal()
	})
	return q
}

// add puts an entry that was read into the open batch for the store, and returns that batch and the entry's place in it. The cost
// is that of Ticket.Cost. It never waits. It returns ErrOverloaded if the queue is full.
func (q *queue) add(e *Entry, cost int) (b *batch, entry int, err error) {
	large := 0
	if cost > largeCost {
		large = cost
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.admit(cost, large); err != nil {
		return nil, 0, err
	}
	b, isNew := q.open(&q.forStore, cost, causeNone)
	entry = q.put(b, e, cost, large)
	switch {
	case q.due():
		q.changed.Signal()
	case isNew:
		q.waited.Reset(company)
	}
	if q.held() || q.crowded() {
		q.press()
	}
	return b, entry, nil
}

// addUnread does the same for an entry that was not read, and for the spool. Large ones have a budget of their own
// (readers.unread).
func (q *queue) addUnread(e *Entry, cost int, why cause) (b *batch, entry int, err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if err := q.admit(cost, 0); err != nil {
		return nil, 0, err
	}
	b, _ = q.open(&q.forSpool, cost, why)
	b.unread = true
	entry = q.put(b, e, cost, 0)
	q.press()
	return b, entry, nil
}

// admit reports why an entry may not wait; nil when it may. The caller must hold q.mu.
func (q *queue) admit(cost, large int) error {
	q.dropExpired()
	switch {
	case q.closed:
		return ErrDraining
	case q.tickets+1 > q.maxTickets, q.cost+cost > q.maxCost && q.tickets > 0,
		large > 0 && q.large+large > q.maxCost/2 && q.large > 0:
		return ErrOverloaded
	}
	return nil
}

// open returns a batch of a list that has room for cost more: the last one, or else a new one. A batch whose time is half up gets
// no more entries: it may have waited since the store went away, and the time of the new one would be up at once. The caller must
// hold q.mu.
func (q *queue) open(list *[]*batch, cost int, why cause) (b *batch, isNew bool) {
	if n := len(*list); n > 0 {
		last := (*list)[n-1]
		if !last.sealed && last.cause == why && len(last.entries) < q.maxBatchTickets && last.cost+cost <= q.maxBatchCost &&
			time.Since(last.since) < q.timeout/2 {
			return last, false
		}
	}
	b = newBatch(q.timeout)
	b.cause = why
	*list = append(*list, b)
	return b, true
}

// put adds an entry to a batch, and returns its place there. The caller must hold q.mu.
func (q *queue) put(b *batch, e *Entry, cost, large int) (entry int) {
	b.entries = append(b.entries, e)
	b.cost += cost
	b.large += large
	q.tickets++
	q.cost += cost
	q.large += large
	return len(b.entries) - 1
}

// giveBack adds a batch that the store did not take to those for the spool. The bounds of the queue do not apply: the batch
// was in the queue before, and batches that have waited too long are dropped.
func (q *queue) giveBack(b *batch, why cause) {
	q.mu.Lock()
	defer q.mu.Unlock()
	b.cause, b.sealed = why, true
	i, _ := slices.BinarySearchFunc(q.forSpool, b, func(a, b *batch) int { return a.since.Compare(b.since) })
	q.forSpool = slices.Insert(q.forSpool, i, b)
	q.tickets += len(b.entries)
	q.cost += b.cost
	q.large += b.large
	q.dropExpired()
	q.press()
}

// dropExpired fails batches for the spool whose senders have stopped waiting. The disk hangs, and new tickets need the memory.
// The caller must hold q.mu.
func (q *queue) dropExpired() {
	for len(q.forSpool) > 0 && time.Since(q.forSpool[0].since) > q.timeout {
		q.take(&q.forSpool).fail(ticket.ErrUnavailable)
	}
}

// held reports whether all waiting batches are for the spool because the store is away. The caller must hold q.mu.
func (q *queue) held() bool { return q.spools && !q.away.IsZero() }

// crowded reports whether the queue is more than half full. The caller must hold q.mu.
func (q *queue) crowded() bool { return q.tickets*2 > q.maxTickets || q.cost*2 > q.maxCost }

func (q *queue) press() {
	select {
	case q.pressed <- struct{}{}:
	default:
	}
}

// storeAway notes that the store takes no tickets, and reports whether that is news. From now on batches are for the spool, if
// there is one.
func (q *queue) storeAway() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.away.IsZero() {
		return false
	}
	q.away = time.Now()
	q.changed.Broadcast()
	q.press()
	return true
}

// storeBack notes that the store takes tickets again, and returns since when it did not. Zero means that it is no news.
func (q *queue) storeBack() (since time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	since, q.away = q.away, time.Time{}
	q.changed.Broadcast()
	q.press()
	return since
}

func (q *queue) storeIsAway() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return !q.away.IsZero()
}

// flush makes all waiting batches ones for the spool.
func (q *queue) flush() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.flushed = true
}

// cause is why a batch goes to the spool.
type cause int

// The causes: the store is away, a transaction failed or was not answered, the batch waited too long, or too much waits.
const (
	causeNone cause = iota // it does not
	causeAway
	causeFailed
	causeWait
	causeFull
)

// storeTakes reports whether the store took tickets when the batch was sent to the spool, so that it may be asked if the
// spool fails.
func (c cause) storeTakes() bool { return c == causeWait || c == causeFull }

// Limits of what one fsync spools. The last batch may exceed them.
const (
	spoolTickets = 4096
	spoolCost    = 8 << 20
)

// overflow takes the oldest batches that are for the spool now, and sets their cause. It returns none if all may wait.
func (q *queue) overflow(wait time.Duration) []*batch {
	q.mu.Lock()
	defer q.mu.Unlock()
	var taken []*batch
	for tickets, cost := 0, 0; tickets < spoolTickets && cost < spoolCost; {
		b := q.overflowing(wait)
		if b == nil {
			break
		}
		tickets += len(b.entries)
		cost += b.cost
		taken = append(taken, b)
	}
	return taken
}

// overflowing takes the next batch that is for the spool now; nil if there is none. The caller must hold q.mu.
func (q *queue) overflowing(wait time.Duration) *batch {
	if len(q.forSpool) > 0 {
		return q.take(&q.forSpool)
	}
	if len(q.forStore) == 0 {
		return nil
	}
	var why cause
	switch {
	case q.held() || q.flushed:
		why = causeAway
	case time.Since(q.forStore[0].since) > wait:
		why = causeWait
	case q.crowded():
		why = causeFull
	default:
		return nil
	}
	b := q.take(&q.forStore)
	b.cause = why
	return b
}

// next takes the oldest batch for the store, and waits until one is due. It returns nil once the queue is closed and empty. The
// caller must call done before it calls next again.
func (q *queue) next() *batch {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.due() || q.held() {
		if q.closed {
			return nil
		}
		if len(q.forStore) > 0 && !q.held() {
			q.waited.Reset(company - time.Since(q.forStore[0].since))
		}
		q.changed.Wait()
	}
	b := q.take(&q.forStore)
	q.underWay++
	q.newest = len(b.entries)
	return b
}

// done notes that a lane of the store has finished its batch.
func (q *queue) done() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.underWay--
}

// due reports whether the store's next batch may start: if none is under way, if it is full, if it is neither small nor smaller
// than the last that started, or if it has waited for company. The caller must hold q.mu.
func (q *queue) due() bool {
	if len(q.forStore) == 0 {
		return false
	}
	b := q.forStore[0]
	large := len(b.entries) >= min(companyTickets, q.maxBatchTickets) || b.cost >= min(companyCost, q.maxBatchCost)
	return q.underWay == 0 || len(q.forStore) > 1 || large && len(b.entries) >= q.newest ||
		q.closed || time.Since(b.since) >= company
}

// take removes the first batch of a list. The caller must hold q.mu.
func (q *queue) take(list *[]*batch) *batch {
	b := (*list)[0]
	(*list)[0] = nil
	*list = (*list)[1:]
	b.sealed = true
	q.tickets -= len(b.entries)
	q.cost -= b.cost
	q.large -= b.large
	return b
}

// close refuses further entries. Those that wait are still taken. It reports whether the queue was open before.
func (q *queue) close() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	wasOpen := !q.closed
	q.closed = true
	q.changed.Broadcast()
	return wasOpen
}

// waiting returns how many tickets wait for a transaction, and their bytes (Ticket.Cost).
func (q *queue) waiting() (tickets, cost int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.tickets, q.cost
}

// oldestWait returns how long the oldest batch has waited for the store; 0 if none waits.
func (q *queue) oldestWait() time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.forStore) == 0 {
		return 0
	}
	return time.Since(q.forStore[0].since)
}
