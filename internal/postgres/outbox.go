package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Kinds of rows in the outbox: see migration 4.
const (
	kindStored  = "stored"
	kindTreated = "treated"
)

// insertOutbox notes a batch's tickets in its transaction. If the transaction began later than $3 by Postgres' clock, the row is
// refused, and the transaction with it: see tooLate.
const insertOutbox = `
INSERT INTO outbox (kind, tickets) SELECT $1::text, CASE WHEN coalesce(now() <= $3::timestamptz, true) THEN $2::bytea END`

var outboxFormats = []int16{formatText, formatBinary, formatBinary}

// queueOutbox adds the statement for the tickets of rows to a batch. NotAfter is the latest time, by Postgres' clock, at which the
// transaction may begin; the zero time for no limit.
func queueOutbox(
	ctx context.Context, conn *pgx.Conn, batch *pgconn.Batch, kind string, rows []row, notAfter time.Time,
) error {
	outbox, err := conn.Prepare(ctx, insertOutbox, insertOutbox)
	if err != nil {
		return err
	}
	ids := make([]byte, 0, 16*len(rows))
	for i := range rows {
		ids = append(ids, rows[i].ticket.ID[:]...)
	}
	var limit []byte
	if !notAfter.IsZero() {
		limit = appendTime(nil, notAfter)
	}
	batch.ExecPrepared(outbox.Name, [][]byte{[]byte(kind), ids, limit}, outboxFormats, nil)
	return nil
}

// tooLate reports whether the outbox refused a row because its transaction began too late.
func tooLate(err error) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && refused.Code == notNullViolation && refused.ColumnName == "tickets"
}
