package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"myticket/internal/intake"
	"myticket/internal/ticket"
	"myticket/internal/treatment"
)

const claimTickets = `
WITH due AS (
    SELECT received_at, id FROM tickets
    WHERE status = 'TO_TREAT' AND next_attempt_at <= now()
    ORDER BY next_attempt_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
)
UPDATE tickets t
SET attempts = least(t.attempts, 32766) + 1, next_attempt_at = now() + $2
FROM due
WHERE t.received_at = due.received_at AND t.id = due.id
RETURNING t.id, t.received_at, t.source, t.body, t.content_type, coalesce(t.traceparent, ''), t.attempts`

// finishTicket changes a row only for the holder of the newest claim.
const finishTicket = `
UPDATE tickets t
SET status = i.status, problems = i.problems, order_number = i.order_number, vat = i.vat, total = i.total,
    extra = i.extra, lines = i.lines, parser_version = $8, next_attempt_at = NULL
FROM unnest($1::text[], $2::jsonb[], $3::text[], $4::numeric[], $5::numeric[], $6::jsonb[], $7::jsonb[])
     AS i (status, problems, order_number, vat, total, extra, lines)
WHERE t.received_at = $9 AND t.id = $10 AND t.status = 'TO_TREAT' AND t.attempts = $11`

const postponeTicket = `
UPDATE tickets SET next_attempt_at = now() + $4
WHERE received_at = $1 AND id = $2 AND status = 'TO_TREAT' AND attempts = $3`

// Claim implements treatment.Store.
func (s *Store) Claim(ctx context.Context, limit int, lease time.Duration) ([]treatment.Claim, error) {
	var claims []treatment.Claim
	err := s.retry(ctx, "claim tickets", func() error {
		rows, err := s.pool.Query(ctx, claimTickets, limit, lease)
		if err != nil {
			return err
		}
		claims, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (treatment.Claim, error) {
			t := &ticket.Ticket{Status: ticket.ToTreat}
			c := treatment.Claim{Ticket: t}
			err := row.Scan(&t.ID, &t.ReceivedAt, &t.Source, &t.Body, &t.ContentType, &t.Traceparent, &c.Attempt)
			return c, err
		})
		return err
	})
	return claims, err
}

// Finish implements treatment.Store. New products are limited as with Save.
func (s *Store) Finish(ctx context.Context, c treatment.Claim) error {
	entries := []*intake.Entry{{Ticket: *c.Ticket}}
	gate := s.newProducts.gate()
	var added []saying
	lost := false
	err := s.retry(ctx, "store what was read", func() error {
		return pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
			conn := tx.Conn()
			finish, err := conn.Prepare(ctx, finishTicket, finishTicket)
			if err != nil {
				return err
			}
			if err := gate.stop(ctx, conn, entries); err != nil {
				return err
			}
			p := ticketParams(entries)
			result := conn.PgConn().ExecPrepared(ctx, finish.Name,
				[][]byte{
					p.status, p.problems, p.orderNumber, p.vat, p.total, p.extra, p.lines, int2(ticket.ParserVersion),
					appendTime(nil, c.Ticket.ReceivedAt), c.Ticket.ID[:], int2(c.Attempt),
				}, finishFormats, nil).Read()
			if result.Err != nil {
				return result.Err
			}
			lost = result.CommandTag.RowsAffected() == 0
			added = nil
			if products := s.distinctProducts(entries); len(products) > 0 && !lost {
				added, err = s.upsert(ctx, conn, products)
			}
			return err
		})
	})
	if err == nil && !lost {
		c.Ticket.Status, c.Ticket.Problems = entries[0].Ticket.Status, entries[0].Ticket.Problems
		gate.committed(added)
	}
	if err == nil && lost {
		return fmt.Errorf("ticket %s: %w", c.Ticket.ID, treatment.ErrClaimLost)
	}
	return err
}

// Postpone implements treatment.Store.
func (s *Store) Postpone(ctx context.Context, c treatment.Claim, wait time.Duration) error {
	var changed int64
	err := s.retry(ctx, "postpone a ticket", func() error {
		tag, err := s.pool.Exec(ctx, postponeTicket, c.Ticket.ReceivedAt, c.Ticket.ID, c.Attempt, wait)
		changed = tag.RowsAffected()
		return err
	})
	if err == nil && changed == 0 {
		return fmt.Errorf("ticket %s: %w", c.Ticket.ID, treatment.ErrClaimLost)
	}
	return err
}
