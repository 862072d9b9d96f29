package intake

import (
	"context"
	"errors"
	"time"

	"myticket/internal/ticket"
)

// commitBatches is one lane. It commits one batch after another. It never waits for a batch to fill while no other is under way.
func (in *Intake) commitBatches() {
	for {
		b := in.queue.next()
		if b == nil {
			return
		}
		if time.Since(b.since) >= in.config.Timeout {
			b.fail(ticket.ErrUnavailable) // its senders have this answer already
		} else {
			in.commit(b)
		}
		in.queue.done()
	}
}

// commit stores a batch and answers its senders. It ends before the time of the oldest entry is up, so the younger batches
// behind it are in time as well. A batch that the store does not take goes to the spool's lane, because a lane of the store
// must never wait for a disk.
func (in *Intake) commit(b *batch) {
	if in.config.Spool == nil && !in.Available() {
		b.fail(ticket.ErrUnavailable)
		return
	}
	start := time.Now()
	ctx, cancel := context.WithDeadline(context.Background(), in.giveUpAt(b, start))
	defer cancel()
	saved, err := in.store.Save(ctx, Batch{Entries: b.entries})
	r := result{Saved: saved}
	if errors.Is(err, ticket.ErrRefused) {
		in.config.Logger.Warn("the database refuses a batch because of what one of its tickets holds; "+
			"the tickets are stored unread and treated one by one", "tickets", len(b.entries), "error", err)
		r, err = in.isolate(ctx, b.entries)
	}
	in.config.Metrics.batch(len(b.entries), b.cost, start.Sub(b.since), time.Since(start), r.StoredBy, err)
	if err == nil {
		b.succeed(r)
		return
	}
	in.storeAway(err)
	if in.config.Spool != nil {
		in.queue.giveBack(b, causeFailed)
		return
	}
	b.fail(ticket.ErrUnavailable)
}

// giveUpAt returns when a transaction that begins now is canceled. With a spool, that leaves enough time to write to it.
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

// isolate handles a batch that the store refuses because of one of its tickets, so that no other ticket suffers: it stores
// all tickets unread, and then treats each by itself.
func (in *Intake) isolate(ctx context.Context, entries []*Entry) (result, error) {
	r, err := in.saveUnread(ctx, Batch{Entries: entries, ClaimFor: in.config.Lease})
	if err != nil {
		return r, err
	}
	for i, e := range entries {
		o := &r.Outcomes[i]
		if o.Duplicate || o.KeyReused || r.refusal(i) != nil {
			continue
		}
		// The ticket is stored already. If its treatment fails now, it keeps the status TO_TREAT and is treated later.
		status, problems, err := in.treater.Treat(ctx, e.Ticket, 1)
		if err != nil {
			in.config.Logger.With(e.Ticket.LogAttr()).
				Warn("a stored ticket could not be treated at once; it will be treated later", "error", err)
			continue
		}
		o.Status, o.Problems = status, problems
	}
	return r, nil
}
