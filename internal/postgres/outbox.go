package postgres

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Kinds of rows in the outbox: see migrations 4 and 13. There is also moved.
const (
	kindStored   = "stored"
	kindTreated  = "treated"
	kindChanged  = "changed"
	kindProducts = "products"
)

// insertChanged notes a ticket that a person changed, in the transaction of the change.
const insertChanged = `INSERT INTO outbox (kind, tickets) VALUES ('` + kindChanged + `', uuid_send($1::uuid))`

// insertOutbox notes a batch's tickets in its transaction. If it is later than $3 by Postgres' clock, or Postgres was not started
// at $4, the row is refused, and the transaction with it: see tooLate.
const insertOutbox = `
INSERT INTO outbox (kind, tickets) SELECT $1::text, CASE WHEN coalesce(
    clock_timestamp() <= $3::timestamptz AND pg_postmaster_start_time() = $4::timestamptz, true) THEN $2::bytea END`

var outboxFormats = []int16{formatText, formatBinary, formatBinary, formatBinary}

// queueOutbox adds the statement for the tickets of rows to a batch. It must be the last one if the transaction relies on
// something, so that the time of all other statements counts.
func queueOutbox(
	ctx context.Context, conn *pgx.Conn, batch *pgconn.Batch, kind string, rows []row, relies reliance,
) error {
	outbox, err := conn.Prepare(ctx, insertOutbox, insertOutbox)
	if err != nil {
		return err
	}
	ids := make([]byte, 0, 16*len(rows))
	for i := range rows {
		ids = append(ids, rows[i].ticket.ID[:]...)
	}
	until, server := relies.params()
	batch.ExecPrepared(outbox.Name, [][]byte{[]byte(kind), ids, until, server}, outboxFormats, nil)
	return nil
}

// tooLate reports whether the outbox refused a row because what its transaction relied on no longer holds.
func tooLate(err error) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && refused.Code == notNullViolation && refused.ColumnName == "tickets"
}
