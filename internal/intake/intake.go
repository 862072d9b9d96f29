// Package intake accepts deliveries: it gives each ticket its identity, reads it, and answers only when a store has
// committed it. Tickets that arrive while a commit is under way share the next one (group commit).
package intake

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/google/uuid"

	"myticket/internal/ticket"
)

// Delivery is what a sender handed over. Intake keeps Body and the strings: the caller must not reuse their memory.
type Delivery struct {
	Source         string // valid: [a-z0-9-]{1,63}
	Body           []byte // at least one byte
	ContentType    string // valid UTF-8 without NUL
	Traceparent    string // valid UTF-8 without NUL
	IdempotencyKey string // valid UTF-8 without NUL, at most 255 bytes; empty when the sender gave none
}

// Receipt is the answer to a delivery that is durably stored.
type Receipt struct {
	ID        uuid.UUID
	Status    ticket.Status
	Problems  []ticket.Problem // with Status ticket.Error
	Duplicate bool             // the ticket was stored by an earlier delivery with the same key
	StoredBy  string           // traceparent of what stored the ticket; empty where that is not traced
}

// Entry is a ticket on its way into a store.
type Entry struct {
	Ticket ticket.Ticket

	Key          string // idempotency key; empty for none
	KeyExpiresAt time.Time
	BodySHA256   [sha256.Size]byte // set when Key is

	// ClaimFor is for a ticket that is stored unread, with status ticket.ToTreat: the process that stores it treats it
	// itself, and others may claim it so long after the store's own time of storing it. 0 leaves it to whoever comes first.
	ClaimFor time.Duration

	Drained  bool   // it comes from the spool; nobody waits for it
	StoredBy string // set by a store or spool that is traced: the traceparent of what stored it

	// Original is set by the store when the key was used before for the same body: what became of the ticket that was
	// stored then. Nothing more was stored.
	Original *Receipt
	// KeyReused is set by the store when the key was used before for another body. Nothing was stored.
	KeyReused bool

	err error
}

// Store is what intake needs of a durable store. Its errors are those of package ticket.
type Store interface {
	// Save stores all entries in one transaction, or none. A ticket that is already there (same ID) is no error, so a
	// batch whose commit was ambiguous can be saved again.
	Save(ctx context.Context, entries []*Entry) error
	// Ping reports whether Save has a chance, whatever the tickets are: whether the store answers, takes what a batch
	// writes, and commits it. A store that answers and takes nothing (a locked table, a missing standby) fails it.
	Ping(ctx context.Context) error
}

// Spool is what intake needs of a durable queue on this machine's disk: it takes tickets while the store is away or
// behind. Any goroutine may call Put and Find, and Find never waits for the disk; one at a time Peek, Remove and Refuse.
type Spool interface {
	// Put stores all entries durably, or none. An entry whose idempotency key is spooled already gets Original or
	// KeyReused instead. ErrSpoolFull when it holds as much as it may; any other error means that its disk fails.
	Put(entries []*Entry) error
	// Find returns the ticket that was spooled for an idempotency key.
	Find(source, key string) (id uuid.UUID, bodySHA256 [sha256.Size]byte, ok bool)
	// Peek returns the oldest tickets but for those to skip, unread: at most so many, of at most so many bytes, but at least
	// one if there is any. They stay until Remove.
	Peek(tickets int, bytes int64, skip func(uuid.UUID) bool) ([]*Entry, error)
	// Remove removes entries that Peek returned last.
	Remove(entries []*Entry) error
	// Refuse keeps a copy of a ticket for a person, because the store takes it in no form. It stays until Remove.
	Refuse(e *Entry) error
}

// Treater treats one ticket that is stored unread and claimed by this process, and updates its Status and Problems.
type Treater interface {
	Treat(ctx context.Context, t *ticket.Ticket, attempt int) error
}

// Errors of Accept. In each case nothing is known to be stored, and the sender should send again; a delivery that was
// answered with ErrUnavailable may have been stored after all.
var (
	ErrOverloaded  = errors.New("too many tickets are waiting to be read or stored")
	ErrUnavailable = errors.New("the database cannot be reached or does not answer")
	ErrSpoolFull   = errors.New("the spool is full")
	ErrDraining    = errors.New("the server is shutting down")
	// ErrKeyReused means that the idempotency key was used before for another body. Sending again does not help.
	ErrKeyReused = errors.New("the idempotency key was used for another body")
)

