package intake

import (
	"context"
	"errors"
	"fmt"
	"time"

	"myticket/internal/ticket"
)

// spooled answers a delivery whose idempotency key is that of a ticket in the spool. The store does not know the key yet.
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

// spool stores entries on disk and sets what became of each. It tells whether that worked.
func (in *Intake) spool(entries []*Entry, reason string) error {
	start := time.Now()
	err := in.config.Spool.Put(entries)
	observe(in.config.Metrics.spool, time.Since(start).Seconds(), entries[0].StoredBy)
	if err != nil {
		if !errors.Is(err, ErrSpoolFull) {
			err = fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		for _, e := range entries {
			e.err = err
		}
		return err
	}
	spooled := 0
	for _, e := range entries {
		e.err = nil
		if e.Original == nil && !e.KeyReused {
			e.Ticket.Status, e.Ticket.Problems = ticket.Spooled, nil
			spooled++
		}
	}
	in.config.Metrics.overflow[reason].Add(float64(spooled))
	return nil
}

// spoolOverflow is the lane of what Postgres does not take, or not soon enough.
func (in *Intake) spoolOverflow() {
	tick := time.NewTicker(max(in.config.OverflowWait/8, time.Millisecond))
	defer tick.Stop()
	for open := true; open; {
		select {
		case <-in.queue.pressed:
		case <-tick.C:
		case <-in.flushed:
			open = false
			in.queue.flush() // whatever is left, nobody else will take
		}
		for {
			batches, reason := in.queue.overflow(in.config.OverflowWait)
			if len(batches) == 0 {
				break
			}
			in.spoolBatches(batches, reason)
		}
	}
}

func (in *Intake) spoolBatches(batches []*batch, reason string) {
	var entries []*Entry
	for _, b := range batches {
		entries = append(entries, b.entries...)
	}
	err := in.spool(entries, reason)
	for _, b := range batches {
		if err != nil && reason != overflowAway && time.Since(b.since) < in.config.Timeout {
			b.fail(nil)
			in.commit(b) // the store is slow, but it is there
		}
		b.close()
	}
}

// drainTimeout bounds one transaction of the drain. Nobody waits for it, and it may be large.
const drainTimeout = 10 * time.Second

// drainPoll is how often an empty spool is looked at.
const drainPoll = 100 * time.Millisecond

// drain brings tickets from the spool into the store, oldest first, for as long as deliveries are accepted. It uses one
// transaction at a time, and pauses between two as long as one took while deliveries wait, and nine times as long when
// they wait so long that they are about to be spooled: it takes half of one connection's time at most, and never stops.
// While the store is away it finds out when that is back.
func (in *Intake) drain() {
	wait := newBackOff()
	limit := in.config.DrainTickets
	for {
		pause := drainPoll
		if !in.Available() {
			if in.probe() {
				wait.Reset()
				continue
			}
			pause = wait.NextBackOff()
		} else {
			start := time.Now()
			n, err := in.drainSome(context.Background(), limit)
			switch {
			case err != nil:
				in.config.Logger.Warn("tickets of the spool could not be brought into the database; they stay in it, and it is tried again",
					"error", err)
				in.askStore()
				pause = wait.NextBackOff()
				limit = max(limit/2, 1) // a smaller transaction may be in time
			case n > 0:
				wait.Reset()
				limit = min(limit*2, in.config.DrainTickets)
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

// askStore finds out whether a drain failed because the store is away.
func (in *Intake) askStore() {
	ctx, cancel := context.WithTimeout(context.Background(), in.config.StoreTimeout)
	defer cancel()
	if err := in.store.Ping(ctx); err != nil {
		in.storeAway(err)
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

// drainRest is the last drain, before a stop.
func (in *Intake) drainRest(ctx context.Context) {
	for ctx.Err() == nil && in.Available() {
		if n, err := in.drainSome(ctx, in.config.DrainTickets); err != nil || n == 0 {
			break
		}
	}
}

// drainSome brings up to so many tickets from the spool into the store, and returns how many.
func (in *Intake) drainSome(ctx context.Context, limit int) (n int, err error) {
	entries, err := in.config.Spool.Peek(limit, int64(in.config.BatchBytes))
	if err != nil || len(entries) == 0 {
		return 0, err
	}
	defer func() {
		if err != nil {
			in.config.Metrics.drainFailed.Inc()
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, drainTimeout)
	defer cancel()
	if err := in.saveDrained(ctx, entries); err != nil {
		return 0, err
	}
	in.config.Metrics.drained.Add(float64(len(entries)))
	return len(entries), in.config.Spool.Remove(len(entries))
}

// saveDrained stores tickets that were acknowledged: each must end in the store, or stay with us.
func (in *Intake) saveDrained(ctx context.Context, entries []*Entry) error {
	for _, e := range entries {
		e.Drained = true
		in.read(&e.Ticket)
	}
	err := in.store.Save(ctx, entries)
	if errors.Is(err, ticket.ErrRefused) {
		err = in.saveUnread(ctx, entries, time.Now()) // and whoever treats finds the culprit
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.KeyReused {
			// Another server has taken another ticket for the same key meanwhile. Its sender is at fault, but both have
			// been acknowledged.
			in.config.Logger.With(e.Ticket.LogAttr()).
				Warn("a spooled ticket's idempotency key was used for another body meanwhile; it is stored without the key")
			e.Key, e.KeyReused = "", false
			if err := in.saveUnread(ctx, []*Entry{e}, time.Now()); err != nil {
				return err
			}
		}
		if e.err != nil {
			in.config.Metrics.refused.Inc()
			if err := in.config.Spool.Refuse(e); err != nil {
				return err
			}
			continue
		}
		in.config.Metrics.read(&e.Ticket)
	}
	return nil
}

// Drain brings everything in a spool into a store, for an operator, and returns how many tickets that were. It stops at
// the first failure; what is left stays in the spool.
func Drain(ctx context.Context, config Config, store Store) (int, error) {
	config.setDefaults()
	in := &Intake{config: config, store: store}
	total := 0
	for {
		n, err := in.drainSome(ctx, config.DrainTickets)
		total += n
		if err != nil || n == 0 {
			return total, err
		}
	}
}
