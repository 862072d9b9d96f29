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
}

// Entry is a ticket on its way into a store.
type Entry struct {
	Ticket ticket.Ticket

	Key          string // idempotency key; empty for none
	KeyExpiresAt time.Time
	BodySHA256   [sha256.Size]byte // set when Key is

	// ClaimedUntil is set on a ticket that is stored unread, with status ticket.ToTreat: the process that stores it
	// treats it itself, and others may claim it after this time.
	ClaimedUntil time.Time

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
	// Ping tells whether Save has a chance.
	Ping(ctx context.Context) error
}

// Treater treats one ticket that is stored unread and claimed by this process, and updates its Status and Problems.
type Treater interface {
	Treat(ctx context.Context, t *ticket.Ticket, attempt int) error
}

// Errors of Accept. In each case nothing is known to be stored, and the sender should send again; a delivery that was
// answered with ErrUnavailable may have been stored after all.
var (
	ErrOverloaded  = errors.New("too many tickets are waiting to be stored")
	ErrUnavailable = errors.New("the database cannot be reached or does not answer")
	ErrDraining    = errors.New("the server is shutting down")
	// ErrKeyReused means that the idempotency key was used before for another body. Sending again does not help.
	ErrKeyReused = errors.New("the idempotency key was used for another body")
)

// Config bounds an Intake. The zero value of a field means its default.
type Config struct {
	BatchTickets    int           // tickets in one transaction at most. Defaults to 256.
	BatchBytes      int           // body bytes in one transaction at most; one ticket always fits. Defaults to 4 MiB.
	BatchesInFlight int           // transactions under way at once. Defaults to 2.
	WaitingTickets  int           // tickets waiting for a transaction at most, beyond that ErrOverloaded. Defaults to 10,000.
	WaitingBytes    int           // body bytes waiting at most. Defaults to 64 MiB.
	Timeout         time.Duration // from a delivery to its answer. Defaults to 4 s: common senders give up at 5 s.
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
	queue   *queue
	lanes   sync.WaitGroup

	away     atomic.Bool // the store did not answer; a probe finds out when it is back
	stopping chan struct{}
}

// New starts an Intake, which commits config.BatchesInFlight batches at once.
func New(config Config, store Store, treater Treater) *Intake {
	setDefault(&config.BatchTickets, 256)
	setDefault(&config.BatchBytes, 4<<20)
	setDefault(&config.BatchesInFlight, 2)
	setDefault(&config.WaitingTickets, 10_000)
	setDefault(&config.WaitingBytes, 64<<20)
	setDefault(&config.Timeout, 4*time.Second)
	setDefault(&config.KeyTTL, 7*24*time.Hour)
	setDefault(&config.Lease, time.Minute)
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	if config.Metrics == nil {
		config.Metrics = NewMetrics(nil)
	}
	if config.NewID == nil {
		config.NewID = ticket.NewID
	}
	if config.Parse == nil {
		config.Parse = ticket.Parse
	}
	in := &Intake{config: config, store: store, treater: treater, queue: newQueue(config), stopping: make(chan struct{})}
	for range config.BatchesInFlight {
		in.lanes.Go(in.commitBatches)
	}
	return in
}

func setDefault[T int | time.Duration](field *T, value T) {
	if *field == 0 {
		*field = value
	}
}

// Accept stores one delivery and returns when it is committed, or when it is certain that it will not be answered
// otherwise within Config.Timeout. A sender that goes away cancels nothing, so there is no context to pass.
func (in *Intake) Accept(d Delivery) (Receipt, error) {
	if in.away.Load() {
		return Receipt{}, ErrUnavailable
	}
	id, receivedAt, err := in.config.NewID()
	if err != nil {
		return Receipt{}, fmt.Errorf("make an id: %w", err)
	}
	e := &Entry{Ticket: ticket.Ticket{
		ID: id, ReceivedAt: receivedAt, Source: d.Source, Body: d.Body, ContentType: d.ContentType, Traceparent: d.Traceparent,
	}}
	in.read(&e.Ticket)
	if d.IdempotencyKey != "" {
		e.Key = d.IdempotencyKey
		e.KeyExpiresAt = receivedAt.Add(in.config.KeyTTL)
		e.BodySHA256 = sha256.Sum256(d.Body)
	}
	b, err := in.queue.add(e)
	if err != nil {
		return Receipt{}, err
	}
	<-b.done
	switch {
	case e.err != nil:
		return Receipt{}, e.err
	case e.KeyReused:
		return Receipt{}, ErrKeyReused
	}
	if e.Original != nil {
		in.config.Metrics.duplicates.Inc()
		return *e.Original, nil
	}
	in.config.Metrics.stored(e.Ticket.Status)
	return Receipt{ID: e.Ticket.ID, Status: e.Ticket.Status, Problems: e.Ticket.Problems}, nil
}

