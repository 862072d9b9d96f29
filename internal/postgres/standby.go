package postgres

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// A commit that waits for a synchronous standby is already on the primary's disk and cannot be undone. When the wait is
// canceled, the transaction stays on the primary alone until a standby catches up. A failover before that loses it
// (https://www.postgresql.org/docs/current/warm-standby.html#SYNCHRONOUS-REPLICATION). Two rules follow:
//
//   - A batch that is sent again must commit something that waits, even if nothing is left to write: see lockTicket.
//   - A success with the warning of a canceled wait is not a success: see on.

// lockTicket makes the transaction that it is in wait for the standbys, because the lock of a row is written to the log. It is
// the weakest lock: only a DELETE of the row waits for it. A message in the log (pg_logical_emit_message) would have the same
// effect, but the right to write one can be revoked.
const lockTicket = `SELECT FROM tickets WHERE received_at = $1 AND id = $2 FOR KEY SHARE`

// errUnreplicated means that a transaction is committed on the primary and on no standby. It must be sent again.
var errUnreplicated = errors.New("the wait for a synchronous standby was canceled: only the primary has the transaction")

// waitCanceled is the key of a connection's custom data under which such a warning is noted.
const waitCanceled = "myticket: wait for a standby was canceled"

// noteCanceledWait is called for each notice of the server. Only the name of the server's function is the same in all versions
// and languages of this warning.
func noteCanceledWait(conn *pgconn.PgConn, notice *pgconn.Notice) {
	if notice.Routine == "SyncRepWaitForLSN" {
		conn.CustomData()[waitCanceled] = true
	}
}

// awaitStandbys returns when the standbys have everything that was committed before, even if the wait of that commit was
// canceled. It locks a ticket for that.
func (s *Store) awaitStandbys(ctx context.Context, t place) error {
	return s.commit(ctx, "wait until a standby has what was changed", func(conn *pgxpool.Conn) error {
		_, err := conn.Exec(ctx, lockTicket, t.at, t.id)
		return err
	})
}
