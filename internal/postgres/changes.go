package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"myticket/internal/ticket"
)

// Change is what a person does with tickets. It is one of Retry, Dismiss and Reopen.
type Change struct {
	action  string          // in the audit
	from    []ticket.Status // the statuses that it applies to
	byName  []ticket.Status // of these: only if a filter or an id names them
	set     string          // of its UPDATE
	written string          // how many bytes of a ticket it writes, besides the row
	reason  bool            // $1 is the reason
}

var (
	// Retry sends ERROR and DISMISSED tickets back to be treated. It leaves DISMISSED ones alone if a filter does not name that
	// status, because a person has looked at them.
	//
	// It keeps the problems, with the dismissal, until the ticket is treated, because they say why it was sent back. It
	// invalidates every older claim, as a new claim does. It forgets the dialect, because a server of the version before may treat
	// the ticket, without one, and does not note that.
	Retry = Change{
		action: ActionRetry,
		from:   []ticket.Status{ticket.Error, ticket.Dismissed},
		byName: []ticket.Status{ticket.Dismissed},
		set: `status = 'TO_TREAT', attempts = 0, claims = claims + 1, next_attempt_at = now(), problem_group = NULL,
			dialect = 0`,
		written: `0`,
	}

	// Dismiss sets ERROR tickets aside, with the person's reason. It does not apply to TO_TREAT: a server may be treating the
	// ticket right now, and it becomes ERROR if it cannot be read.
	Dismiss = Change{
		action: ActionDismiss,
		from:   []ticket.Status{ticket.Error},
		set: `status = 'DISMISSED', problems = coalesce(problems, '[]') ||
			jsonb_build_array(jsonb_build_object('line', 0, 'code', 'dismissed', 'message', $1::text))`,
		written: problemsSize, reason: true,
	}

	// Reopen undoes Dismiss: the tickets are ERROR again, with the problems that they had before.
	Reopen = Change{
		action: ActionReopen,
		from:   []ticket.Status{ticket.Dismissed},
		set: `status = 'ERROR', problems = CASE WHEN problems -> -1 ->> 'code' = 'dismissed'
			THEN nullif(problems - -1, '[]') ELSE problems END`,
		written: problemsSize,
	}
)

const problemsSize = `coalesce(pg_column_size(problems), 0)`

// From returns the statuses that the change applies to.
func (ch Change) From() []ticket.Status { return slices.Clone(ch.from) }

// statuses returns the statuses that the change applies to with a filter.
func (ch Change) statuses(filter TicketFilter) []ticket.Status {
	return slices.DeleteFunc(slices.Clone(ch.from), func(status ticket.Status) bool {
		if len(filter.Statuses) == 0 {
			return slices.Contains(ch.byName, status)
		}
		return !slices.Contains(filter.Statuses, status)
	})
}

// is returns the condition on the status with a filter: see statusIs.
func (ch Change) is(filter TicketFilter) string {
	var is []string
	for _, status := range ch.statuses(filter) {
		is = append(is, statusIs[status])
	}
	if len(is) == 0 {
		return `false`
	}
	return `(` + strings.Join(is, ` OR `) + `)`
}

// args returns the first parameters of a statement that makes the change.
func (ch Change) args(by Person) []any {
	if !ch.reason {
		return nil
	}
	return []any{ticket.CleanText(by.Why, MaxReason)}
}

