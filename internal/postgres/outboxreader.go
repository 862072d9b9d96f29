package postgres

import (
	"context"
	"encoding/binary"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// outboxReader reads the outbox in the order of its transactions, at least once, from the place that is stored under its name.
// Several processes may have a reader of the same name. One of them reads, for as long as it takes steps: with each step it
// takes the place for outboxHold. After that any other may follow. That is not what keeps them apart, though. A step moves the
// place only from where the process found it, so of two that take the same step one changes nothing.
//
// An advisory lock of a session would do the same with a connection for each server, and after a host vanished Postgres would
// keep it until TCP notices.
type outboxReader struct {
	store *Store
	name  string
	me    uuid.UUID // this process
}

// outboxHold is how long after its last step a process keeps its turn.
const outboxHold = 10 * time.Second

// outboxRow is a batch of tickets.
type outboxRow struct {
	xid     uint64
	at      time.Time
	age     time.Duration // by Postgres' clock
	tickets []byte        // their ids, 16 bytes each
	kind    string        // what became of them
}

// outboxChunk is what comes after a reader's place.
type outboxChunk struct {
	after uint64 // the place
	rows  []outboxRow
	more  bool // there may be more after it
}

// outboxStep is a move of a reader's place. A step of the zero xid only keeps the turn.
type outboxStep struct {
	from, to uint64
	at       time.Time  // of the last row that was read
	of       *outboxRow // which the last of the tickets is of; nil for none
}

// notHeld reports whether no process has the turn. A time far ahead was set while Postgres' clock was wrong: until then no other
// process would follow one that was killed.
const notHeld = `held_until NOT BETWEEN clock_timestamp() AND clock_timestamp() + interval '1 minute'`

// ownPlace is the place up to which this version has read, or up to which any has if it never did.
const ownPlace = `least(r.xid, r.own_xid)`

// readerPlace returns a reader's place, whether this process may read, and whether the place belongs to these transactions. A
// place that no transaction has reached is one of another cluster with the same identifier: one of them is a copy of the other.
//
// The version before reads neither dialects nor corrections, and steps over lines that need them. So if it went on to read, this
// version goes back to its own place.
const readerPlace = `
SELECT ` + ownPlace + `, r.holder = $2 OR ` + notHeld + `,
       r.system_identifier = c.system_identifier AND r.xid < pg_snapshot_xmax(pg_current_snapshot())
FROM outbox_readers r, pg_control_system() c
WHERE r.name = $1`

const addReader = `
INSERT INTO outbox_readers (name, system_identifier, xid, at)
SELECT $1, system_identifier, '0', '-infinity' FROM pg_control_system()
ON CONFLICT (name) DO NOTHING`

// nextInOutbox returns all rows of a transaction or none. Below pg_snapshot_xmin no row can appear any more.
const nextInOutbox = `
SELECT xid, at, extract(epoch FROM clock_timestamp() - at)::float8, tickets, kind FROM outbox
WHERE xid > $1 AND xid < pg_snapshot_xmin(pg_current_snapshot())
ORDER BY xid FETCH FIRST ($2) ROWS WITH TIES`

// steady runs a transaction whose snapshot is older than the plans of its statements. A statement alone is planned first. If it
// then waits while a partition is made, it looks for rows only where they were before, and sees that they are not there any more.
//
// It also forbids plans that read all of the outbox after a place and sort it, which seem right while that is little.
func (s *Store) steady(ctx context.Context, read func(pgx.Tx) error) error {
	return pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{BeginQuery: beginSteady}, read)
}

const beginSteady = `BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
	SET LOCAL enable_bitmapscan = off; SET LOCAL enable_sort = off`

// renumberTimeout bounds the statements that go through the whole outbox.
const renumberTimeout = 5 * time.Minute

// next returns at least limit rows after the reader's place, or all that there are. It returns none if another process reads.
func (r outboxReader) next(ctx context.Context, limit int, timeout time.Duration) (outboxChunk, error) {
	short, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var chunk outboxChunk
	var free, here bool
	err := r.store.steady(short, func(tx pgx.Tx) error {
		err := tx.QueryRow(short, readerPlace, r.name, r.me).Scan(&chunk.after, &free, &here)
		if err != nil || !free || !here {
			return err
		}
		chunk.rows, err = readOutbox(short, tx, chunk.after, limit)
		chunk.more = len(chunk.rows) >= limit
		return err
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		_, err = r.store.pool.Exec(short, addReader, r.name)
		return outboxChunk{more: true}, err
	case err == nil && free && !here:
		long, cancel := context.WithTimeout(ctx, renumberTimeout)
		defer cancel()
		return outboxChunk{more: true}, r.store.renumberOutbox(long, r.name)
	}
	return chunk, err
}

// readOutbox reads at least limit rows after a place, or all that there are, in a steady transaction.
func readOutbox(ctx context.Context, tx pgx.Tx, after uint64, limit int) ([]outboxRow, error) {
	rows, err := tx.Query(ctx, nextInOutbox, after, limit)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (o outboxRow, err error) {
		var age float64
		err = row.Scan(&o.xid, &o.at, &age, &o.tickets, &o.kind)
		o.age = seconds(age)
		return o, err
	})
}

