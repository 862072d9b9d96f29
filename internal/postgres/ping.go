package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"myticket/internal/ticket"
)

// insertProbe stores what nobody sent: one byte.
const insertProbe = `
INSERT INTO tickets (id, received_at, source, body, status) VALUES ($1, $2, 'myticket-probe', '\x0a', 'TO_TREAT')`

// emitProbe writes to the write-ahead log by itself
// (https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-REPLICATION), for when the probe's row is
// refused before anything is written.
const emitProbe = `SELECT pg_logical_emit_message(true, 'myticket', 'probe'::text) IS NOT NULL`

// lockProbe waits for whoever keeps a batch from the tables that it writes besides tickets.
const lockProbe = `LOCK TABLE products, deliveries IN ROW EXCLUSIVE MODE`

// Ping reports whether Save has a chance: whether the database answers, takes a ticket, and commits. It depends on no
// ticket that waits. It inserts a row of its own, takes that back, and commits the rest, which waits for the disk and for
// synchronous standbys as the commit of a ticket does: the row that was taken back left a transaction id and a record in
// the write-ahead log (RecordTransactionCommit in Postgres' xact.c waits only where there are both). Nothing stays in a
// table. A database that refuses the row because of its content (somebody's trigger or constraint) answers, too.
//
// The error is ticket.ErrUnavailable: the database does not answer, a table is locked or missing, the role may not write,
// or the server is read-only.
func (s *Store) Ping(ctx context.Context) error {
	id, at, err := ticket.NewID()
	if err != nil {
		return fmt.Errorf("make an id: %w", err)
	}
	err = s.on(ctx, func(conn *pgxpool.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			if err := takenBack(ctx, tx, insertProbe, id, at); err != nil && !refused(err) {
				return err
			}
			if err := takenBack(ctx, tx, emitProbe); err != nil && !isCode(err, insufficientPrivilege) {
				return err
			}
			_, err := tx.Exec(ctx, lockProbe)
			return err
		})
	})
	if err == nil {
		return nil
	}
	if broken(err) {
		s.pool.Reset()
	}
	if isCode(err, readOnlyTransaction) {
		err = fmt.Errorf("the server is read-only, so it is a standby, or a primary that was demoted: %w", err)
	}
	return explain("ask the database", err)
}

// SQLSTATEs (https://www.postgresql.org/docs/current/errcodes-appendix.html).
const (
	insufficientPrivilege = "42501"
	readOnlyTransaction   = "25006"
)

// takenBack runs a statement behind a savepoint, and returns to that.
func takenBack(ctx context.Context, tx pgx.Tx, sql string, args ...any) error {
	savepoint, err := tx.Begin(ctx)
	if err != nil {
		return err
	}
	_, err = savepoint.Exec(ctx, sql, args...)
	return errors.Join(err, savepoint.Rollback(ctx))
}