// ChangeTicket changes one ticket. A ticket of a status that the change does not apply to is not changed, which is an error.
// ticket.ErrNotFound means that there is no such ticket.
func (s *Store) ChangeTicket(ctx context.Context, by Person, ch Change, id uuid.UUID) error {
	c := &conditions{args: ch.args(by)}
	c.add("received_at = ?", ticket.IDTime(id))
	c.add("id = ?", id)
	c.add("status = ANY (?)", ch.from)
	var changed int64
	err := s.on(ctx, func(conn *pgxpool.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			tag, err := tx.Exec(ctx, `UPDATE tickets SET `+ch.set+c.where(), c.args...)
			changed = tag.RowsAffected()
			if err != nil || changed == 0 {
				return err
			}
			if _, err := tx.Exec(ctx, insertChanged, id); err != nil {
				return err
			}
			return audit(ctx, tx, AuditEntry{Who: by.Who, Why: by.Why, Action: ch.action, Filter: map[string]any{"id": id}, Tickets: 1})
		})
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

// place is a ticket's place in time.
type place struct {
	at time.Time
	id uuid.UUID
}

// Bulk is a change of all tickets that a filter selects.
type Bulk struct {
	Filter TicketFilter

	// After is a ticket up to which all are left alone, as those of a run that was interrupted. Defaults to none.
	After uuid.UUID

	// Newest is the last ticket that may be changed, as in the Preview. Defaults to the newest one when the run begins.
	Newest uuid.UUID

	// Share is the share of the time in which the run works, from 0 to 1: after each batch it pauses for as long as that
	// takes. Defaults to 1.
	Share float64

	// Progress is called after each batch with what was done so far. Defaults to nothing.
	Progress func(Done)
}

// Done is how far a bulk change has come.
type Done struct {
	Tickets int       `json:"tickets"`  // that were changed
	Last    uuid.UUID `json:"last"`     // all up to this one are done
	Ended   bool      `json:"complete"` // no ticket is left
}

// Preview is what a bulk change would change.
type Preview struct {
	Tickets int           `json:"tickets"`
	Groups  []TicketGroup `json:"groups"` // the largest first, at most previewGroups
	Others  int           `json:"others"` // tickets in further groups
	Newest  uuid.UUID     `json:"newest"` // for Bulk
}

// TicketGroup are tickets that have something in common.
type TicketGroup struct {
	Source  string        `json:"source"`
	Status  ticket.Status `json:"status"`
	Problem string        `json:"problem"` // the code of the first one; empty if there is none
	Tickets int           `json:"tickets"`
}

const previewGroups = 20

// Limits of a bulk change.
const (
	changeBatch = 1000    // tickets that one transaction changes
	changeBytes = 4 << 20 // about what one transaction writes, unless it is a single ticket
	changeGrace = 5 * time.Second
	changeTries = 5 // of a batch that loses against other transactions
)

// PreviewChange counts what a bulk change would change.
func (s *Store) PreviewChange(ctx context.Context, ch Change, bulk Bulk) (Preview, error) {
	preview := Preview{Groups: []TicketGroup{}}
	err := s.atLeisure(ctx, func(tx pgx.Tx) error {
		newest, err := newestTicket(ctx, tx)
		if err != nil {
			return err
		}
		preview.Newest = newest.id
		c := bulk.Filter.conditions()
		bulk.within(c, place{ticket.IDTime(bulk.After), bulk.After}, newest)
		rows, err := tx.Query(ctx, `
			SELECT source, status, coalesce(problems -> 0 ->> 'code', ''), count(*), sum(count(*)) OVER ()::bigint
			FROM tickets t`+c.where(ch.is(bulk.Filter))+`
			GROUP BY 1, 2, 3 ORDER BY 4 DESC, 1, 2, 3 LIMIT `+strconv.Itoa(previewGroups), c.args...)
		if err != nil {
			return err
		}
		var g TicketGroup
		_, err = pgx.ForEachRow(rows, []any{&g.Source, &g.Status, &g.Problem, &g.Tickets, &preview.Tickets}, func() error {
			preview.Groups = append(preview.Groups, g)
			return nil
		})
		return err
	})
	if errors.Is(err, pgx.ErrNoRows) {
		return preview, nil
	}
	preview.Others = preview.Tickets
	for _, g := range preview.Groups {
		preview.Others -= g.Tickets
	}
	return preview, explain("count tickets", err)
}

type querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func newestTicket(ctx context.Context, db querier) (newest place, err error) {
	return newest, db.QueryRow(ctx, `SELECT received_at, id FROM tickets ORDER BY received_at DESC, id DESC LIMIT 1`).
		Scan(&newest.at, &newest.id)
}

// within adds the conditions for tickets after a place, up to another one.
func (b Bulk) within(c *conditions, after, last place) {
	if after.id != uuid.Nil {
		c.add("received_at >= ?", after.at) // comparisons of rows exclude no partition: see page
		c.add("(received_at, id) > (?, ?)", after.at, after.id)
	}
	c.add("received_at <= ?", last.at)
	c.add("(received_at, id) <= (?, ?)", last.at, last.id)
}

// ChangeTickets makes a change of all tickets that a filter selects, in transactions of bounded size.
//
// It goes through the tickets once, from the oldest to the newest that is there when it begins. So it does not change a ticket
// twice that is treated meanwhile and becomes ERROR again, and tickets that arrive meanwhile cannot keep it busy for ever.
//
// Each transaction adds its own row to the audit. So the audit is right at every moment, also of a run that is killed. When ctx
// ends, the run ends after the batch that is under way. Whether it fails or is canceled, what it returns was changed. The same
// call then goes on with what is left, and with Bulk.After it passes over what was done.
//
// It ends when the standbys have everything. That includes the changes of an earlier call whose wait for the standbys was
// canceled, after which this call may find nothing left to change.
func (s *Store) ChangeTickets(ctx context.Context, by Person, ch Change, bulk Bulk) (Done, error) {
	done := Done{Last: bulk.After}
	newest, err := newestTicket(ctx, s.pool)
	if errors.Is(err, pgx.ErrNoRows) {
		return Done{Ended: true}, nil
	}
	if err != nil {
		return done, explain("look for the newest ticket", err)
	}
	if bulk.Newest != uuid.Nil {
		newest = place{ticket.IDTime(bulk.Newest), bulk.Newest}
	}
	run := &bulkRun{store: s, by: by, change: ch, bulk: bulk, newest: newest}
	if bulk.After != uuid.Nil {
		run.last = place{ticket.IDTime(bulk.After), bulk.After}
	}
	for {
		if ctx.Err() != nil {
			return done, ctx.Err()
		}
		start := time.Now()
		changed, more, err := run.next(ctx)
		if err != nil {
			return done, explain("change tickets", err)
		}
		if !more {
			break
		}
		done.Tickets, done.Last = done.Tickets+changed, run.last.id
		if bulk.Progress != nil {
			bulk.Progress(done)
		}
		if bulk.Share > 0 && bulk.Share < 1 {
			pause(ctx, time.Duration(float64(time.Since(start))*(1/bulk.Share-1)))
		}
	}
	done.Ended = true
	return done, s.awaitStandbys(ctx, newest)
}

// bulkRun is a run of ChangeTickets.
type bulkRun struct {
	store  *Store
	by     Person
	change Change
	bulk   Bulk
	newest place
	last   place // all up to this one are done
	head   int64 // the run's first row in the audit, or 0
}

// next changes the next batch. It reports false if there is none. A batch that ctx ends in the middle of has changeGrace to
// complete.
func (r *bulkRun) next(ctx context.Context) (changed int, more bool, err error) {
	ctx, cancel := graceful(ctx, changeGrace)
	defer cancel()
	for try := 1; ; try++ {
		changed, more, err = r.batch(ctx)
		if !transient(err) || try == changeTries {
			return changed, more, err
		}
		pause(ctx, retryPause)
	}
}

// graceful returns a context that ends some time after ctx.
func graceful(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	late, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		pause(late, grace)
		cancel()
	})
	return late, func() { stop(); cancel() }
}

