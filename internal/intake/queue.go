package intake

import (
	"slices"
	"sync"
	"time"
)

// batch is a group of entries that is committed together.
type batch struct {
	entries []*Entry
	cost    int           // sum of their Ticket.Cost
	large   int           // the part of cost that is of large tickets
	since   time.Time     // when its first entry came
	done    chan struct{} // closed when each entry knows what became of it
	expired chan struct{} // closed when its oldest entry's time is up
	timer   *time.Timer   // that closes expired

	reason string // why it goes to the spool; empty while it is for the store
	sealed bool   // nothing is added to it any more
	unread bool   // its entries were not read: the store cannot take them as they are
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

// largeCost is what makes a ticket that was read a large one: those may take half of what waits, so that they never keep
// out all others. A usual ticket of largeBody, with lines of 30 bytes, is none; one of 64 KiB of the shortest lines becomes
// 2 MiB.
const largeCost = 128 << 10

// queue is where entries wait, already grouped into batches: the last one of a list is open for more, those before it are
// full. It is bounded in tickets and in what they become (Ticket.Cost). It also holds whether the store is away, because
// that decides who takes batches.
type queue struct {
	maxBatchTickets, maxBatchCost int
	maxTickets, maxCost           int
	timeout                       time.Duration
	spools                        bool          // there is a spool
	pressed                       chan struct{} // gets a value when something may be for the spool

	mu       sync.Mutex
	changed  sync.Cond // signalled when a batch can be taken, broadcast when the queue closes or the store comes or goes
	away     time.Time // since when the store takes no tickets; zero while it does
	flushed  bool      // nobody takes for the store any more
	closed   bool
	forStore []*batch // while the store is away, too: it may be back before the spool takes them
	forSpool []*batch // what only the spool can take
	tickets  int
	cost     int
	large    int
}

func newQueue(config Config) *queue {
	q := &queue{
		maxBatchTickets: config.BatchTickets, maxBatchCost: config.BatchBytes,
		maxTickets: config.WaitingTickets, maxCost: config.WaitingBytes, timeout: config.Timeout,
		spools: config.Spool != nil, pressed: make(chan struct{}, 1),
	}
	q.changed.L = &q.mu
	return q
}

// add puts an entry that was read into the open batch for the store, and returns that batch. It never waits: ErrOverloaded
// when the queue is full.
func (q *queue) add(e *Entry) (*batch, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.put(&q.forStore, e, "")
}

// addUnread does the same with an entry that was not read, for the spool.
func (q *queue) addUnread(e *Entry, reason string) (*batch, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.put(&q.forSpool, e, reason)
}

// put adds an entry to the open batch of a list. The caller must hold q.mu.
func (q *queue) put(list *[]*batch, e *Entry, reason string) (*batch, error) {
	q.dropExpired()
	cost, large := e.Ticket.Cost(), 0
	if cost > largeCost && reason == "" { // the others have a budget: readers.unread
		large = cost
	}
	switch {
	case q.closed:
		return nil, ErrDraining
	case q.tickets+1 > q.maxTickets, q.cost+cost > q.maxCost && q.tickets > 0,
		large > 0 && q.large+large > q.maxCost/2 && q.large > 0:
		return nil, ErrOverloaded
	}
	b := q.open(list, cost, reason)
	b.entries = append(b.entries, e)
	b.cost += cost
	b.large += large
	q.tickets++
	q.cost += cost
	q.large += large
	if reason != "" || q.held() || q.crowded() {
		q.press()
	}
	return b, nil
}

// open returns a batch that has room for so much more. The caller must hold q.mu.
func (q *queue) open(list *[]*batch, cost int, reason string) *batch {
	if n := len(*list); n > 0 {
		last := (*list)[n-1]
		if !last.sealed && last.reason == reason && len(last.entries) < q.maxBatchTickets && last.cost+cost <= q.maxBatchCost {
			return last
		}
	}
	b := &batch{since: time.Now(), done: make(chan struct{}), expired: make(chan struct{}), reason: reason, unread: reason != ""}
	b.timer = time.AfterFunc(q.timeout, func() { close(b.expired) })
	*list = append(*list, b)
	if reason == "" {
		q.changed.Signal()
	}
	return b
}

// giveBack hands a batch that the store did not take to the spool's lane. It takes no regard of what may wait: the batch
// did before, and what has waited too long is dropped.
func (q *queue) giveBack(b *batch, reason string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	b.reason, b.sealed = reason, true
	i, _ := slices.BinarySearchFunc(q.forSpool, b, func(a, b *batch) int { return a.since.Compare(b.since) })
	q.forSpool = slices.Insert(q.forSpool, i, b)
	q.tickets += len(b.entries)
	q.cost += b.cost
	q.large += b.large
	q.dropExpired()
	q.press()
}

// dropExpired fails what waits for the spool longer than its senders do: the disk hangs, and its memory is needed for
// those who come now. The caller must hold q.mu.
func (q *queue) dropExpired() {
	for len(q.forSpool) > 0 && time.Since(q.forSpool[0].since) > q.timeout {
		b := q.take(&q.forSpool)
		b.fail(ErrUnavailable)
		b.close()
	}
}

// held reports whether what waits is for the spool because the store is away. The caller must hold q.mu.
func (q *queue) held() bool { return q.spools && !q.away.IsZero() }

// crowded reports whether half of what may wait does. The caller must hold q.mu.
func (q *queue) crowded() bool { return q.tickets*2 > q.maxTickets || q.cost*2 > q.maxCost }

func (q *queue) press() {
	select {
	case q.pressed <- struct{}{}:
	default:
	}
}

// storeAway notes that the store takes no tickets, and reports whether that is news. Batches are for the spool from now
// on, where there is one.
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

// storeBack notes that the store takes tickets again, and returns since when it did not; zero when that is no news.
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

// What is spooled at once, at most, but for one batch: one fsync for all.
const (
	spoolTickets = 4096
	spoolCost    = 8 << 20
)

// overflow takes the oldest batches that are for the spool, and sets why; none when all may wait.
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

// overflowing takes the next batch that is for the spool. The caller must hold q.mu.
func (q *queue) overflowing(wait time.Duration) *batch {
	if len(q.forSpool) > 0 {
		return q.take(&q.forSpool)
	}
	if len(q.forStore) == 0 {
		return nil
	}
	var reason string
	switch {
	case q.held() || q.flushed:
		reason = overflowAway
	case time.Since(q.forStore[0].since) > wait:
		reason = overflowWait
	case q.crowded():
		reason = overflowFull
	default:
		return nil
	}
	b := q.take(&q.forStore)
	b.reason = reason
	return b
}

// next takes the oldest batch for the store, and waits while there is none. It returns nil when the queue is closed and
// has none.
func (q *queue) next() *batch {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.forStore) == 0 || q.held() {
		if q.closed {
			return nil
		}
		q.changed.Wait()
	}
	return q.take(&q.forStore)
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

// close refuses further entries; those that wait are still taken. It reports whether it was open before.
func (q *queue) close() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	wasOpen := !q.closed
	q.closed = true
	q.changed.Broadcast()
	return wasOpen
}

// waiting returns how many tickets wait for a transaction, and the bytes that they become.
func (q *queue) waiting() (tickets, cost int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.tickets, q.cost
}

// oldestWait returns how long the oldest batch has waited for the store, and 0 when none waits.
func (q *queue) oldestWait() time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.forStore) == 0 {
		return 0
	}
	return time.Since(q.forStore[0].since)
}
