package postgres

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// on runs a transaction on one connection. If the wait of its commit for a standby was canceled, it returns errUnreplicated,
// because after pg_cancel_backend Postgres reports a success.
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

// commit is on with retry, for a transaction that is safe to run again.
func (s *Store) commit(ctx context.Context, doing string, transaction func(*pgxpool.Conn) error) error {
	return s.retry(ctx, doing, func() error { return s.on(ctx, transaction) })
}

// retryFor is how long a call tries before it returns that the database is away. It is long enough for a connection that broke
// while it was idle, and short enough that senders have an answer within a second. retryPause is between two attempts, on
// average.
const (
	retryFor   = 500 * time.Millisecond
	retryPause = 20 * time.Millisecond
)

// retry runs a transaction that is safe to run again. For retryFor it runs it again if it lost against another transaction, or
// if the connection broke; then it resets the pool first. A transaction that no standby has is run again until ctx ends,
// because each time it waits for the standbys anew.
func (s *Store) retry(ctx context.Context, doing string, transaction func() error) error {
	start := time.Now()
	for {
		err := transaction()
		if err == nil {
			return nil
		}
		again := transient(err)
		if broken(err) {
			s.pool.Reset()
			s.known.forget()
			again = true
		}
		again = again && time.Since(start) <= retryFor || errors.Is(err, errUnreplicated)
		if !again || ctx.Err() != nil {
			return explain(doing, err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryPause/2 + rand.N(retryPause)):
		}
	}
}
