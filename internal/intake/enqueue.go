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
	late  <-chan time.Time // set for an entry that waited before it was in the batch: its own timer
	turn  turn             // ends when its sender is answered
}

// await waits until the entry's batch is done. It returns false if the time of the entry is up before that. Each batch has a
// timer; when it expires its senders are answered, even if a disk hangs.
func (q *queued) await() bool {
	if q.late == nil { // nearly always; each further case of a select costs time
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
		e.Ticket.Order, e.Ticket.Problems, e.Ticket.Status = ticket.Order{}, nil, ""
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
	in.read(&e.Ticket)
	return in.queue.add(e)
}

// enqueueUnread adds a ticket that came at start to the queue for the spool. A large ticket may wait for its turn for three
// quarters of its time.
func (in *Intake) enqueueUnread(e *Entry, why cause, start time.Time, waited bool) (q queued, err error) {
	t, _, ok := in.reading.takeUnread(&e.Ticket, time.Until(start.Add(in.config.Timeout*3/4)))
	if !ok {
		return queued{}, ErrOverloaded
	}
	if q.batch, q.entry, err = in.queue.addUnread(e, why); err != nil {
		t.end()
		return queued{}, err
	}
	if q.turn = t; t.class != nil || waited {
		q.late = in.lateAfter(start)
	}
	return q, nil
}
