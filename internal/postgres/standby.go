package postgres

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A commit that waits for a synchronous standby is already on the primary's disk, and nobody can take it back. When the
// wait is canceled, the transaction stays, on the primary alone, until a standby catches up; a failover before that loses
// it (https://www.postgresql.org/docs/current/warm-standby.html#SYNCHRONOUS-REPLICATION). Two rules follow:
//
//   - What is sent again must commit something that waits, even where nothing is left to write: see lockTicket.
//   - A success that comes with the warning of a canceled wait is none: see on.

// lockTicket waits for the standbys with the transaction that it is in, because a lock of a row is written to the log. It
// is the weakest lock: only what deletes the row waits for it. A message in the log (pg_logical_emit_message) would do as
// well, but the right to write one can be revoked.
const lockTicket = `SELECT FROM tickets WHERE received_at = $1 AND id = $2 FOR KEY SHARE`

// errUnreplicated means that a transaction is committed on the primary and on no standby. It is to be sent again.
var errUnreplicated = errors.New("somebody canceled the wait for a synchronous standby: the primary alone has the transaction")

// waitCanceled is the key of a connection's custom data under which such a warning is noted.
const waitCanceled = "myticket: wait for a standby was canceled"

// noteCanceledWait is called for each notice of the server. The name of the function that it comes from is the one part
// of this warning that is the same in all versions and languages.
func noteCanceledWait(conn *pgconn.PgConn, notice *pgconn.Notice) {
	if notice.Routine == "SyncRepWaitForLSN" {
		conn.CustomData()[waitCanceled] = true
	}
}

// on runs on one connection what ends with a commit. A commit whose wait for a standby was canceled is errUnreplicated:
// pg_cancel_backend has Postgres report it as a success.
func (s *Store) on(ctx context.Context, transaction func(*pgxpool.Conn) error) error {
	return s.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error {
		noted := conn.Conn().PgConn().CustomData()
		delete(noted, waitCanceled)
		err := transaction(conn)
		if err == nil && noted[waitCanceled] != nil {
			return errUnreplicated
		}
		return err
	})
}

// commit is on with retry: for a transaction that is safe to run again.
func (s *Store) commit(ctx context.Context, doing string, transaction func(*pgxpool.Conn) error) error {
	return s.retry(ctx, doing, func() error { return s.on(ctx, transaction) })
}

// awaitStandbys returns when the standbys have everything that was committed before, although the wait of its own commit
// may have been given up. It locks a ticket for that.
func (s *Store) awaitStandbys(ctx context.Context, t place) error {
	return s.commit(ctx, "wait until a standby has what was changed", func(conn *pgxpool.Conn) error {
		_, err := conn.Exec(ctx, lockTicket, t.at, t.id)
		return err
	})
}