// read sets what the body says, and the status that follows from it.
func (in *Intake) read(t *ticket.Ticket) {
	t.Order, t.Problems = in.config.Parse(t.Body)
	t.Status = ticket.Treated
	if len(t.Problems) > 0 {
		t.Status = ticket.Error
	}
}

// Available tells whether the store answered when it was last asked.
func (in *Intake) Available() bool { return !in.away.Load() }

// Waiting returns how many tickets wait for a transaction.
func (in *Intake) Waiting() int {
	tickets, _ := in.queue.waiting()
	return tickets
}

// Close refuses further deliveries with ErrDraining and returns when all that were accepted are answered, or with an
// error when ctx ends before that.
func (in *Intake) Close(ctx context.Context) error {
	if in.queue.close() {
		close(in.stopping)
	}
	done := make(chan struct{})
	go func() { in.lanes.Wait(); close(done) }()
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
		in.commit(b)
		close(b.done)
	}
}

// commit stores a batch and sets what became of each entry. It ends at the latest when the oldest entry's time is up,
// so the batches behind it, which are younger, are in time as well.
func (in *Intake) commit(b *batch) {
	if in.away.Load() {
		b.fail(ErrUnavailable)
		return
	}
	ctx, cancel := context.WithDeadline(context.Background(), b.since.Add(in.config.Timeout))
	defer cancel()
	start := time.Now()
	err := in.store.Save(ctx, b.entries)
	if errors.Is(err, ticket.ErrRefused) {
		in.config.Logger.Warn("the database refuses a batch because of what one of its tickets holds; "+
			"the tickets are stored unread and treated one by one", "tickets", len(b.entries), "error", err)
		err = in.isolate(ctx, b.entries)
	}
	in.config.Metrics.batch(len(b.entries), b.bytes, start.Sub(b.since), time.Since(start), err)
	if err != nil {
		b.fail(ErrUnavailable)
		in.storeAway(err)
	}
}

// isolate finds the ticket that makes the store refuse its batch, at the cost of nobody else: all are stored unread
// first, then each is treated by itself.
func (in *Intake) isolate(ctx context.Context, entries []*Entry) error {
	if err := in.saveUnread(ctx, entries); err != nil {
		return err
	}
	for _, e := range entries {
		if e.Original != nil || e.KeyReused || e.err != nil {
			continue
		}
		// Stored is stored: a ticket whose treatment fails now keeps the status TO_TREAT and is treated later.
		if err := in.treater.Treat(ctx, &e.Ticket, 1); err != nil {
			in.config.Logger.Warn("a stored ticket could not be treated at once; it will be treated later",
				"ticket", e.Ticket.ID, "source", e.Ticket.Source, "error", err)
		}
	}
	return nil
}

// saveUnread stores entries raw, and where the store refuses even that, each in a transaction of its own.
func (in *Intake) saveUnread(ctx context.Context, entries []*Entry) error {
	for _, e := range entries {
		e.ClaimedUntil = time.Now().Add(in.config.Lease)
		e.Ticket.Status, e.Ticket.Problems, e.Ticket.Order = ticket.ToTreat, nil, ticket.Order{}
	}
	err := in.store.Save(ctx, entries)
	if !errors.Is(err, ticket.ErrRefused) || len(entries) == 1 {
		return err
	}
	for _, e := range entries {
		err := in.store.Save(ctx, []*Entry{e})
		if errors.Is(err, ticket.ErrRefused) {
			in.config.Logger.Error("the database refuses to store a ticket even unread; it is not stored and its sender is told so",
				"source", e.Ticket.Source, "bytes", len(e.Ticket.Body), "error", err)
			e.err = fmt.Errorf("%w: %w", ErrUnavailable, err)
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// storeAway refuses deliveries at once from now on, instead of letting each wait for its timeout, until the store
// answers again.
func (in *Intake) storeAway(err error) {
	if !in.away.CompareAndSwap(false, true) {
		return
	}
	in.config.Metrics.away.Set(1)
	in.config.Logger.Error("the database does not take tickets; senders are asked to send again (503)", "error", err)
	go in.awaitStore()
}

// How often an absent store is asked whether it is back, and how long it may take to say so.
const (
	probeInterval = 200 * time.Millisecond
	probeTimeout  = time.Second
)

func (in *Intake) awaitStore() {
	since := time.Now()
	tick := time.NewTicker(probeInterval)
	defer tick.Stop()
	for {
		select {
		case <-in.stopping:
			return
		case <-tick.C:
		}
		ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
		err := in.store.Ping(ctx)
		cancel()
		if err == nil {
			in.away.Store(false)
			in.config.Metrics.away.Set(0)
			in.config.Logger.Info("the database takes tickets again", "away", time.Since(since).Round(time.Millisecond).String())
			return
		}
	}
}
