package intake

import (
	"errors"
	"fmt"
	"time"

	"myticket/internal/ticket"
)

// boundKeys ends the wait of deliveries for the keys of tickets that a process before this one spooled: after half of
// Config.Timeout since the start, so that there is time to store them. From then on such a delivery is handled as by another
// server, which does not know the spooled ticket: the store finds the duplicate when the spool is drained.
func (in *Intake) boundKeys() {
	defer close(in.keysLate)
	late := time.NewTimer(in.config.Timeout / 2)
	defer late.Stop()
	select {
	case <-in.config.Spool.KeysRead():
	case <-in.stopping:
	case <-late.C:
		in.config.Logger.Warn("the files of the spool are not verified yet, so not all idempotency keys in it are known: "+
			"until they are, a repeated delivery of a spooled ticket may get another id; it is stored once",
			"waited", (in.config.Timeout / 2).String())
	}
}

// awaitKeys waits until all keys in the spool are known, or boundKeys ends the wait. It reports whether it had to wait.
func (in *Intake) awaitKeys() (waited bool) {
	if in.config.Spool == nil {
		return false
	}
	read := in.config.Spool.KeysRead()
	select {
	case <-read:
		return false
	case <-in.keysLate:
		return false
	default:
	}
	select {
	case <-read:
	case <-in.keysLate:
	}
	return true
}

// spooled answers a delivery that has the idempotency key of a ticket in the spool. The store does not know that key yet.
func (in *Intake) spooled(e *Entry) (r Receipt, known bool, err error) {
	if in.config.Spool == nil {
		return Receipt{}, false, nil
	}
	id, body, ok := in.config.Spool.Find(e.Ticket.Source, e.Key)
	switch {
	case !ok:
		return Receipt{}, false, nil
	case body != e.BodySHA256:
		return Receipt{}, true, ErrKeyReused
	}
	in.config.Metrics.duplicates.Inc()
	return Receipt{ID: id, Status: ticket.Spooled, Duplicate: true}, true, nil
}

// spoolOverflow is the lane for batches that the store does not take, or not soon enough. Only this lane waits for the disk.
func (in *Intake) spoolOverflow() {
	tick := time.NewTicker(max(in.config.OverflowWait/8, time.Millisecond))
	defer tick.Stop()
	for open := true; open; {
		select {
		case <-in.queue.pressed:
		case <-tick.C:
		case <-in.flushed:
			open = false
			in.queue.flush() // no lane of the store is left to take what waits
		}
		for {
			batches := in.queue.overflow(in.config.OverflowWait)
			if len(batches) == 0 {
				break
			}
			in.spoolBatches(batches)
		}
	}
}

func (in *Intake) spoolBatches(batches []*batch) {
	var entries []*Entry
	for _, b := range batches {
		entries = append(entries, b.entries...)
	}
	start := time.Now()
	saved, err := in.config.Spool.Put(entries)
	observe(in.config.Metrics.spool, time.Since(start).Seconds(), saved.StoredBy)
	if err != nil && !errors.Is(err, ErrSpoolFull) && !errors.Is(err, ticket.ErrUnavailable) {
		err = fmt.Errorf("%w: %w", ticket.ErrUnavailable, err)
	}
	outcomes := saved.Outcomes
	for _, b := range batches {
		switch {
		case err == nil:
			n := len(b.entries)
			in.spooledBatch(b, Saved{Outcomes: outcomes[:n:n], StoredBy: saved.StoredBy})
			outcomes = outcomes[n:]
		case b.cause.storeTakes() && !b.unread && time.Since(b.since) < in.config.Timeout:
			in.commit(b) // the store is slow, but it is there
		default:
			b.fail(err)
		}
	}
}

// spooledBatch answers the senders of a batch that the spool took.
func (in *Intake) spooledBatch(b *batch, saved Saved) {
	fresh := 0
	for i := range saved.Outcomes {
		if o := &saved.Outcomes[i]; !o.Duplicate && !o.KeyReused {
			fresh++
		}
	}
	in.config.Metrics.overflow[b.cause].Add(float64(fresh))
	b.succeed(result{Saved: saved})
}
