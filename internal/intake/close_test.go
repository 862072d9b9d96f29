package intake_test

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/spool"
)

// A Close that runs out of time ends the last drain, so that nothing uses the store and the spool after it.
func TestIntake_CloseRunsOutOfTime_EndsTheLastDrain(t *testing.T) {
	t.Parallel()
	queue := openSpool(t, spool.Config{})
	put(t, queue, &intake.Entry{Ticket: newTicket(t, sample)})
	for range 2000 { // the end of the time and that of Close race
		draining, ended := make(chan struct{}), make(chan struct{})
		store := &scriptedStore{save: func(ctx context.Context, _ intake.Batch) error {
			close(draining)
			<-ctx.Done()
			close(ended)
			return ctx.Err()
		}}
		late := &emptyAtFirst{Spool: queue, first: make(chan struct{})}
		in := intake.New(intake.Config{Spool: late, Logger: slog.New(slog.DiscardHandler)}, store, nil)
		<-late.first
		ctx, cancel := context.WithCancel(t.Context())
		closed := make(chan error)
		go func() { closed <- in.Close(ctx) }()
		<-draining
		cancel()
		require.ErrorIs(t, <-closed, context.Canceled)
		select {
		case <-ended:
		case <-time.After(time.Second): // the drain by itself would wait for twice as long
			t.Fatal("the drain goes on after Close")
		}
	}
}

// emptyAtFirst is a spool whose tickets are there from the second Peek on: only the last drain finds them.
type emptyAtFirst struct {
	intake.Spool
	peeks atomic.Int32
	first chan struct{}
}

func (s *emptyAtFirst) Peek(n int, b int64, skip func(uuid.UUID) bool) ([]intake.Spooled, error) {
	if s.peeks.Add(1) == 1 {
		close(s.first)
		return nil, nil
	}
	return s.Spool.Peek(n, b, skip)
}
