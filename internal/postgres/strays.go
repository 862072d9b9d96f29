package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
)

// A default partition that holds many tickets cannot be emptied in one transaction, because all its writers would wait for that.
// So its table is detached and renamed, which makes it an ordinary table, and its tickets are moved to their partitions in
// pieces. Until then the tickets are in the database, but not in the table tickets: no query finds them, and none is treated. A
// delivery that is sent again meanwhile is stored again, which the move notices.

// strayTable is the name of such tables, followed by a number. They are found by that name and their columns, so the next process
// finds what a killed process left behind.
const strayTable = "tickets_strays"

// strayTables lists them, quoted.
const strayTables = `
SELECT c.oid::regclass::text
FROM pg_class c JOIN pg_class t ON t.oid = 'tickets'::regclass AND t.relnamespace = c.relnamespace
WHERE c.relname ~ '^` + strayTable + `_[0-9]+$' AND c.relkind = 'r' AND NOT c.relispartition
  AND 5 = (SELECT count(*) FROM pg_attribute a
           WHERE a.attrelid = c.oid AND a.attname IN ('id', 'received_at', 'source', 'body', 'status') AND NOT a.attisdropped)
ORDER BY length(c.relname), c.relname`

// setAside replaces the default partition by an empty table. The old table becomes one of strayTables. Everything waits
// meanwhile, but only for the time to write a few rows of the catalog.
func (s *Store) setAside(ctx context.Context) error {
	_, err := s.keepUp(ctx, "set the default partition aside", func(up upkeep) error {
		if _, tooMuch, err := up.load(ctx, always); err != nil || !tooMuch { // another process was faster
			return err
		}
		if err := up.lock(ctx, "tickets", up.partition); err != nil { // the parent first, as in all transactions
			return err
		}
		name, err := up.freeName(ctx, strayTable, 1)
		if err != nil {
			return err
		}
		aside, fresh := pgx.Identifier{name}.Sanitize(), up.table(up.defaultName)
		return up.run(ctx,
			`ALTER TABLE tickets DETACH PARTITION `+up.partition,
			`ALTER TABLE `+up.partition+` RENAME TO `+aside,
			`COMMENT ON TABLE `+up.schema+`.`+aside+` IS 'Tickets of a full default partition. '
				'MyTicket moves them to tickets, and drops this table when it is empty'`,
			`CREATE TABLE `+fresh+` (LIKE tickets INCLUDING ALL)`,
			`ALTER TABLE tickets ATTACH PARTITION `+fresh+` DEFAULT`,
		)
	})
	return err
}

// Strays counts the tickets that were set aside and wait for MoveStrays, up to 100,000 per table.
func (s *Store) Strays(ctx context.Context) (int, error) {
	tables, err := s.strayTables(ctx)
	total := 0
	for _, table := range tables {
		var n int
		err := s.pool.QueryRow(ctx, `SELECT count(*) FROM (SELECT FROM `+table+` LIMIT $1) t`, backlogLimit).Scan(&n)
		if err != nil && !isCode(err, undefinedTable) { // it was empty, and was dropped meanwhile
			return 0, explain("count tickets that were set aside", err)
		}
		total += n
	}
	return total, err
}

