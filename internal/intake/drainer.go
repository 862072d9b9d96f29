package intake

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"myticket/internal/ticket"
)

// drainer brings tickets from the spool into the store, oldest first. Only one goroutine at a time may use it.
//
// No ticket holds up another. If a transaction fails while the store takes others, one of its tickets is at fault. So the next
// transaction is smaller, until that ticket is alone. Then it is stored unread, which demands least of the store. If that fails
// too, the ticket is stepped over, tried again later, and in the end set aside for a person.
type drainer struct {
	saver
	limit int       // tickets of the next transaction
	fit   int       // how many the last one could hold, for what they became
	ahead []Spooled // read while the last transaction was under way; none of them is postponed

	postponed map[uuid.UUID]postponed // tickets that are stepped over, and still in the spool
	retryAt   time.Time               // no such ticket is tried before that: most of the time is for others
	total     Drained
	kept      error       // why a ticket that should be set aside is still in the spool
	busy      atomic.Bool // the last step had tickets
}

type postponed struct {
	tries int
	due   time.Time
}

// drainTickets is the most tickets of the spool in one transaction.
const drainTickets = 1024

// leastPeek is how many tickets are taken from the spool at least, if they fit.
const leastPeek = 64

// maxPostponed is how many tickets may be stepped over at once. More tickets wait for their turn.
const maxPostponed = 1000

// retryShare is how many times the duration of a retry must pass before the next retry.
const retryShare = 4

func newDrainer(s saver) *drainer {
	return &drainer{saver: s, limit: drainTickets, fit: drainTickets, postponed: map[uuid.UUID]postponed{}}
}

// step is the result of draining one transaction's worth of tickets.
type step struct {
	done int   // tickets that left the spool: they are in the store, or set aside
	err  error // why not all did; it is logged
	away bool  // the store takes no tickets at all
	disk bool  // the spool's disk failed
}

// step drains one transaction's worth of tickets: tickets that were never stepped over, or one that was and is due again.
func (d *drainer) step(ctx context.Context) step {
	tickets, again, err := d.peek()
	d.busy.Store(len(tickets) > 0)
	if err != nil || len(tickets) == 0 {
		return d.noted(step{err: err, disk: err != nil}, 0)
	}
	start := time.Now()
	if again {
		done, err := d.storeUnread(ctx, tickets)
		took := time.Since(start)
		if err != nil {
			took += drainPoll // the pause that follows
		}
		d.retryAt = time.Now().Add(retryShare * took)
		return d.noted(d.conclude(ctx, tickets, done, err, true), 1)
	}
	done, err := d.storeRead(ctx, tickets)
	if err == nil {
		d.limit = min(2*d.limit, drainTickets)
	}
	s := d.conclude(ctx, tickets, done, err, false)
	if s.err != nil {
		d.ahead = nil // what is left of these comes before it
	}
	return d.noted(s, len(tickets))
}

// noted counts and logs a step that failed.
func (d *drainer) noted(s step, tickets int) step {
	if s.err != nil {
		d.config.Metrics.drainFailed.Inc()
		d.config.Logger.Warn("tickets of the spool could not be stored in the database; they stay in the spool and are tried again",
			"tickets", tickets, "error", s.err)
	}
	return s
}

// peek returns the tickets of the next step. Again means that it is a single ticket that was stepped over before.
func (d *drainer) peek() (tickets []Spooled, again bool, err error) {
	if id, ok := d.due(time.Now()); ok {
		tickets, err = d.config.Spool.Peek(1, int64(d.config.BatchBytes), func(other uuid.UUID) bool { return other != id })
		if err != nil || len(tickets) > 0 {
			return tickets, true, err
		}
		delete(d.postponed, id) // its file was damaged meanwhile
	}
	if len(d.ahead) > 0 {
		tickets, d.ahead = d.ahead, nil
		return tickets, false, nil
	}
	tickets, err = d.readNext(nil)
	return tickets, false, err
}