// Config bounds an Intake. The zero value of a field means its default.
type Config struct {
	BatchTickets    int           // tickets in one transaction at most. Defaults to 256.
	BatchBytes      int           // sum of Ticket.Cost in one transaction at most; one ticket always fits. Defaults to 4 MiB.
	BatchesInFlight int           // transactions under way at once. Defaults to 2.
	WaitingTickets  int           // tickets waiting for a transaction at most, beyond that ErrOverloaded. Defaults to 10,000.
	WaitingBytes    int           // sum of Ticket.Cost of those at most; of what is being read as much again. Defaults to 64 MiB.
	Timeout         time.Duration // from a delivery to its answer. Defaults to 4 s: common senders give up at 5 s.
	Spool           Spool         // Defaults to none: what the store does not take is refused.
	OverflowWait    time.Duration // how long a ticket waits for a transaction before it is spooled. Defaults to 1 s.
	StoreTimeout    time.Duration // after which a transaction is given up and its tickets spooled. Defaults to 2 s.
	DrainTickets    int           // tickets of the spool in one transaction at most. Defaults to 1,024.
	DrainTimeout    time.Duration // after which a transaction of the largest size is given up. Defaults to 10 s.
	DrainTries      int           // after which a ticket of the spool that alone cannot be stored is set aside. Defaults to 5.
	DrainRetry      time.Duration // how long it is stepped over after the first; it doubles with each. Defaults to 5 s.
	KeyTTL          time.Duration // how long an idempotency key is remembered. Defaults to 7 days.
	Lease           time.Duration // how long a ticket that was stored unread stays claimed. Defaults to 1 min.

	Logger  *slog.Logger                                  // Defaults to slog.Default.
	Metrics *Metrics                                      // Defaults to metrics that nobody sees.
	NewID   func() (uuid.UUID, time.Time, error)          // Defaults to ticket.NewID.
	Parse   func([]byte) (ticket.Order, []ticket.Problem) // Defaults to ticket.Parse.
}

// Intake accepts deliveries. Make it with New, and stop it with Close.
type Intake struct {
	config  Config
	store   Store
	treater Treater
	reading readers
	queue   *queue
	lanes   sync.WaitGroup
	drainer *drainer // nil without a spool

	inFlight   atomic.Int64
	gone       chan struct{} // gets a value when the store is away
	stopping   chan struct{} // closed when no more deliveries are accepted
	flushed    chan struct{} // closed when the lanes have ended
	background sync.WaitGroup
}

// New starts an Intake, which commits config.BatchesInFlight batches at once.
func New(config Config, store Store, treater Treater) *Intake {
	config.setDefaults()
	in := &Intake{
		config: config, store: store, treater: treater, reading: newReaders(config.WaitingBytes), queue: newQueue(config),
		gone: make(chan struct{}, 1), stopping: make(chan struct{}), flushed: make(chan struct{}),
	}
	for range config.BatchesInFlight {
		in.lanes.Go(in.commitBatches)
	}
	in.background.Go(in.watchStore)
	if config.Spool != nil {
		in.drainer = newDrainer(in)
		in.background.Go(in.spoolOverflow)
		in.background.Go(in.drain)
	}
	return in
}

func (c *Config) setDefaults() {
	setDefault(&c.BatchTickets, 256)
	setDefault(&c.BatchBytes, 4<<20)
	setDefault(&c.BatchesInFlight, 2)
	setDefault(&c.WaitingTickets, 10_000)
	setDefault(&c.WaitingBytes, 64<<20)
	setDefault(&c.Timeout, 4*time.Second)
	setDefault(&c.OverflowWait, time.Second)
	setDefault(&c.StoreTimeout, 2*time.Second)
	setDefault(&c.DrainTickets, 1024)
	setDefault(&c.DrainTimeout, 10*time.Second)
	setDefault(&c.DrainTries, 5)
	setDefault(&c.DrainRetry, 5*time.Second)
	setDefault(&c.KeyTTL, 7*24*time.Hour)
	setDefault(&c.Lease, time.Minute)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics(nil)
	}
	if c.NewID == nil {
		c.NewID = ticket.NewID
	}
	if c.Parse == nil {
		c.Parse = ticket.Parse
	}
}

