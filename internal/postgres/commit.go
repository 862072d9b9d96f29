package postgres

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// How long a call goes on trying before it says that the database is away: long enough for a connection that broke
// while it was idle, short enough that senders are told within a second.
const (
	retryFor   = 500 * time.Millisecond
	retryPause = 20 * time.Millisecond
)

// retry runs a transaction that is safe to run again. It is run again at once when it lost against another one, and for
// a moment when the connection broke, on a connection of a pool that was reset. One that no standby has is run again until
// ctx ends: each time it waits for them anew.
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
