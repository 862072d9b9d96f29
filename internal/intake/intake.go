// Package intake accepts deliveries. It gives each ticket an id, reads it, and answers only after a store has committed it.
// Tickets that arrive during a commit share the next one (group commit).
package intake

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"myticket/internal/ticket"
)

// Delivery is what a sender sent. Intake keeps Body and the strings, so the caller must not reuse their memory.
type Delivery struct {
	Source         string // valid: [a-z0-9-]{1,63}
	Body           []byte // at least one byte
	ContentType    string // valid UTF-8 without NUL
	Traceparent    string // valid UTF-8 without NUL
	IdempotencyKey string // valid UTF-8 without NUL, at most 255 bytes; empty when the sender gave none

	// Time is when the ticket was, as its sender says; the zero Time for now. The ticket counts as received at that time, but not
	// in the future, and at most Config.TimeLimit ago.
	Time time.Time
}

// Receipt is the answer to a delivery that is durably stored.
type Receipt struct {
	ID        uuid.UUID
	Status    ticket.Status
	Problems  []ticket.Problem // with Status ticket.Error
	Duplicate bool             // the ticket was stored by an earlier delivery with the same key
	StoredBy  string           // traceparent of the span that stored the ticket; empty if there is none
}

// Errors of Accept, besides ticket.ErrUnavailable. In each case nothing is known to be stored, and the sender should send
// again. A delivery that was answered with ticket.ErrUnavailable may have been stored after all.
var (
	ErrOverloaded = errors.New("too many tickets are waiting to be read or stored")
	ErrSpoolFull  = errors.New("the spool is full")
	ErrDraining   = errors.New("the server is shutting down")
	// ErrKeyReused means that the idempotency key was used before for another body. Sending again does not help.
	ErrKeyReused = errors.New("the idempotency key was used for another body")
)

// Intake accepts deliveries. Make it with New, and stop it with Close.
type Intake struct {
	saver
	treater Treater
	reading readers
	queue   *queue
	drainer *drainer // nil without a spool

	keysLate chan struct{} // closed when deliveries wait no longer for Spool.KeysRead; nil without a spool

	inFlight atomic.Int64
	gone     chan struct{} // gets a value when the store is away
	stopping chan struct{} // closed when no more deliveries are accepted
	flushed  chan struct{} // closed when the lanes have ended
	ended    chan struct{} // closed when run has ended
	hurry    func()        // ends the last drain, which Close waits for
}

// New starts an Intake. It commits up to config.BatchesInFlight batches at once.
func New(config Config, store Store, treater Treater) *Intake {
	config.setDefaults()
	in := &Intake{
		saver: saver{config, store}, treater: treater, reading: newReaders(config.WaitingBytes), queue: newQueue(config),
		gone: make(chan struct{}, 1), stopping: make(chan struct{}), flushed: make(chan struct{}), ended: make(chan struct{}),
	}
	if config.Spool != nil {
		in.drainer = newDrainer(in.saver)
		in.keysLate = make(chan struct{})
	}
	ctx, cancel := context.WithCancel(context.Background())
	in.hurry = cancel
	if config.StartAway != nil {
		in.storeAway(config.StartAway)
	}
	go in.run(ctx) // Close waits for it
	return in
}

// run starts all other goroutines of an Intake, and ends after them. The last drain ends with ctx.
func (in *Intake) run(ctx context.Context) {
	defer close(in.ended)
	var lanes, background sync.WaitGroup
	for range in.config.BatchesInFlight {
		lanes.Go(in.commitBatches)
	}
	background.Go(in.watchStore)
	if in.config.Spool != nil {
		background.Go(in.boundKeys)
		background.Go(in.spoolOverflow)
		background.Go(in.drain)
	}
	lanes.Wait()
	close(in.flushed)
	background.Wait()
	if in.config.Spool != nil {
		in.drainRest(ctx)
	}
}

// Close refuses further deliveries with ErrDraining. It returns after every accepted delivery has its answer and the spool is
// drained as far as the store takes its tickets. The rest stays on disk. It returns an error if ctx ends first.
func (in *Intake) Close(ctx context.Context) error {
	if in.queue.close() {
		close(in.stopping)
	}
	defer in.hurry()
	select {
	case <-in.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("flush the tickets that wait: %w", ctx.Err())
	}
}

// Available reports whether the store took tickets when it was last asked to.
func (in *Intake) Available() bool { return !in.queue.storeIsAway() }

// Busy reports whether tickets are being stored: deliveries wait for their answer, or the spool is drained.
func (in *Intake) Busy() bool {
	return in.inFlight.Load() > 0 || in.drainer != nil && in.drainer.busy.Load()
}