func setDefault[T int | time.Duration](field *T, value T) {
	if *field == 0 {
		*field = value
	}
}

// Accept stores one delivery and returns when it is committed, or when it is certain that it will not be answered
// otherwise within Config.Timeout. A sender that goes away cancels nothing, so there is no context to pass.
func (in *Intake) Accept(d Delivery) (Receipt, error) {
	if in.config.Spool == nil && !in.Available() {
		return Receipt{}, ErrUnavailable
	}
	in.inFlight.Add(1)
	defer in.inFlight.Add(-1)
	id, receivedAt, err := in.config.NewID()
	if err != nil {
		return Receipt{}, fmt.Errorf("make an id: %w", err)
	}
	e := &Entry{Ticket: ticket.Ticket{
		ID: id, ReceivedAt: receivedAt, Source: d.Source, Body: d.Body, ContentType: d.ContentType, Traceparent: d.Traceparent,
	}}
	if d.IdempotencyKey != "" {
		e.Key = d.IdempotencyKey
		e.KeyExpiresAt = receivedAt.Add(in.config.KeyTTL)
		e.BodySHA256 = sha256.Sum256(d.Body)
		if r, known, err := in.spooled(e); known {
			return r, err
		}
	}
	waiting, err := in.enqueue(e)
	if err != nil {
		return Receipt{}, err
	}
	if answerBeforeCommit {
		waiting.turn.end()
		return Receipt{ID: e.Ticket.ID, Status: ticket.Treated}, nil
	}
	inTime := waiting.await()
	waiting.turn.end()
	switch {
	case !inTime: // whatever holds it up; the entry is not ours to look at
		return Receipt{}, ErrUnavailable
	case e.err != nil:
		return Receipt{}, e.err
	case e.KeyReused:
		return Receipt{}, ErrKeyReused
	}
	if e.Original != nil {
		in.config.Metrics.duplicates.Inc()
		return *e.Original, nil
	}
	in.config.Metrics.answered(&e.Ticket)
	return Receipt{ID: e.Ticket.ID, Status: e.Ticket.Status, Problems: e.Ticket.Problems, StoredBy: e.StoredBy}, nil
}

// read sets what the body says, and the status that follows from it.
func (in *Intake) read(t *ticket.Ticket) {
	t.Order, t.Problems = in.config.Parse(t.Body)
	t.Status = ticket.Treated
	if len(t.Problems) > 0 {
		t.Status = ticket.Error
	}
}

// queued is an entry that waits.
type queued struct {
	batch *batch
	late  <-chan time.Time // for an entry that waited for a turn: its time is up when this says so
	turn  turn             // to be ended when its sender is answered
}

// await returns when the entry's batch is done, or else with false when its time is up.
func (q *queued) await() bool {
	if q.late == nil { // as nearly all; each case of a select costs
		select {
		case <-q.batch.done:
			return true
		case <-q.batch.expired:
			return false
		}
	}
	select {
	case <-q.batch.done:
		return true
	case <-q.batch.expired:
	case <-q.late:
	}
	return false
}

// enqueue reads a ticket and has it wait for a transaction, or for the spool where it cannot be read: while the store is
// away nobody needs to know what it says, and when too much is being read, or what it becomes is too much, the spool still
// keeps it by its body alone.
func (in *Intake) enqueue(e *Entry) (queued, error) {
	spools := in.config.Spool != nil
	if spools && !in.Available() {
		return in.enqueueUnread(e, overflowAway, time.Now())
	}
	start, patience := time.Now(), in.config.Timeout/2
	if spools {
		patience = min(patience, in.config.OverflowWait/2)
	}
	var q queued
	err := ErrOverloaded
	t, waited, ok := in.reading.take(len(e.Ticket.Body), patience)
	if ok {
		q.batch, err = in.readAndAdd(e, t)
	}
	if errors.Is(err, ErrOverloaded) && spools {
		e.Ticket.Order, e.Ticket.Problems, e.Ticket.Status = ticket.Order{}, nil, ""
		return in.enqueueUnread(e, overflowFull, start)
	}
	if waited {
		q.late = time.After(time.Until(start.Add(in.config.Timeout)))
	}
	return q, err
}