// batch is one transaction: a batch, and its row in the audit.
func (r *bulkRun) batch(ctx context.Context) (changed int, more bool, err error) {
	sql, args := r.change.batch(r.by, r.bulk, r.last, r.newest)
	last, head := r.last, r.head
	err = r.store.on(ctx, func(conn *pgxpool.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			err := tx.QueryRow(ctx, sql, args...).Scan(&changed, &last.at, &last.id)
			more = err == nil
			if errors.Is(err, pgx.ErrNoRows) {
				return nil
			}
			if err != nil || changed == 0 {
				return err
			}
			details := map[string]any{"last": last.id}
			if head != 0 {
				details["run"] = head
			}
			id, err := auditRow(ctx, tx, AuditEntry{
				Who: r.by.Who, Why: r.by.Why, Action: r.change.action, Filter: r.bulk.Filter, Tickets: changed, Details: details,
			})
			if head == 0 {
				head = id
			}
			return err
		})
	})
	if errors.Is(err, errUnreplicated) {
		err = nil // it is committed; the end of the run waits for the standbys
	}
	if err != nil {
		return 0, false, err
	}
	r.last, r.head = last, head
	return changed, more, nil
}

// batch returns a statement that changes the first tickets after the place done, up to the place last: at most changeBatch, and
// about changeBytes. The statement returns how many it changed, and the place of the last one. It returns no row if there was
// none.
//
// It notes them in the outbox.
//
// It locks the tickets in the order of their places, so that two such statements cannot deadlock. It does not change a ticket
// that another process has changed meanwhile, because Postgres checks the status again after it has the lock
// (https://www.postgresql.org/docs/current/transaction-iso.html#XACT-READ-COMMITTED). The condition on the status in the
// UPDATE is a second safeguard. It is written differently from the first on purpose: otherwise Postgres might join the picked
// tickets with all tickets of that status, by the index of the status instead of the primary key.
//
// A long body is in a table of its own, and is not written again. Of a short one, the row has at most about 2 kB.
func (ch Change) batch(by Person, bulk Bulk, done, last place) (sql string, args []any) {
	c := bulk.Filter.conditions(ch.args(by)...)
	bulk.within(c, done, last)
	var others []string
	for _, status := range ticket.Statuses() {
		if !slices.Contains(ch.from, status) {
			others = append(others, `'`+string(status)+`'`)
		}
	}
	return fmt.Sprintf(`
WITH picked AS (
    SELECT received_at, id, 200 + least(pg_column_size(body), 2000) + %s AS bytes FROM tickets t%s
    ORDER BY received_at, id LIMIT %d FOR UPDATE
), bounded AS (
    SELECT received_at, id
    FROM (SELECT received_at, id, bytes, sum(bytes) OVER (ORDER BY received_at, id) AS total FROM picked) p
    WHERE total = bytes OR total <= %d
), changed AS (
    UPDATE tickets t SET %s FROM bounded p
    WHERE t.received_at = p.received_at AND t.id = p.id AND t.status NOT IN (%s)
    RETURNING t.received_at, t.id
), told AS (
    INSERT INTO outbox (kind, tickets)
    SELECT '%s', string_agg(uuid_send(id), ''::bytea ORDER BY received_at, id) FROM changed HAVING count(*) > 0
)
SELECT (SELECT count(*) FROM changed), received_at, id FROM bounded ORDER BY received_at DESC, id DESC LIMIT 1`,
		ch.written, c.where(ch.is(bulk.Filter)), changeBatch, changeBytes, ch.set, strings.Join(others, `, `), kindChanged), c.args
}