// moveReader is part of the transaction that makes use of what was read. That transaction does not wait for the disk or a
// standby: if it is lost, the place is lost with it, and the rows are read again.
//
// The place moves only to a row that is there. If it is not, Postgres failed over, the transactions that were read were lost, and
// others have their numbers. The reader then goes on from its place, and reads those.
const moveReader = `
UPDATE outbox_readers r
SET xid = $3, own_xid = $3, at = greatest(at, $4), holder = $5, held_until = clock_timestamp() + $6::interval
WHERE name = $1 AND ` + ownPlace + ` = $2 AND (holder = $5 OR ` + notHeld + `)
  AND ($4::timestamptz IS NULL OR EXISTS (SELECT FROM outbox o WHERE o.xid = $3 AND o.at = $4))
  AND set_config('synchronous_commit', 'off', true) <> ''`

var moveFormats = []int16{formatText, formatBinary, formatBinary, formatBinary, formatBinary, formatBinary}

// errNotReader means that another process reads now, or that Postgres lost what was read.
var errNotReader = errors.New("another process reads the outbox, or Postgres failed over and lost what was read")

// queue adds the statement for a step to a batch. If it then changes no row, another process has the turn.
func (r outboxReader) queue(ctx context.Context, conn *pgx.Conn, batch *pgconn.Batch, step outboxStep) error {
	move, err := conn.Prepare(ctx, moveReader, moveReader)
	if err != nil {
		return err
	}
	to, at := step.from, []byte(nil)
	if step.to != 0 {
		to, at = step.to, appendTime(nil, step.at)
	}
	batch.ExecPrepared(move.Name, [][]byte{
		[]byte(r.name), appendXID(step.from), appendXID(to), at, r.me[:], appendInterval(nil, outboxHold),
	}, moveFormats, nil)
	return nil
}

func appendXID(xid uint64) []byte { return binary.BigEndian.AppendUint64(nil, xid) }

// leave lets another process follow at once.
func (r outboxReader) leave(ctx context.Context) error {
	_, err := r.store.pool.Exec(ctx,
		`UPDATE outbox_readers SET held_until = '-infinity' WHERE name = $1 AND holder = $2`, r.name, r.me)
	return err
}

// Rows of the outbox that were copied from another cluster (a dump and a restore) have transactions of that cluster. They may be
// later than all of this one, so pg_snapshot_xmin says nothing about them. A row that was inserted here shows the same
// transaction in xmin, which has 32 bits (https://www.postgresql.org/docs/current/ddl-system-columns.html).
const (
	copiedRow = `o.xmin::text::bigint <> (o.xid::text::numeric % 4294967296)::bigint`

	lockReaders = `SELECT FROM outbox_readers ORDER BY name FOR UPDATE`

	// deleteCopied deletes what all readers have read.
	deleteCopied = `
DELETE FROM outbox o WHERE ` + copiedRow + ` AND o.at <= (SELECT min(at) FROM outbox_readers)
  AND o.xid <= (SELECT xid FROM outbox_readers ORDER BY xid LIMIT 1)`

	// renumberCopied gives the rows that are left transactions from 1 to 500, in their order. Every cluster has used up more
	// than those before it has a database of a user. Each has a 500th of the rows, so that no reader must take too many at once.
	renumberCopied = `
WITH ordered AS (
    SELECT o.xid, row_number() OVER (ORDER BY o.xid) AS n, count(*) OVER () AS total FROM outbox o WHERE ` + copiedRow + `
), bounds AS MATERIALIZED (
    SELECT coalesce(array_agg(xid ORDER BY xid), '{}') AS xids FROM ordered WHERE n % (total / 500 + 1) = 0
)
UPDATE outbox o SET xid = (1 + width_bucket(o.xid, (SELECT xids FROM bounds)))::text::xid8 WHERE ` + copiedRow

	resetReaders = `
UPDATE outbox_readers
SET xid = '0', own_xid = NULL, system_identifier = (SELECT system_identifier FROM pg_control_system())`
)

// renumberOutbox makes an outbox that was copied from another cluster one of this cluster. What one of its readers had not read
// is read by all of them, with some of what they had read.
func (s *Store) renumberOutbox(ctx context.Context, name string) error {
	var deleted, renumbered int64
	err := pgx.BeginFunc(ctx, s.pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, lockReaders); err != nil {
			return err
		}
		var xid uint64
		var free, here bool // again, because another process may have been faster
		if err := tx.QueryRow(ctx, readerPlace, name, uuid.Nil).Scan(&xid, &free, &here); err != nil || here {
			return err
		}
		done, err := tx.Exec(ctx, deleteCopied)
		if err != nil {
			return err
		}
		deleted = done.RowsAffected()
		if done, err = tx.Exec(ctx, renumberCopied); err != nil {
			return err
		}
		renumbered = done.RowsAffected()
		_, err = tx.Exec(ctx, resetReaders)
		return err
	})
	if err == nil {
		s.logger.Info("the outbox was copied from another database cluster; its readers go on where they were there",
			"unread", renumbered, "read", deleted)
	}
	return err
}