// readAndAdd ends its turn in any case: a fault of the parser that costs one ticket must not cost the others their turns.
func (in *Intake) readAndAdd(e *Entry, t turn) (*batch, error) {
	defer t.end()
	in.read(&e.Ticket)
	return in.queue.add(e)
}

// enqueueUnread has a ticket that came at start wait for the spool. A large one may wait for its turn for most of its time.
func (in *Intake) enqueueUnread(e *Entry, reason string, start time.Time) (q queued, err error) {
	t, _, ok := in.reading.takeUnread(&e.Ticket, time.Until(start.Add(in.config.Timeout*3/4)))
	if !ok {
		return queued{}, ErrOverloaded
	}
	if q.batch, err = in.queue.addUnread(e, reason); err != nil {
		t.end()
		return queued{}, err
	}
	if q.turn = t; t.class != nil {
		q.late = time.After(time.Until(start.Add(in.config.Timeout)))
	}
	return q, nil
}

// Available reports whether the store took tickets when it was last asked to.
func (in *Intake) Available() bool { return !in.queue.storeIsAway() }

// Waiting returns how many tickets wait for a transaction.
func (in *Intake) Waiting() int {
	tickets, _ := in.queue.waiting()
	return tickets
}

// Close refuses further deliveries with ErrDraining, and returns when all that were accepted are answered and the spool is
// drained as far as the store takes it; what is left stays on disk. It returns an error when ctx ends before that.
func (in *Intake) Close(ctx context.Context) error {
	if in.queue.close() {
		close(in.stopping)
		go func() { in.lanes.Wait(); close(in.flushed) }()
	}
	done := make(chan struct{})
	go func() {
		<-in.flushed
		in.background.Wait()
		if in.config.Spool != nil {
			in.drainRest(ctx)
		}
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("flush the tickets that wait: %w", ctx.Err())
	}
}

// commitBatches is one lane: it commits a batch after the other, without ever waiting for one to fill.
func (in *Intake) commitBatches() {
	for {
		b := in.queue.next()
		if b == nil {
			return
		}
		if time.Since(b.since) >= in.config.Timeout {
			b.fail(ErrUnavailable) // its senders were told so
			b.close()
			continue
		}
		in.commit(b)
	}
}

// commit stores a batch, sets what became of each entry, and wakes those who wait. It ends at the latest when the oldest
// entry's time is up, so the batches behind it, which are younger, are in time as well. What the store does not take is
// left to the spool's lane: a lane of the store must never wait for a disk.
func (in *Intake) commit(b *batch) {
	if in.config.Spool == nil && !in.Available() {
		b.fail(ErrUnavailable)
		b.close()
		return
	}
	start := time.Now()
	ctx, cancel := context.WithDeadline(context.Background(), in.giveUpAt(b, start))
	defer cancel()
	err := in.store.Save(ctx, b.entries)
	if errors.Is(err, ticket.ErrRefused) {
		in.config.Logger.Warn("the database refuses a batch because of what one of its tickets holds; "+
			"the tickets are stored unread and treated one by one", "tickets", len(b.entries), "error", err)
		err = in.isolate(ctx, b.entries)
	}
	in.config.Metrics.batch(len(b.entries), b.cost, start.Sub(b.since), time.Since(start), b.entries[0].StoredBy, err)
	if err == nil {
		b.close()
		return
	}
	in.storeAway(err)
	if in.config.Spool != nil {
		in.queue.giveBack(b, overflowFailed)
		return
	}
	b.fail(ErrUnavailable)
	b.close()
}

