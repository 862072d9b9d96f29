package intake

import (
	"errors"
	"time"

	"myticket/internal/ticket"
)

// queued is an entry that waits.
type queued struct {
	batch *batch
	entry int              // its place in the batch
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
		return in.enqueueUnread(e, causeAway, time.Now())
	}
	start, patience := time.Now(), in.config.Timeout/2
	if spools {
		patience = min(patience, in.config.OverflowWait/2)
	}
	var q queued
	err := ErrOverloaded
	t, waited, ok := in.reading.take(len(e.Ticket.Body), patience)
	if ok {
		q.batch, q.entry, err = in.readAndAdd(e, t)
	}
	if errors.Is(err, ErrOverloaded) && spools {
		e.Ticket.Order, e.Ticket.Problems, e.Ticket.Status = ticket.Order{}, nil, ""
		return in.enqueueUnread(e, causeFull, start)
	}
	if waited {
		q.late = time.After(time.Until(start.Add(in.config.Timeout)))
	}
	return q, err
}

// readAndAdd ends its turn in any case: a fault of the parser that costs one ticket must not cost the others their turns.
func (in *Intake) readAndAdd(e *Entry, t turn) (*batch, int, error) {
	defer t.end()
	in.read(&e.Ticket)
	return in.queue.add(e)
}

// enqueueUnread has a ticket that came at start wait for the spool. A large one may wait for its turn for most of its time.
func (in *Intake) enqueueUnread(e *Entry, why cause, start time.Time) (q queued, err error) {
	t, _, ok := in.reading.takeUnread(&e.Ticket, time.Until(start.Add(in.config.Timeout*3/4)))
	if !ok {
		return queued{}, ErrOverloaded
	}
	if q.batch, q.entry, err = in.queue.addUnread(e, why); err != nil {
		t.end()
		return queued{}, err
	}
	if q.turn = t; t.class != nil {
		q.late = time.After(time.Until(start.Add(in.config.Timeout)))
	}
	return q, nil
}
