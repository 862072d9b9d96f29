package intake

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"

	"myticket/internal/ticket"
)

// drainPoll is how often an empty spool is looked at, and the pause after a ticket that failed.
const drainPoll = 100 * time.Millisecond

// drain brings tickets from the spool into the store for as long as deliveries are accepted and the store is there. It
// uses one transaction at a time, and pauses between two as long as one took while deliveries wait, and nine times as long
// when they wait so long that they are about to be spooled: it takes half of one connection's time at most, and never stops.
func (in *Intake) drain() {
	wait := newBackOff()
	for {
		pause := drainPoll
		if in.Available() {
			start := time.Now()
			step := in.drainer.step(context.Background())
			switch {
			case step.away:
				in.storeAway(step.err)
			case step.disk:
				pause = wait.NextBackOff()
			case step.err != nil: // one of the tickets is at fault, and the others do not wait for it
				pause = max(drainPoll, in.drainPause(time.Since(start)))
			case step.stored > 0:
				wait.Reset()
				pause = in.drainPause(time.Since(start))
			}
		}
		select {
		case <-in.stopping:
			return
		case <-time.After(pause):
		}
	}
}

func (in *Intake) drainPause(took time.Duration) time.Duration {
	switch waited := in.queue.oldestWait(); {
	case waited > in.config.OverflowWait/2:
		return 9 * took
	case waited > 0:
		return took
	}
	return 0
}

// drainRest is the last drain, before a stop. What does not go at once is left to the next server.
func (in *Intake) drainRest(ctx context.Context) {
	for ctx.Err() == nil && in.Available() {
		if step := in.drainer.step(ctx); step.err != nil || step.stored == 0 {
			break
		}
	}
}

// Drained says what became of the tickets of a spool.
type Drained struct {
	Stored  int // they are in the store
	Refused int // the store takes them in no form: they are kept in the spool's folder, and tried again when it is next opened
}