// giveUpAt is when a transaction that begins now is given up: with a spool, while there is time left to write that.
func (in *Intake) giveUpAt(b *batch, now time.Time) time.Time {
	end := b.since.Add(in.config.Timeout)
	if in.config.Spool == nil {
		return end
	}
	end = b.since.Add(in.config.Timeout * 3 / 4)
	if early := now.Add(in.config.StoreTimeout); early.Before(end) {
		return early
	}
	return end
}

// isolate finds the ticket that makes the store refuse its batch, at the cost of nobody else: all are stored unread
// first, then each is treated by itself.
func (in *Intake) isolate(ctx context.Context, entries []*Entry) error {
	if err := in.saveUnread(ctx, entries, in.config.Lease); err != nil {
		return err
	}
	for _, e := range entries {
		if e.Original != nil || e.KeyReused || e.err != nil {
			continue
		}
		// Stored is stored: a ticket whose treatment fails now keeps the status TO_TREAT and is treated later.
		if err := in.treater.Treat(ctx, &e.Ticket, 1); err != nil {
			in.config.Logger.With(e.Ticket.LogAttr()).
				Warn("a stored ticket could not be treated at once; it will be treated later", "error", err)
		}
	}
	return nil
}

// saveUnread stores entries raw, to be treated by others after so long. Where the store refuses even that, each is stored
// in a transaction of its own, and the culprit's err is set.
func (in *Intake) saveUnread(ctx context.Context, entries []*Entry, claimFor time.Duration) error {
	for _, e := range entries {
		e.ClaimFor = claimFor
		e.Ticket.Status, e.Ticket.Problems, e.Ticket.Order = ticket.ToTreat, nil, ticket.Order{}
	}
	err := in.store.Save(ctx, entries)
	if !errors.Is(err, ticket.ErrRefused) {
		return err
	}
	if len(entries) == 1 {
		e := entries[0]
		in.config.Logger.With(e.Ticket.LogAttr()).
			Error("the database refuses to store a ticket even unread; a sender that waits is told that it is not stored, "+
				"a ticket of the spool is kept there", "bytes", len(e.Ticket.Body), "error", err)
		e.err = fmt.Errorf("%w: %w", ErrUnavailable, err)
		return nil
	}
	for i := range entries {
		if err := in.saveUnread(ctx, entries[i:i+1], claimFor); err != nil {
			return err
		}
	}
	return nil
}

// storeAway sends deliveries to the spool at once from now on, or refuses them where there is none, instead of letting
// each wait for its timeout, until watchStore finds that the store takes tickets again.
func (in *Intake) storeAway(err error) {
	if !in.queue.storeAway() {
		return
	}
	in.gone <- struct{}{} // nobody else can: the store was there
	if in.config.Spool != nil {
		in.config.Logger.Error("the database does not take tickets; they are kept in the spool and answered 202", "error", err)
		return
	}
	in.config.Logger.Error("the database does not take tickets; senders are asked to send again (503)", "error", err)
}

// newBackOff waits a moment at first and a second or two in the end, each server another time: a database that comes back
// must not be greeted by all at once.
func newBackOff() *backoff.ExponentialBackOff {
	b := backoff.NewExponentialBackOff()
	b.InitialInterval, b.MaxInterval = 100*time.Millisecond, 1500*time.Millisecond
	return b
}

// watchStore finds out when a store that is away is back. It does nothing else, and never waits for the disk of the spool.
func (in *Intake) watchStore() {
	for {
		select {
		case <-in.stopping:
			return
		case <-in.gone:
		}
		wait := newBackOff()
		for back := false; !back; {
			select {
			case <-in.stopping:
				return
			case <-time.After(wait.NextBackOff()):
			}
			back = in.probe()
		}
	}
}

// probe asks a store that is away whether it takes tickets again, and has deliveries go to it if so. It depends on none of
// them: one that the store never takes would keep it away for good.
func (in *Intake) probe() bool {
	if in.ping(context.Background()) != nil {
		return false
	}
	since := in.queue.storeBack()
	in.config.Logger.Info("the database takes tickets again", "away", time.Since(since).Round(time.Millisecond).String())
	return true
}

func (in *Intake) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, in.config.StoreTimeout)
	defer cancel()
	return in.store.Ping(ctx)
}
