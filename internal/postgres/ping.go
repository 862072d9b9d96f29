package postgres

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"myticket/internal/ticket"
)

// insertProbe inserts a row that no sender sent: one byte.
const insertProbe = `
INSERT INTO tickets (id, received_at, source, body, status) VALUES ($1, $2, 'myticket-probe', '\x0a', 'TO_TREAT')`

// emitProbe writes to the write-ahead log without a table
// (https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-REPLICATION). It is needed if the row of insertProbe
// is refused before anything is written.
const emitProbe = `SELECT pg_logical_emit_message(true, 'myticket', 'probe'::text) IS NOT NULL`

// lockProbe waits for sessions that block the other tables that a batch writes.
const lockProbe = `LOCK TABLE products, deliveries, outbox IN ROW EXCLUSIVE MODE`

// Ping reports whether Save has a chance: whether the database answers, takes a ticket, and commits. It uses no ticket that
// waits. It inserts a row of its own, rolls that back to a savepoint, and commits. The commit waits for the disk and for
// synchronous standbys as that of a ticket does, because the row left a transaction id and a record in the write-ahead log
// (RecordTransactionCommit in Postgres' xact.c waits only if there are both). Nothing stays in a table. If a trigger or a
// constraint of a user refuses the row, the database still counts as answering.
//
// The error is ticket.ErrUnavailable: the database does not answer, a table is locked or missing, the role may not write, or
// the server is read-only.
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
		err = fmt.Errorf("the server is read-only, because it is a standby or was demoted to one: %w", err)
	}
	return explain("ask the database", err)
}

// takenBack runs a statement after a savepoint, and rolls back to that.
func takenBack(ctx context.Context, tx pgx.Tx, sql string, args ...any) error {
	savepoint, err := tx.Begin(ctx)
	if err != nil {
		return err
	}
	_, err = savepoint.Exec(ctx, sql, args...)
	return errors.Join(err, savepoint.Rollback(ctx))
}