// Drain brings everything in a spool into a store, for an operator. It steps over tickets that the store does not take, and
// sets them aside after Config.DrainTries, so it ends. It returns an error when the store takes nothing, the disk fails, or
// ctx ends; what is left stays in the spool, and Drain may be called again.
func Drain(ctx context.Context, config Config, store Store) (Drained, error) {
	config.setDefaults()
	d := newDrainer(&Intake{config: config, store: store})
	for ctx.Err() == nil {
		var pause time.Duration
		switch step := d.step(ctx); {
		case step.away || step.disk:
			return d.total, step.err
		case step.err != nil:
			pause = drainPoll
		case step.stored > 0:
		case !d.tries():
			return d.total, d.kept
		default:
			pause = d.nextRetry()
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return d.total, ctx.Err()
}

// drainer brings tickets from the spool into the store, oldest first. One goroutine at a time may use it.
//
// No ticket holds up another. A transaction that fails while the store takes others fails because of one of its tickets, so
// the next one is smaller, until that ticket is alone. Then it is stored unread, which asks least of the store. What cannot
// be stored even so is stepped over, tried again later, and in the end set aside for a person.
type drainer struct {
	in    *Intake
	limit int // tickets of the next transaction

	postponed map[uuid.UUID]postponed // what is stepped over, and still in the spool
	retryAt   time.Time               // none of these is tried before that: most of the time is for others
	total     Drained
	kept      error // why a ticket that is to be set aside stays in the spool
}

type postponed struct {
	tries int
	due   time.Time
}

// maxPostponed bounds what is stepped over at once. More tickets wait for their turn.
const maxPostponed = 1000

// retryShare is how many times as long as a retry took nothing is tried again.
const retryShare = 4

func newDrainer(in *Intake) *drainer {
	return &drainer{in: in, limit: in.config.DrainTickets, postponed: map[uuid.UUID]postponed{}}
}

// step is what became of one transaction's worth of tickets.
type step struct {
	stored int
	err    error // why not all were stored; it is logged
	away   bool  // the store takes no tickets at all
	disk   bool  // the disk of the spool failed
}

// step drains one transaction's worth of tickets: some that were never stepped over, or one that was and is due.
func (d *drainer) step(ctx context.Context) step {
	entries, again, err := d.peek()
	if err != nil || len(entries) == 0 {
		return d.noted(step{err: err, disk: err != nil}, 0)
	}
	start := time.Now()
	if again {
		done, err := d.saveUnread(ctx, entries)
		took := time.Since(start)
		if err != nil {
			took += drainPoll // the pause that follows
		}
		d.retryAt = time.Now().Add(retryShare * took)
		return d.noted(d.conclude(ctx, entries, done, err, true), 1)
	}
	done, err := d.save(ctx, entries)
	if err == nil {
		d.limit = min(2*d.limit, d.in.config.DrainTickets)
	}
	return d.noted(d.conclude(ctx, entries, done, err, false), len(entries))
}

// noted counts and logs a step that failed.
func (d *drainer) noted(s step, tickets int) step {
	if s.err != nil {
		d.in.config.Metrics.drainFailed.Inc()
		d.in.config.Logger.Warn("tickets of the spool could not be brought into the database; they stay in it, and it is tried again",
			"tickets", tickets, "error", s.err)
	}
	return s
}

// peek reads the tickets of the next step, as many as become no more than a transaction may hold, but at least one. Again
// means that it is one that was stepped over.
func (d *drainer) peek() (entries []*Entry, again bool, err error) {
	config := &d.in.config
	if id, ok := d.due(time.Now()); ok {
		entries, err = config.Spool.Peek(1, int64(config.BatchBytes), func(other uuid.UUID) bool { return other != id })
		if err != nil || len(entries) > 0 {
			return entries, true, err
		}
		delete(d.postponed, id) // its file was damaged meanwhile
	}
	entries, err = config.Spool.Peek(d.limit, int64(config.BatchBytes), func(id uuid.UUID) bool {
		_, ok := d.postponed[id]
		return ok
	})
	cost := 0
	for i, e := range entries {
		d.in.read(&e.Ticket)
		if cost += e.Ticket.Cost(); cost > config.BatchBytes && i > 0 {
			e.Ticket.Order, e.Ticket.Problems = ticket.Order{}, nil // the spool has it until the next Peek
			entries = entries[:i]
			break
		}
	}
	return entries, false, err
}

// due returns the ticket whose retry has been due longest.
func (d *drainer) due(now time.Time) (id uuid.UUID, ok bool) {
	if now.Before(d.retryAt) {
		return id, false
	}
	first := now
	for candidate, p := range d.postponed {
		if !p.due.After(first) {
			id, first, ok = candidate, p.due, true
		}
	}
	return id, ok
}

// tries reports whether a ticket is to be tried again before it is to be set aside.
func (d *drainer) tries() bool {
	for _, p := range d.postponed {
		if p.tries < d.in.config.DrainTries {
			return true
		}
	}
	return false
}

// nextRetry returns how long there is nothing to do but to wait for the next retry.
func (d *drainer) nextRetry() time.Duration {
	var next time.Time
	for _, p := range d.postponed {
		if next.IsZero() || p.due.Before(next) {
			next = p.due
		}
	}
	return max(time.Until(next), time.Until(d.retryAt))
}

// patience is how long a transaction may take. What is small gets little of the others' time.
func (d *drainer) patience(entries []*Entry) time.Duration {
	config := &d.in.config
	cost := 0
	for _, e := range entries {
		cost += e.Ticket.Cost()
	}
	share := max(float64(len(entries))/float64(config.DrainTickets), float64(cost)/float64(config.BatchBytes))
	least := min(config.StoreTimeout, config.DrainTimeout)
	return least + time.Duration(min(share, 1)*float64(config.DrainTimeout-least))
}

// save stores tickets that were acknowledged: each must end in the store, or stay with us. It returns those that may leave
// the spool.
func (d *drainer) save(ctx context.Context, entries []*Entry) (done []*Entry, err error) {
	saving, cancel := context.WithTimeout(ctx, d.patience(entries))
	defer cancel()
	for _, e := range entries {
		e.Drained = true
	}
	err = d.in.store.Save(saving, entries)
	if errors.Is(err, ticket.ErrRefused) {
		err = d.in.saveUnread(saving, entries, 0) // and whoever treats finds the culprit
	}
	if err != nil {
		return nil, err
	}
	return d.settle(ctx, entries)
}

// saveUnread does the same in the way that asks least of the store.
func (d *drainer) saveUnread(ctx context.Context, entries []*Entry) (done []*Entry, err error) {
	saving, cancel := context.WithTimeout(ctx, d.in.config.DrainTimeout)
	defer cancel()
	for _, e := range entries {
		e.Drained = true
	}
	if err := d.in.saveUnread(saving, entries, 0); err != nil {
		return nil, err
	}
	return d.settle(ctx, entries)
}

// settle sees to the tickets that a transaction left out. It returns all that are in the store or set aside now.
func (d *drainer) settle(ctx context.Context, entries []*Entry) (done []*Entry, err error) {
	for _, e := range entries {
		if e.KeyReused {
			// Another server has taken another ticket for the same key meanwhile. Its sender is at fault, but both have
			// been acknowledged.
			d.in.config.Logger.With(e.Ticket.LogAttr()).
				Warn("a spooled ticket's idempotency key was used for another body meanwhile; it is stored without the key")
			e.Key, e.KeyReused = "", false
			saving, cancel := context.WithTimeout(ctx, d.in.config.DrainTimeout)
			saveErr := d.in.saveUnread(saving, []*Entry{e}, 0)
			cancel()
			if saveErr != nil {
				return done, saveErr
			}
		}
		if e.err != nil {
			if err := d.in.config.Spool.Refuse(e); err != nil {
				return done, err
			}
		}
		done = append(done, e)
	}
	return done, nil
}

// conclude has what is done leave the spool, and finds out why the rest, if any, is not.
func (d *drainer) conclude(ctx context.Context, entries, done []*Entry, cause error, unread bool) step {
	stored, err := d.leave(done)
	s := step{stored: stored, err: cause}
	switch {
	case err != nil:
		return step{stored: stored, err: err, disk: true}
	case cause == nil || ctx.Err() != nil:
		return s
	case d.in.ping(ctx) != nil:
		s.away = true
		return s
	}
	// The store takes tickets, so one of these is at fault.
	rest := entries[len(done):]
	if len(rest) > 1 {
		d.limit = max(len(rest)/4, 1)
		return s
	}
	if !unread {
		d.in.config.Metrics.drainFailed.Inc()
		d.in.config.Logger.With(rest[0].Ticket.LogAttr()).
			Warn("the database does not take a ticket of the spool, though it takes others; it is stored unread, and treated later",
				"bytes", len(rest[0].Ticket.Body), "error", cause)
		done, cause := d.saveUnread(ctx, rest)
		again := d.conclude(ctx, rest, done, cause, true)
		again.stored += stored
		return again
	}
	if err := d.postpone(rest[0], cause); err != nil {
		d.kept = err
		s.err = errors.Join(cause, err)
	}
	return s
}

// leave removes tickets from the spool that are in the store or set aside, and returns how many are in the store.
func (d *drainer) leave(done []*Entry) (stored int, err error) {
	for _, e := range done {
		delete(d.postponed, e.Ticket.ID)
		if e.err != nil {
			d.total.Refused++
			d.in.config.Metrics.refused.Inc()
			continue
		}
		stored++
		d.in.config.Metrics.read(&e.Ticket)
	}
	d.total.Stored += stored
	d.in.config.Metrics.drained.Add(float64(stored))
	return stored, d.in.config.Spool.Remove(done)
}

// postpone has a ticket stepped over, or sets it aside when it was tried often enough.
func (d *drainer) postpone(e *Entry, cause error) error {
	config := &d.in.config
	log := config.Logger.With(e.Ticket.LogAttr())
	p, again := d.postponed[e.Ticket.ID]
	if !again && len(d.postponed) >= maxPostponed {
		return nil
	}
	p.tries++
	p.due = time.Now().Add(config.DrainRetry << min(p.tries-1, 10)) // one that cannot be set aside may wait for long
	d.postponed[e.Ticket.ID] = p
	if p.tries < config.DrainTries {
		config.Metrics.steppedOver.Inc()
		log.Warn("the database does not take a ticket of the spool, though it takes others; it is stepped over and tried again",
			"try", p.tries, "tries", config.DrainTries, "bytes", len(e.Ticket.Body), "error", cause)
		return nil
	}
	log.Error("the database took a ticket of the spool in no try, though it takes others; it is set aside in a .refused file, "+
		"and tried again at the next start: find out what keeps it (docs/durability.md)",
		"tries", p.tries, "bytes", len(e.Ticket.Body), "error", cause)
	if err := config.Spool.Refuse(e); err != nil {
		return err
	}
	e.err = cause
	_, err := d.leave([]*Entry{e})
	return err
}