// Accept stores one delivery. It returns when the ticket is durable, or after Config.Timeout. A sender that goes away
// cancels nothing, so there is no context to pass.
func (in *Intake) Accept(d Delivery) (Receipt, error) {
	if in.config.Spool == nil && !in.Available() {
		return Receipt{}, ticket.ErrUnavailable
	}
	in.inFlight.Add(1)
	defer in.inFlight.Add(-1)
	start, waited := time.Now(), false
	id, now, err := in.config.NewID()
	if err != nil {
		return Receipt{}, fmt.Errorf("make an id: %w", err)
	}
	e := &Entry{Ticket: ticket.Ticket{
		ID: id, ReceivedAt: now, Source: d.Source, Body: d.Body, ContentType: d.ContentType, Traceparent: d.Traceparent,
	}}
	if !d.Time.IsZero() && d.Time.Before(now) {
		e.CameAt = now
		oldest := later(now.Add(-in.config.TimeLimit), time.Unix(0, 0)) // an id has no time before 1970
		e.Ticket.ID, e.Ticket.ReceivedAt = ticket.IDAt(id, later(d.Time, oldest))
	}
	if d.IdempotencyKey != "" {
		e.Key = d.IdempotencyKey
		e.KeyExpiresAt = now.Add(in.config.KeyTTL)
		e.BodySHA256 = sha256.Sum256(d.Body)
		waited = in.awaitKeys()
		if r, known, err := in.spooled(e); known {
			return r, err
		}
	}
	waiting, err := in.enqueue(e, start, waited)
	if err != nil {
		return Receipt{}, err
	}
	if answerBeforeCommit {
		waiting.turn.end()
		return Receipt{ID: e.Ticket.ID, Status: ticket.Treated}, nil
	}
	inTime := waiting.await()
	waiting.turn.end()
	if !inTime { // its lane still owns the batch, so we must not read it
		return Receipt{}, ticket.ErrUnavailable
	}
	return in.receipt(e, waiting)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// enqueue reads a ticket that came at start, and adds it to the queue for the store. Waited means that it has waited since.
// Two kinds of tickets go to the spool unread: those that come while the store is away, and those for which there is no
// memory, either to read them or to keep what was read.
func (in *Intake) enqueue(e *Entry, start time.Time, waited bool) (queued, error) {
	spools := in.config.Spool != nil
	if spools && !in.Available() {
		return in.enqueueUnread(e, causeAway, start, waited)
	}
	patience := in.config.Timeout / 2
	if spools {
		patience = min(patience, in.config.OverflowWait/2)
	}
	var q queued
	err := ErrOverloaded
	t, waitedForTurn, ok := in.reading.take(len(e.Ticket.Body), patience)
	waited = waited || waitedForTurn
	if ok {
		q.batch, q.entry, err = in.readAndAdd(e, t)
	}
	if errors.Is(err, ErrOverloaded) && spools {
		e.Ticket.Order, e.Ticket.Problems, e.Ticket.Status, e.Ticket.Dialect = ticket.Order{}, nil, "", 0
		return in.enqueueUnread(e, causeFull, start, waited)
	}
	if waited {
		q.late = in.lateAfter(start)
	}
	return q, err
}

// lateAfter returns what fires when the time of an entry that came at start is up.
func (in *Intake) lateAfter(start time.Time) <-chan time.Time {
	return time.After(time.Until(start.Add(in.config.Timeout)))
}

// readAndAdd reads a ticket and adds it to the queue. It always ends the turn, even if the parser panics: otherwise the other
// tickets would wait for that turn for ever.
func (in *Intake) readAndAdd(e *Entry, t turn) (*batch, int, error) {
	defer t.end()
	cost := in.read(&e.Ticket)
	return in.queue.add(e, cost)
}

// enqueueUnread adds a ticket that came at start to the queue for the spool. A large ticket may wait for its turn for three
// quarters of its time.
func (in *Intake) enqueueUnread(e *Entry, why cause, start time.Time, waited bool) (q queued, err error) {
	cost := e.Ticket.Cost()
	t, _, ok := in.reading.takeUnread(len(e.Ticket.Body), cost, time.Until(start.Add(in.config.Timeout*3/4)))
	if !ok {
		return queued{}, ErrOverloaded
	}
	if q.batch, q.entry, err = in.queue.addUnread(e, cost, why); err != nil {
		t.end()
		return queued{}, err
	}
	if q.turn = t; t.class != nil || waited {
		q.late = in.lateAfter(start)
	}
	return q, nil
}

// receipt returns the answer to an entry whose batch is done.
func (in *Intake) receipt(e *Entry, waiting queued) (Receipt, error) {
	o, err := waiting.batch.outcome(waiting.entry)
	switch {
	case err != nil:
		return Receipt{}, err
	case o.KeyReused:
		return Receipt{}, ErrKeyReused
	case o.Duplicate:
		in.config.Metrics.duplicates.Inc()
		return Receipt{ID: o.ID, Status: o.Status, Problems: o.Problems, Duplicate: true}, nil
	}
	in.config.Metrics.answered(o, len(e.Ticket.Order.Lines))
	return Receipt{ID: o.ID, Status: o.Status, Problems: o.Problems, StoredBy: waiting.batch.result.StoredBy}, nil
}
