package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"myticket/internal/ticket"
)

// change is an UPDATE on behalf of a person: the statuses that it applies to, what it sets, and the parameters for that from $1
// on.
type change struct {
	from []ticket.Status
	set  string
	args []any
}

// sendBack keeps the problems, with the dismissal, until the ticket is treated, because they say why it was sent back. It
// invalidates every older claim, as a new claim does.
func sendBack() change {
	return change{
		from: []ticket.Status{ticket.Error, ticket.Dismissed},
		set:  `status = 'TO_TREAT', attempts = 0, claims = claims + 1, next_attempt_at = now()`,
	}
}

// dismiss does not apply to TO_TREAT: a server may be treating the ticket right now, and it becomes ERROR if it cannot be read.
func dismiss(reason string) change {
	return change{
		from: []ticket.Status{ticket.Error},
		set: `status = 'DISMISSED', problems = coalesce(problems, '[]') ||
			jsonb_build_array(jsonb_build_object('line', 0, 'code', 'dismissed', 'message', $1::text))`,
		args: []any{ticket.CleanText(reason, MaxReason)},
	}
}

// MaxReason is the longest reason that is kept, in bytes. A longer one is cut.
const MaxReason = 1000

// RetryTicket sends an ERROR or DISMISSED ticket back to be treated. A ticket of another status is not changed, which is an
// error. ticket.ErrNotFound means that there is no such ticket.
func (s *Store) RetryTicket(ctx context.Context, id uuid.UUID) error {
	return s.changeOne(ctx, sendBack(), id)
}

// DismissTicket sets an ERROR ticket aside, with a reason of at most MaxReason bytes. Errors as with RetryTicket.
func (s *Store) DismissTicket(ctx context.Context, id uuid.UUID, reason string) error {
	return s.changeOne(ctx, dismiss(reason), id)
}

// RetryTickets sends the ERROR and DISMISSED tickets that a filter selects back to be treated, and returns how many. It uses
// transactions of bounded size. If it fails, it returns how many were sent back before. It does not change tickets that arrive
// after it began. With dryRun it only counts.
func (s *Store) RetryTickets(ctx context.Context, filter TicketFilter, dryRun bool) (int, error) {
	return s.changeAll(ctx, sendBack(), filter, dryRun)
}

// DismissTickets sets the ERROR tickets aside that a filter selects. The rest is as with RetryTickets.
func (s *Store) DismissTickets(ctx context.Context, filter TicketFilter, reason string, dryRun bool) (int, error) {
	return s.changeAll(ctx, dismiss(reason), filter, dryRun)
}

func (s *Store) changeOne(ctx context.Context, ch change, id uuid.UUID) error {
	c := &conditions{args: slices.Clone(ch.args)}
	c.add("received_at = ?", ticket.IDTime(id))
	c.add("id = ?", id)
	c.add("status = ANY (?)", ch.from)
	var changed int64
	err := s.on(ctx, func(conn *pgxpool.Conn) error {
		tag, err := conn.Exec(ctx, `UPDATE tickets SET `+ch.set+c.where(), c.args...)
		changed = tag.RowsAffected()
		return err
	})
	switch {
	case errors.Is(err, errUnreplicated):
		return s.awaitStandbys(ctx, place{ticket.IDTime(id), id})
	case err != nil:
		return explain("change a ticket", err)
	case changed == 1:
		return nil
	}
	t, err := s.Ticket(ctx, id)
	if err != nil {
		return err
	}
	return fmt.Errorf("ticket %s is %s: this change is only for tickets that are %s; nothing was changed",
		id, t.Status, or(ch.from))
}

func or(statuses []ticket.Status) string {
	words := make([]string, len(statuses))
	for i, status := range statuses {
		words[i] = string(status)
	}
	return strings.Join(words, " or ")
}

// changeBatch is how many tickets one transaction changes.
const changeBatch = 1000

// place is a ticket's place in time.
type place struct {
	at time.Time
	id uuid.UUID
}

// changeAll goes through the tickets of each status once, from the oldest to the newest that is there when it begins. So it does
// not change a ticket twice that is treated meanwhile and becomes ERROR again, and tickets that arrive meanwhile cannot keep
// it busy for ever. It ends when the standbys have everything. That includes the changes of an earlier call whose wait for the
// standbys was canceled, after which this call may find nothing left to change.
func (s *Store) changeAll(ctx context.Context, ch change, filter TicketFilter, dryRun bool) (int, error) {
	var newest place
	err := s.pool.QueryRow(ctx, `SELECT received_at, id FROM tickets ORDER BY received_at DESC, id DESC LIMIT 1`).
		Scan(&newest.at, &newest.id)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil
	}
	if err != nil {
		return 0, explain("look for the newest ticket", err)
	}
	total := 0
	for _, status := range ch.from {
		if len(filter.Statuses) > 0 && !slices.Contains(filter.Statuses, status) {
			continue
		}
		n := 0
		if dryRun {
			c := filter.conditions()
			err = s.pool.QueryRow(ctx, `SELECT count(*) FROM tickets`+c.where(statusIs[status]), c.args...).Scan(&n)
		} else {
			n, err = s.changeStatus(ctx, ch, filter, status, newest)
		}
		total += n
		if err != nil {
			return total, explain("change tickets", err)
		}
	}
	if dryRun {
		return total, nil
	}
	return total, s.awaitStandbys(ctx, newest)
}

// changeStatus changes the tickets of one status, up to a last place, batch by batch.
func (s *Store) changeStatus(
	ctx context.Context, ch change, filter TicketFilter, status ticket.Status, last place,
) (total int, err error) {
	var done place
	for {
		sql, args := ch.batch(filter, status, done, last)
		var changed int
		err := s.pool.QueryRow(ctx, sql, args...).Scan(&changed, &done.at, &done.id)
		if errors.Is(err, pgx.ErrNoRows) {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		total += changed
	}
}

// batch returns a statement that changes the first changeBatch tickets of a status after the place done, up to the place last.
// The statement returns how many it changed, and the place of the last one. It returns no row if there was none.
//
// It locks the tickets in the order of their places, so that two such statements cannot deadlock. It does not change a ticket
// that another process has changed meanwhile, because Postgres checks the status again after it has the lock
// (https://www.postgresql.org/docs/current/transaction-iso.html#XACT-READ-COMMITTED). The condition on the status in the
// UPDATE is a second safeguard. It is written differently from the first on purpose: otherwise Postgres might join the picked
// tickets with all tickets of that status, by the index of the status instead of the primary key.
func (ch change) batch(filter TicketFilter, status ticket.Status, done, last place) (sql string, args []any) {
	c := filter.conditions(ch.args...)
	c.add("received_at >= ?", done.at) // comparisons of rows exclude no partition: see page
	c.add("received_at <= ?", last.at)
	c.add("(received_at, id) > (?, ?)", done.at, done.id)
	c.add("(received_at, id) <= (?, ?)", last.at, last.id)
	return fmt.Sprintf(`
WITH picked AS (
    SELECT received_at, id FROM tickets%s
    ORDER BY received_at, id LIMIT %d FOR UPDATE
), changed AS (
    UPDATE tickets t SET %s FROM picked p
    WHERE t.received_at = p.received_at AND t.id = p.id AND t.status NOT IN ('TO_TREAT', 'TREATED')
    RETURNING t.id
)
SELECT (SELECT count(*) FROM changed), received_at, id FROM picked ORDER BY received_at DESC, id DESC LIMIT 1`,
		c.where(statusIs[status]), changeBatch, ch.set), c.args
}
