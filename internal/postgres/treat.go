package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"myticket/internal/ticket"
	"myticket/internal/treatment"
)

// claimTickets claims tickets that are due. A ticket that was claimed before is claimed alone: the process that had it was
// killed or ran out of time, and this must not use up the attempts of other tickets. Storing a ticket unread counts as a claim.
const claimTickets = `
WITH due AS (
    SELECT received_at, id, attempts, next_attempt_at FROM tickets
    WHERE status = 'TO_TREAT' AND next_attempt_at <= now()
    ORDER BY next_attempt_at
    LIMIT $1
    FOR UPDATE SKIP LOCKED
), picked AS (
    SELECT received_at, id FROM (
        SELECT received_at, id, row_number() OVER w AS n, max(attempts) OVER w AS attempts FROM due
        WINDOW w AS (ORDER BY next_attempt_at, received_at, id ROWS UNBOUNDED PRECEDING)) d
    WHERE n = 1 OR attempts <= 1
)
UPDATE tickets t
SET attempts = least(t.attempts, 32766) + 1, claims = t.claims + 1, next_attempt_at = now() + $2
FROM picked
WHERE t.received_at = picked.received_at AND t.id = picked.id
RETURNING t.id, t.received_at, t.source, ` + textSQL + `, t.content_type, coalesce(t.traceparent, ''), t.attempts, t.claims`

// finishTicket changes a row only for the holder of the newest claim. Both numbers must match, because sending a ticket back
// resets attempts, and a server of the previous version does not change claims. The same statement notes it in the outbox.
const finishTicket = `
WITH finished AS (
    UPDATE tickets t
    SET status = i.status, problems = i.problems, order_number = i.order_number, vat = i.vat, total = i.total,
        extra = i.extra, lines = NULL, parser_version = $7, dialect = $12, problem_group = $13, next_attempt_at = NULL
    FROM unnest($1::text[], $2::jsonb[], $3::text[], $4::numeric[], $5::numeric[], $6::jsonb[])
         AS i (status, problems, order_number, vat, total, extra)
    WHERE t.received_at = $8 AND t.id = $9 AND t.status = 'TO_TREAT' AND t.attempts = $10 AND t.claims = $11
    RETURNING t.id
), noted AS (
    INSERT INTO outbox (kind, tickets) SELECT '` + kindTreated + `', uuid_send(id) FROM finished
)
SELECT FROM finished`

// finishedTicket checks whether finishTicket was committed, after the answer to its COMMIT was lost. Its lock waits for the
// standbys, as lockTicket does.
const finishedTicket = `
SELECT FROM tickets WHERE received_at = $1 AND id = $2 AND status = $3 AND attempts = $4 AND claims = $5 FOR KEY SHARE`

const postponeTicket = `
UPDATE tickets SET next_attempt_at = now() + $5
WHERE received_at = $1 AND id = $2 AND status = 'TO_TREAT' AND attempts = $3 AND claims = $4`

// claimableAhead is for tickets that were stored unread, claimed or postponed while Postgres' clock was ahead. They would not be
// due before that time comes. No ticket waits for longer than a lease, or an hour.
const claimableAhead = `
UPDATE tickets SET next_attempt_at = now()
WHERE status = 'TO_TREAT' AND next_attempt_at > now() + $1::interval + interval '1 hour'`

// Claim implements treatment.Store. If no ticket is due, it makes those due that wait because Postgres' clock was ahead.
func (s *Store) Claim(ctx context.Context, limit int, lease time.Duration) ([]treatment.Claim, error) {
	var claims []treatment.Claim
	err := s.commit(ctx, "claim tickets", func(conn *pgxpool.Conn) error {
		rows, err := conn.Query(ctx, claimTickets, limit, lease)
		if err != nil {
			return err
		}
		claims, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (treatment.Claim, error) {
			t := &ticket.Ticket{Status: ticket.ToTreat}
			c := treatment.Claim{Ticket: t}
			err := row.Scan(&t.ID, &t.ReceivedAt, &t.Source, &t.Body, &t.ContentType, &t.Traceparent, &c.Attempt, &c.Number)
			return c, err
		})
		if err == nil && len(claims) == 0 {
			_, err = conn.Exec(ctx, claimableAhead, lease)
		}
		return err
	})
	return claims, err
}

// Finish implements treatment.Store. New products are limited as in Save.
func (s *Store) Finish(ctx context.Context, c treatment.Claim) (ticket.Status, []ticket.Problem, error) {
	rows := make([]row, 1)
	gate := s.newProducts.gate()
	var added []saying
	again, lost := false, false
	err := s.commit(ctx, "store what was read", func(pooled *pgxpool.Conn) error {
		defer func() { again = true }()
		return pgx.BeginFunc(ctx, pooled, func(tx pgx.Tx) error {
			conn := tx.Conn()
			finish, err := conn.Prepare(ctx, finishTicket, finishTicket)
			if err != nil {
				return err
			}
			rows[0] = rowOf(c.Ticket)
			if err := gate.stop(ctx, conn, rows); err != nil {
				return err
			}
			p := ticketParams(rows)
			result := conn.PgConn().ExecPrepared(ctx, finish.Name,
				[][]byte{
					p.status, p.problems, p.orderNumber, p.vat, p.total, p.extra, int2(ticket.ParserVersion),
					appendTime(nil, c.Ticket.ReceivedAt), c.Ticket.ID[:], int2(c.Attempt), int4(c.Number),
					int4(rows[0].dialect), groupOrNull(rows[0].group()),
				}, finishFormats, nil).Read()
			if result.Err != nil {
				return result.Err
			}
			lost = result.CommandTag.RowsAffected() == 0
			added = nil
			if lost && again {
				done, err := tx.Exec(ctx, finishedTicket, c.Ticket.ReceivedAt, c.Ticket.ID, rows[0].status, c.Attempt, c.Number)
				lost = done.RowsAffected() == 0
				return err // its products were stored in the same transaction
			}
			if products := s.distinctProducts(rows); len(products) > 0 && !lost {
				added, err = s.upsert(ctx, conn, products)
			}
			return err
		})
	})
	if err == nil && lost {
		err = fmt.Errorf("ticket %s: %w", c.Ticket.ID, treatment.ErrClaimLost)
	}
	if err != nil {
		return "", nil, err
	}
	gate.committed(added)
	return rows[0].status, rows[0].problems, nil
}

// Postpone implements treatment.Store.
func (s *Store) Postpone(ctx context.Context, c treatment.Claim, wait time.Duration) error {
	var changed int64
	err := s.commit(ctx, "postpone a ticket", func(conn *pgxpool.Conn) error {
		tag, err := conn.Exec(ctx, postponeTicket, c.Ticket.ReceivedAt, c.Ticket.ID, c.Attempt, c.Number, wait)
		changed = tag.RowsAffected()
		return err
	})
	if err == nil && changed == 0 {
		return fmt.Errorf("ticket %s: %w", c.Ticket.ID, treatment.ErrClaimLost)
	}
	return err
}
