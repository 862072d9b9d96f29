package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"myticket/internal/ticket"
)

// Follower returns tickets as they are stored. Only one goroutine may use it.
//
// It reads the outbox, which has a row for each batch. Ids or times of tickets would not do, because a ticket that was spooled is
// stored long after later ones. It remembers the snapshot of its last look: what that did not see is new, in whatever order the
// transactions ended. So a ticket that was committed late is not missed, and none is returned twice.
type Follower struct {
	store    *Store
	filter   TicketFilter
	snapshot string      // of the last look (pg_current_snapshot); empty before the first
	waiting  []uuid.UUID // that it found, and that were not handed over yet
}

// Follow returns a Follower of the tickets that a filter selects. It looks at what they are when it returns them. The Product of
// the filter does not work for it, because order_lines is behind.
func (s *Store) Follow(filter TicketFilter) *Follower { return &Follower{store: s, filter: filter} }

// Began reports whether the first look is done: every ticket that is stored after it will be returned.
func (f *Follower) Began() bool { return f.snapshot != "" }

const (
	followChunk = 500       // tickets that are held in memory
	followMost  = 1_000_000 // tickets of one look, of which the ids are held in memory
)

var errBehind = fmt.Errorf("more than %d tickets were stored since the last look: use \"myticket tickets list\" for them, and "+
	"follow anew", followMost)

// newInOutbox returns the ids of tickets that another snapshot did not see.
const newInOutbox = `
SELECT tickets FROM outbox
WHERE xid >= pg_snapshot_xmin($1::text::pg_snapshot) AND NOT pg_visible_in_snapshot(xid, $1::text::pg_snapshot)
  AND kind = 'stored'
ORDER BY xid`

// Next hands over the tickets that were stored since the last call, the oldest first, in pieces. The first call only begins. If
// it fails, the next call goes on with the piece that failed.
func (f *Follower) Next(ctx context.Context, yield func([]StoredTicket) error) error {
	if len(f.waiting) == 0 {
		if err := f.look(ctx); err != nil {
			return err
		}
	}
	for len(f.waiting) > 0 {
		chunk := f.waiting[:min(len(f.waiting), followChunk)]
		tickets, err := f.tickets(ctx, chunk)
		if err != nil {
			return explain("read new tickets", err)
		}
		if err := yield(tickets); err != nil {
			return err
		}
		f.waiting = f.waiting[len(chunk):]
	}
	return nil
}

// look notes the ids of the tickets that the last look did not see.
func (f *Follower) look(ctx context.Context) error {
	var ids []uuid.UUID
	var snapshot string
	err := f.store.steady(ctx, func(tx pgx.Tx) error {
		if err := tx.QueryRow(ctx, `SELECT pg_current_snapshot()::text`).Scan(&snapshot); err != nil {
			return err
		}
		// The first look finds nothing, but fails if the outbox may not be read, or is not there.
		rows, err := tx.Query(ctx, newInOutbox, cmp.Or(f.snapshot, snapshot))
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var batch []byte
			if err := rows.Scan(&batch); err != nil {
				return err
			}
			for ; len(batch) >= len(uuid.UUID{}); batch = batch[len(uuid.UUID{}):] {
				ids = append(ids, uuid.UUID(batch[:len(uuid.UUID{})]))
			}
			if len(ids) > followMost {
				return errBehind
			}
		}
		return rows.Err()
	})
	switch {
	case errors.Is(err, errBehind):
		return err
	case err != nil:
		return explain("look for new tickets", err)
	}
	f.snapshot, f.waiting = snapshot, ids
	return nil
}

// tickets returns those of some tickets that the filter selects.
func (f *Follower) tickets(ctx context.Context, ids []uuid.UUID) ([]StoredTicket, error) {
	times := make([]time.Time, len(ids))
	for i, id := range ids {
		times[i] = ticket.IDTime(id)
	}
	c := f.filter.conditions(times, ids)
	if len(f.filter.Statuses) > 0 {
		c.add("status = ANY (?)", f.filter.Statuses)
	}
	rows, err := f.store.pool.Query(ctx, `SELECT `+ticketColumnsSQL+`
		FROM unnest($1::timestamptz[], $2::uuid[]) AS new (new_at, new_id)
		JOIN tickets t ON received_at = new_at AND id = new_id`+c.where()+` ORDER BY received_at, id`, c.args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (StoredTicket, error) {
		t, err := f.store.scanTicket(row)
		t.Body, t.Text = nil, nil
		return t, err
	})
}
