package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/jackc/pgx/v5"
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

const (
	standbyPatience = 30 * time.Second // the least time that a migration waits for standbys
	standbyAttempt  = 30 * time.Second // the longest time of one attempt, because a connection may be dead
	standbyNews     = 2 * time.Second  // how long an attempt waits in silence
	standbyCleanup  = 2 * time.Second  // the longest time to have the server end an attempt that was given up
)

// standbyCheck is one transaction whose commit waits as that of a migration does. It leaves nothing in the schema.
const standbyCheck = `CREATE TABLE myticket_standby_check (); DROP TABLE myticket_standby_check`

// awaitStandbys returns as soon as a commit is confirmed by as many synchronous standbys as synchronous_standby_names demands.
// If no migration is to run, or none may run because the schema is dirty, it does not wait. If patient, it also waits until a
// connection succeeds, as in a failover.
func (l *login) awaitStandbys(ctx context.Context, wait time.Duration, patient bool) error {
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var last error
	said := ""
	check := func() (struct{}, error) {
		err := l.checkStandbys(waiting)
		if err == nil {
			return struct{}{}, nil
		}
		if last == nil || waiting.Err() == nil || errors.Is(err, errUnreplicated) { // the end of the wait itself is not a reason
			last = err
		}
		if !errors.Is(err, errUnreplicated) && (!patient || isFinal(err)) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}
	_, err := backoff.Retry(waiting, check,
		backoff.WithBackOff(backoff.NewConstantBackOff(awaitInterval)), backoff.WithMaxElapsedTime(0),
		backoff.WithNotify(func(err error, _ time.Duration) {
			if why := reason(err); why != said {
				said = why
				l.logger.Info("not ready to migrate; it is tried again", "reason", why)
			}
		}))
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return errors.New("interrupted during the wait for a synchronous standby; nothing was changed")
	case waiting.Err() == nil:
		return err
	case errors.Is(last, errUnreplicated):
		return fmt.Errorf("no synchronous standby confirmed a commit for %s, so nothing was migrated by this run, and servers go on; "+
			"look at pg_stat_replication and synchronous_standby_names, bring the standby back, then run \"myticket migrate up\" again",
			wait.Round(time.Second))
	}
	return fmt.Errorf("no commit succeeded for %s, so nothing was migrated by this run, and servers go on: %w",
		wait.Round(time.Second), last)
}

// isFinal reports whether the server gave an answer that it would give again. Logins, rooms for connections and databases may be
// made while we wait.
func isFinal(err error) bool {
	return sqlState(err) != "" && !broken(err) && !transient(err) && !isCode(err, "28", "3D", "53", lockNotAvailable)
}

// checkStandbys is one attempt. The error is errUnreplicated if the standbys did not confirm it in time.
func (l *login) checkStandbys(ctx context.Context) error {
	latest, err := LatestSchema()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, standbyAttempt)
	defer cancel()
	var config pgx.ConnConfig
	_ = l.refresh(ctx, &config)
	conn, err := pgx.ConnectConfig(ctx, &config)
	if err != nil {
		return fmt.Errorf("connect to the database to migrate it: %w", err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	version, dirty, err := recordedSchema(ctx, conn)
	if err != nil {
		return fmt.Errorf("read the schema's version: %w", err)
	}
	if dirty || version >= latest {
		return nil
	}
	news := time.AfterFunc(standbyNews, func() {
		l.logger.Info("waiting until a synchronous standby confirms a commit, before anything is migrated")
	})
	defer news.Stop()
	_, err = conn.PgConn().Exec(ctx, standbyCheck).ReadAll()
	switch {
	case isCode(err, insufficientPrivilege):
		l.logger.Warn("this role may make no table, so it is not known whether synchronous standbys confirm commits", "error", err)
		return nil
	case err == nil && conn.PgConn().CustomData()[waitCanceled] != nil:
		return errUnreplicated
	case err != nil && ctx.Err() != nil:
		select { // the server is told to end it; if this process ended before, it would wait as long as there is no standby
		case <-conn.PgConn().CleanupDone():
		case <-time.After(standbyCleanup):
		}
		return errUnreplicated
	}
	return err
}