// readNext reads the tickets that come after some others in the spool: as many as fit into one transaction, at least one. If
// there are others, they are in memory, too, so what may be large is not read yet: there may be none.
func (d *drainer) readNext(others []Spooled) ([]Spooled, error) {
	passed := make(map[uuid.UUID]struct{}, len(others))
	for i := range others {
		passed[others[i].Ticket.ID] = struct{}{}
	}
	// What does not fit is decoded for nothing, so not many more are taken than fitted the last time.
	n, most := min(d.limit, max(d.fit+d.fit/8, leastPeek)), d.config.BatchBytes
	tickets, err := d.config.Spool.Peek(n, int64(most), func(id uuid.UUID) bool {
		_, skip := passed[id]
		if !skip {
			_, skip = d.postponed[id]
		}
		return skip
	})
	cost := 0
	for i := range tickets {
		t := &tickets[i].Ticket
		if len(others) > 0 && len(t.Body)*readFactor > most {
			return upTo(tickets, i), err
		}
		d.read(t)
		if cost += t.Cost(); cost > most && i > 0 {
			d.fit = i
			return upTo(tickets, i), err
		}
	}
	d.fit = max(d.fit, len(tickets))
	return tickets, err
}

// upTo returns the first n tickets, and holds on to no memory of the others.
func upTo(tickets []Spooled, n int) []Spooled {
	clear(tickets[n:])
	return tickets[:n]
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

// tries reports whether any stepped-over ticket has tries left.
func (d *drainer) tries() bool {
	for _, p := range d.postponed {
		if p.tries < d.config.DrainTries {
			return true
		}
	}
	return false
}

// nextRetry returns the time until the next retry.
func (d *drainer) nextRetry() time.Duration {
	var next time.Time
	for _, p := range d.postponed {
		if next.IsZero() || p.due.Before(next) {
			next = p.due
		}
	}
	return max(time.Until(next), time.Until(d.retryAt))
}

// patience returns how long a transaction may take. A small one gets less, because the others wait for it.
func (d *drainer) patience(tickets []Spooled) time.Duration {
	config := &d.config
	cost := 0
	for i := range tickets {
		cost += tickets[i].Ticket.Cost()
	}
	share := max(float64(len(tickets))/drainTickets, float64(cost)/float64(config.BatchBytes))
	least := min(config.StoreTimeout, config.DrainTimeout)
	return least + time.Duration(min(share, 1)*float64(config.DrainTimeout-least))
}

// drained is a ticket that may leave the spool: it is in the store, or a copy of it is kept for a person.
type drained struct {
	Outcome
	refused bool
}

// batchOf returns what one transaction is to store.
func batchOf(tickets []Spooled) Batch {
	b := Batch{Entries: make([]*Entry, len(tickets)), Drained: true}
	for i := range tickets {
		b.Entries[i] = &tickets[i].Entry
	}
	return b
}

// storeRead stores tickets as they were read. Their senders have an acknowledgement, so each ticket must either get into the
// store or stay in the spool. It returns what became of the first tickets, which may leave the spool.
func (d *drainer) storeRead(ctx context.Context, tickets []Spooled) ([]drained, error) {
	saving, cancel := context.WithTimeout(ctx, d.patience(tickets))
	defer cancel()
	b := batchOf(tickets)
	saved, err := d.saveAndReadAhead(saving, b, tickets)
	r := result{Saved: saved}
	if errors.Is(err, ticket.ErrRefused) {
		r, err = d.saveUnread(saving, b) // treatment finds the ticket that is at fault
	}
	if err != nil {
		return nil, err
	}
	return d.settle(ctx, tickets, r)
}

// saveAndReadAhead stores a batch of some tickets. Meanwhile the tickets that follow are read, so neither Postgres nor this
// server waits for the other one.
func (d *drainer) saveAndReadAhead(ctx context.Context, b Batch, tickets []Spooled) (Saved, error) {
	var reading sync.WaitGroup
	reading.Go(func() { d.ahead, _ = d.readNext(tickets) }) // if the disk fails, the next step finds out
	defer reading.Wait()
	return d.store.Save(ctx, b)
}

// storeUnread does the same without what was read, which demands least of the store.
func (d *drainer) storeUnread(ctx context.Context, tickets []Spooled) ([]drained, error) {
	r, err := d.saveUnreadInTime(ctx, batchOf(tickets))
	if err != nil {
		return nil, err
	}
	return d.settle(ctx, tickets, r)
}

func (d *drainer) saveUnreadInTime(ctx context.Context, b Batch) (result, error) {
	ctx, cancel := context.WithTimeout(ctx, d.config.DrainTimeout)
	defer cancel()
	return d.saveUnread(ctx, b)
}

// settle handles the tickets that a transaction did not store. It returns what became of the first tickets, up to one for
// which the store or the disk failed.
func (d *drainer) settle(ctx context.Context, tickets []Spooled, r result) (done []drained, err error) {
	done = make([]drained, 0, len(tickets))
	for i := range tickets {
		e, o, refusal := &tickets[i].Entry, r.Outcomes[i], r.refusal(i)
		if o.KeyReused {
			// Meanwhile another server has stored another ticket with the same key. That is a mistake of the sender, but
			// both tickets were acknowledged.
			d.config.Logger.With(e.Ticket.LogAttr()).
				Warn("the idempotency key of a spooled ticket was used for another body meanwhile; the ticket is stored without the key")
			keyless := *e
			keyless.Key = ""
			alone, err := d.saveUnreadInTime(ctx, Batch{Entries: []*Entry{&keyless}, Drained: true})
			if err != nil {
				return done, err
			}
			e, o, refusal = &keyless, alone.Outcomes[0], alone.refusal(0)
		}
		if refusal != nil {
			if err := d.config.Spool.Refuse(e); err != nil {
				return done, err
			}
		}
		done = append(done, drained{o, refusal != nil})
	}
	return done, nil
}

// conclude removes what is done from the spool. If tickets are left, it finds out why.
func (d *drainer) conclude(ctx context.Context, tickets []Spooled, done []drained, cause error, unread bool) step {
	s := step{done: len(done), err: cause}
	if err := d.leave(tickets[:len(done)], done); err != nil {
		return step{err: err, disk: true}
	}
	switch {
	case cause == nil || ctx.Err() != nil:
		return s
	case d.ping(ctx) != nil:
		s.away = true
		return s
	}
	// The store takes tickets, so one of these is at fault.
	rest := tickets[len(done):]
	if len(rest) > 1 {
		d.limit = max(len(rest)/4, 1)
		return s
	}
	if !unread {
		d.config.Metrics.drainFailed.Inc()
		d.config.Logger.With(rest[0].Ticket.LogAttr()).
			Warn("the database does not take a ticket of the spool, although it takes others; it is stored unread and treated later",
				"bytes", len(rest[0].Ticket.Body), "error", cause)
		done, cause := d.storeUnread(ctx, rest)
		again := d.conclude(ctx, rest, done, cause, true)
		again.done += s.done
		return again
	}
	if err := d.postpone(&rest[0], cause); err != nil {
		d.kept = err
		s.err = errors.Join(cause, err)
	}
	return s
}

// leave removes tickets from the spool that are in the store or set aside.
func (d *drainer) leave(tickets []Spooled, done []drained) error {
	stored := 0
	for i := range tickets {
		t := &tickets[i].Ticket
		delete(d.postponed, t.ID)
		if done[i].refused {
			d.total.Refused++
			d.config.Metrics.refused.Inc()
			continue
		}
		stored++
		d.config.Metrics.read(done[i].Outcome, len(t.Order.Lines))
	}
	d.total.Stored += stored
	d.config.Metrics.drained.Add(float64(stored))
	return d.config.Spool.Remove(tickets)
}

// postpone steps over a ticket, or sets it aside after Config.DrainTries tries.
func (d *drainer) postpone(s *Spooled, cause error) error {
	config := &d.config
	log := config.Logger.With(s.Ticket.LogAttr())
	p, again := d.postponed[s.Ticket.ID]
	if !again && len(d.postponed) >= maxPostponed {
		return nil
	}
	p.tries++
	p.due = time.Now().Add(config.DrainRetry << min(p.tries-1, 10)) // a ticket that cannot be set aside may wait longer
	d.postponed[s.Ticket.ID] = p
	if p.tries < config.DrainTries {
		config.Metrics.steppedOver.Inc()
		log.Warn("the database does not take a ticket of the spool, although it takes others; it is stepped over and tried again",
			"try", p.tries, "tries", config.DrainTries, "bytes", len(s.Ticket.Body), "error", cause)
		return nil
	}
	log.Error("the database did not take a ticket of the spool in any try, although it takes others; it is set aside in a "+
		".refused file and tried again at the next start: find out why (docs/durability.md)",
		"tries", p.tries, "bytes", len(s.Ticket.Body), "error", cause)
	if err := config.Spool.Refuse(&s.Entry); err != nil {
		return err
	}
	return d.leave([]Spooled{*s}, []drained{{refused: true}})
}