func (s *Store) strayTables(ctx context.Context) ([]string, error) {
	rows, err := s.pool.Query(ctx, strayTables)
	if err != nil {
		return nil, explain("look for tickets that were set aside", err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return tables, explain("look for tickets that were set aside", err)
}

// errSetAside means that tickets which count are set aside.
var errSetAside = errors.New("tickets of that time were set aside with a full default partition, and are not moved to their " +
	"partitions yet (myticket_strays)")

// noneSetAside returns errSetAside if tickets of a time are set aside. Until the transaction ends, none will be.
func noneSetAside(ctx context.Context, tx pgx.Tx, from, to time.Time) error {
	if _, err := tx.Exec(ctx, `LOCK TABLE ONLY tickets IN ACCESS SHARE MODE`); err != nil {
		return err
	}
	rows, err := tx.Query(ctx, strayTables)
	if err != nil {
		return err
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, table := range tables {
		var found bool
		err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+table+` WHERE received_at >= $1 AND received_at <= $2)`, from, to).
			Scan(&found)
		if found || isCode(err, undefinedTable) { // it was dropped a moment ago
			return errSetAside
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// pieceTimeout bounds the transaction that moves a piece. After a timeout the pieces are made smaller.
const pieceTimeout = 5 * time.Second

// MoveStrays moves the tickets that EnsurePartitions has set aside to their partitions, and makes those. It uses transactions of
// at most pieceTickets and pieceBytes, and pauses after each for as long as that took, so that no other session waits for long.
// If a ticket was stored again meanwhile, the newer row stays. If it is interrupted, what it has moved stays moved. Tickets that
// cannot be moved stay where they are, do not stop the others, and are an error. It starts nothing new after atMost. It returns
// how many tickets it moved, and whether there is more to do.
func (s *Store) MoveStrays(ctx context.Context, period Period, atMost time.Duration) (moved int, more bool, err error) {
	tables, err := s.strayTables(ctx)
	failures := []error{err}
	end := time.Now().Add(atMost)
	for _, table := range tables {
		m := mover{store: s, table: table, period: period, limit: pieceTickets, end: end}
		err := m.run(ctx)
		moved += m.moved
		switch {
		case errors.Is(err, errBusy), isCode(err, undefinedTable): // another process moves them, or has dropped the table
		case errors.Is(err, errTimeIsUp):
			return moved, true, errors.Join(failures...)
		default:
			failures = append(failures, err)
		}
	}
	return moved, false, errors.Join(failures...)
}

// errTimeIsUp means that a mover has not finished.
var errTimeIsUp = errors.New("the time for moving tickets is up")

// mover moves the tickets of one table.
type mover struct {
	store  *Store
	table  string // quoted
	period Period
	limit  int // tickets in a piece
	end    time.Time
	done   place // all tickets before it were moved, or cannot be
	moved  int
}

// run moves the tickets period by period, the oldest first, and drops the table when it is empty.
func (m *mover) run(ctx context.Context) error {
	var failures []error
	for {
		var next time.Time
		err := m.store.pool.QueryRow(ctx, `SELECT received_at FROM `+m.table+` WHERE received_at >= $1 AND (received_at, id) > ($1, $2)
			ORDER BY received_at, id LIMIT 1`, m.done.at, m.done.id).Scan(&next)
		switch {
		case errors.Is(err, pgx.ErrNoRows) && len(failures) == 0:
			return m.drop(ctx)
		case errors.Is(err, pgx.ErrNoRows):
			return errors.Join(failures...)
		case err != nil:
			return explain("move tickets that were set aside", err)
		}
		wanted := span{from: m.period.start(next)}
		wanted.to = m.period.next(wanted.from)
		err = m.moveSpan(ctx, wanted)
		if errors.Is(err, errBusy) || errors.Is(err, errTimeIsUp) || ctx.Err() != nil {
			return err
		}
		if err != nil {
			failures = append(failures, fmt.Errorf("tickets in %s stay where no query finds them: %w", m.table, err))
		}
		m.done = place{wanted.to.Add(-time.Microsecond), uuid.Max}
	}
}

func (m *mover) moveSpan(ctx context.Context, wanted span) error {
	if _, err := m.store.ensureSpan(ctx, wanted); err != nil {
		return err
	}
	for time.Now().Before(m.end) {
		start := time.Now()
		n, err := m.movePiece(ctx, wanted.to)
		switch {
		case errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil && m.limit > 1:
			m.limit /= 2
		case err != nil || n == 0:
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Since(start)):
		}
	}
	return errTimeIsUp
}

// piece picks the first tickets of a table after a place and before a time, and moves them. A reader of the outbox that looked
// for them meanwhile has not found them, so it is told again.
const piece = `
WITH first AS (
    SELECT received_at, id, pg_column_size(body)::bigint AS bytes FROM %[1]s
    WHERE received_at >= $1 AND received_at < $3 AND (received_at, id) > ($1, $2)
    ORDER BY received_at, id LIMIT $4
), piece AS (
    SELECT received_at, id FROM (
        SELECT received_at, id, sum(bytes) OVER w AS bytes, row_number() OVER w AS n FROM first
        WINDOW w AS (ORDER BY received_at, id ROWS UNBOUNDED PRECEDING)) f
    WHERE n = 1 OR bytes <= $5
), moved AS (
    DELETE FROM %[1]s s USING piece p WHERE s.received_at = p.received_at AND s.id = p.id RETURNING s.*
), kept AS (
    INSERT INTO tickets (%[2]s) SELECT %[2]s FROM moved ON CONFLICT (received_at, id) DO NOTHING
), told AS (
    INSERT INTO outbox (kind, tickets)
    SELECT 'moved', string_agg(uuid_send(id), ''::bytea) FROM moved HAVING count(*) > 0
)
SELECT (SELECT count(*) FROM moved), received_at, id FROM piece ORDER BY received_at DESC, id DESC LIMIT 1`

// movePiece moves the next tickets before a time, and returns how many; 0 if there are none.
func (m *mover) movePiece(ctx context.Context, before time.Time) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, pieceTimeout)
	defer cancel()
	var last place
	mine, err := m.store.keepUp(ctx, "move tickets that were set aside", func(up upkeep) error {
		columns, err := up.columns(ctx, m.table)
		if err != nil {
			return err
		}
		err = up.QueryRow(ctx, fmt.Sprintf(piece, m.table, columns), m.done.at, m.done.id, before, m.limit, pieceBytes).
			Scan(&n, &last.at, &last.id)
		if errors.Is(err, pgx.ErrNoRows) {
			n = 0
			return nil
		}
		return err
	})
	if err == nil && !mine {
		return 0, errBusy
	}
	if err != nil {
		return 0, err
	}
	if n > 0 {
		m.done = last
		m.moved += n
	}
	return n, nil
}

// drop drops the table if it is empty.
func (m *mover) drop(ctx context.Context) error {
	mine, err := m.store.keepUp(ctx, "drop an empty table of tickets that were set aside", func(up upkeep) error {
		var left bool
		if err := up.run(ctx, `LOCK TABLE `+m.table+` IN ACCESS EXCLUSIVE MODE`); err != nil {
			return err
		}
		if err := up.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+m.table+`)`).Scan(&left); err != nil || left {
			return err // tickets that another process could not move; the next round tries again
		}
		return up.run(ctx, `DROP TABLE `+m.table)
	})
	if err == nil && !mine {
		return errBusy
	}
	return err
}
