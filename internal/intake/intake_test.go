package intake_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"myticket/internal/intake"
	"myticket/internal/ticket"
)

// scriptedStore is a store whose commits a test can hold back, count and fail. What a real Postgres does to intake is
// tested in cmd/myticket.
type scriptedStore struct {
	save func(ctx context.Context, b intake.Batch) error
	ping func() error
}

func (s *scriptedStore) Save(ctx context.Context, b intake.Batch) (intake.Saved, error) {
	if err := s.save(ctx, b); err != nil {
		return intake.Saved{}, err
	}
	return stored(b), nil
}

// stored says that all of a batch is stored as it is.
func stored(b intake.Batch) (saved intake.Saved) {
	for _, e := range b.Entries {
		o := intake.Outcome{ID: e.Ticket.ID, Status: e.Ticket.Status, Problems: e.Ticket.Problems}
		if b.Unread {
			o.Status, o.Problems = ticket.ToTreat, nil
		}
		saved.Outcomes = append(saved.Outcomes, o)
	}
	return saved
}

func (s *scriptedStore) Ping(context.Context) error {
	if s.ping == nil {
		return nil
	}
	return s.ping()
}

type scriptedTreater func(body string) (ticket.Status, []ticket.Problem, error)

func (f scriptedTreater) Treat(_ context.Context, t ticket.Ticket, _ int) (ticket.Status, []ticket.Problem, error) {
	return f(string(t.Body))
}

func start(t *testing.T, config intake.Config, store intake.Store, treater intake.Treater) *intake.Intake {
	t.Helper()
	config.Logger = slog.New(slog.DiscardHandler)
	in := intake.New(config, store, treater)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute) // a slow store takes 30 s to drain a spool
		defer cancel()
		assert.NoError(t, in.Close(ctx))
	})
	return in
}

func delivery(text string) intake.Delivery {
	return intake.Delivery{Source: ticket.DefaultSource, Body: []byte(text)}
}

const sample = "Order: 1\nVAT: 0\nTotal: 2\n\nproduct,product_id,price\nCafé,a,2"

// sampleCost is what the sample becomes.
func sampleCost() int {
	t := ticket.Ticket{Source: ticket.DefaultSource, Body: []byte(sample)}
	t.Order, t.Problems = ticket.Parse(t.Body)
	return t.Cost()
}

func TestIntake_TicketOfATimeBefore1970_IsOf1970(t *testing.T) {
	t.Parallel()
	store := &scriptedStore{save: func(context.Context, intake.Batch) error { return nil }}
	in := start(t, intake.Config{TimeLimit: 100 * 365 * 24 * time.Hour}, store, nil)
	d := delivery(sample)
	d.Time = time.Date(1960, 1, 1, 0, 0, 0, 0, time.UTC)
	r, err := in.Accept(d)
	require.NoError(t, err)
	require.Equal(t, time.Unix(0, 0).UTC(), ticket.IDTime(r.ID))
}

func TestIntake_AnswersOnlyAfterCommit(t *testing.T) {
	t.Parallel()
	saving, commit := make(chan struct{}), make(chan struct{})
	in := start(t, intake.Config{}, &scriptedStore{save: func(context.Context, intake.Batch) error {
		close(saving)
		<-commit
		return nil
	}}, nil)
	answered := make(chan intake.Receipt)
	go func() {
		r, err := in.Accept(delivery(sample))
		assert.NoError(t, err)
		answered <- r
	}()
	<-saving
	select {
	case <-answered:
		t.Fatal("answered before the commit")
	case <-time.After(50 * time.Millisecond):
	}
	close(commit)
	assert.Equal(t, ticket.Treated, (<-answered).Status)
}

func TestIntake_TicketsThatArriveDuringACommit_ShareTheNext(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var sizes []int
	first, commit := make(chan struct{}), make(chan struct{})
	in := start(t, intake.Config{BatchesInFlight: 1, BatchTickets: 8}, &scriptedStore{save: func(_ context.Context, b intake.Batch) error {
		mu.Lock()
		sizes = append(sizes, len(b.Entries))
		n := len(sizes)
		mu.Unlock()
		if n == 1 {
			close(first)
			<-commit
		}
		return nil
	}}, nil)
	var group sync.WaitGroup
	accept := func() {
		_, err := in.Accept(delivery(sample))
		assert.NoError(t, err)
	}
	group.Go(accept)
	<-first
	for range 20 {
		group.Go(accept)
	}
	awaitWaiting(t, in, 20)
	close(commit)
	group.Wait()
	assert.Equal(t, []int{1, 8, 8, 4}, sizes)
}

func TestIntake_MoreThanMayWait_IsRefusedAtOnce(t *testing.T) {
	t.Parallel()
	for name, config := range map[string]intake.Config{
		"tickets": {BatchesInFlight: 1, WaitingTickets: 2},
		"bytes":   {BatchesInFlight: 1, WaitingBytes: 2*sampleCost() + 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			saving, commit := make(chan struct{}, 10), make(chan struct{})
			in := start(t, config, &scriptedStore{save: func(context.Context, intake.Batch) error {
				saving <- struct{}{}
				<-commit
				return nil
			}}, nil)
			var group sync.WaitGroup
			accept := func() {
				_, err := in.Accept(delivery(sample))
				assert.NoError(t, err)
			}
			group.Go(accept)
			<-saving
			group.Go(accept)
			group.Go(accept)
			awaitWaiting(t, in, 2)
			_, err := in.Accept(delivery(sample))
			require.ErrorIs(t, err, intake.ErrOverloaded)
			close(commit)
			group.Wait()
		})
	}
}

func TestIntake_StoreThatDoesNotAnswer_IsGivenUpInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, requireGivenUpInTime) // its clock stands still while the machine is busy
}

func requireGivenUpInTime(t *testing.T) {
	const timeout = 300 * time.Millisecond
	var pings atomic.Int32
	var back atomic.Bool
	store := &scriptedStore{
		save: func(ctx context.Context, _ intake.Batch) error {
			if back.Load() {
				return nil
			}
			<-ctx.Done()
			return fmt.Errorf("no answer: %w", ticket.ErrUnavailable)
		},
		ping: func() error {
			pings.Add(1)
			if back.Load() {
				return nil
			}
			return errors.New("away")
		},
	}
	in := start(t, intake.Config{Timeout: timeout, BatchesInFlight: 2, BatchTickets: 1}, store, nil)
	var group sync.WaitGroup
	for range 20 { // ten times what is in flight: those behind must not wait ten times as long
		group.Go(func() {
			begin := time.Now()
			_, err := in.Accept(delivery(sample))
			assert.ErrorIs(t, err, ticket.ErrUnavailable) //nolint:testifylint // not the test's goroutine
			assert.LessOrEqual(t, time.Since(begin), timeout, "the wait is bounded by Timeout, not by the queue")
		})
	}
	group.Wait()
	assert.False(t, in.Available())
	_, err := in.Accept(delivery(sample))
	require.ErrorIs(t, err, ticket.ErrUnavailable, "while the store is away it is not asked")

	back.Store(true)
	require.Eventually(t, in.Available, 30*time.Second, 5*time.Millisecond, "it comes back by itself")
	_, err = in.Accept(delivery(sample))
	require.NoError(t, err)
	assert.Positive(t, pings.Load())
}

func TestIntake_RefusedBatch_CostsOnlyTheCulprit(t *testing.T) {
	t.Parallel()
	var unread []*intake.Entry
	store := &scriptedStore{save: func(_ context.Context, b intake.Batch) error {
		if !b.Unread { // what was read may be what the store refuses
			return fmt.Errorf("poison: %w", ticket.ErrRefused)
		}
		assert.Equal(t, time.Minute, b.ClaimFor)
		unread = append(unread, b.Entries...)
		return nil
	}}
	later := errors.New("away meanwhile")
	in := start(t, intake.Config{}, store, scriptedTreater(func(body string) (ticket.Status, []ticket.Problem, error) {
		switch body {
		case "poison":
			return ticket.Error, []ticket.Problem{{Code: "database_refused"}}, nil
		case "later":
			return "", nil, later
		}
		return ticket.Treated, nil, nil
	}))
	for text, want := range map[string]ticket.Status{sample: ticket.Treated, "poison": ticket.Error, "later": ticket.ToTreat} {
		r, err := in.Accept(delivery(text))
		require.NoError(t, err, text)
		assert.Equal(t, want, r.Status, text)
	}
	assert.Len(t, unread, 3)
}

func TestIntake_TicketThatIsRefusedEvenUnread_FailsAlone(t *testing.T) {
	t.Parallel()
	saving, commit := make(chan struct{}), make(chan struct{})
	var first sync.Once
	store := &scriptedStore{save: func(_ context.Context, b intake.Batch) error {
		first.Do(func() { // the first ticket holds the lane, until all others are in one batch
			close(saving)
			<-commit
		})
		for _, e := range b.Entries {
			if string(e.Ticket.Body) == "poison" {
				return fmt.Errorf("poison: %w", ticket.ErrRefused)
			}
		}
		return nil
	}}
	in := start(t, intake.Config{BatchesInFlight: 1}, store, scriptedTreater(func(string) (ticket.Status, []ticket.Problem, error) {
		return ticket.Treated, nil, nil
	}))
	var group sync.WaitGroup
	accept := func() {
		_, err := in.Accept(delivery(sample))
		assert.NoError(t, err)
	}
	group.Go(accept)
	<-saving
	for range 8 {
		group.Go(accept)
	}
	group.Go(func() {
		_, err := in.Accept(delivery("poison"))
		assert.ErrorIs(t, err, ticket.ErrUnavailable, "its sender keeps it")
	})
	awaitWaiting(t, in, 9)
	close(commit)
	group.Wait()
	assert.True(t, in.Available(), "one ticket does not make the store look absent")
}

func TestIntake_Close_AnswersWhatWasAcceptedAndRefusesTheRest(t *testing.T) {
	t.Parallel()
	saving, commit := make(chan struct{}), make(chan struct{})
	var once sync.Once
	in := intake.New(intake.Config{BatchesInFlight: 1, Logger: slog.New(slog.DiscardHandler)}, &scriptedStore{
		save: func(context.Context, intake.Batch) error {
			once.Do(func() { close(saving) })
			<-commit
			return nil
		},
	}, nil)
	var group sync.WaitGroup
	accept := func() {
		_, err := in.Accept(delivery(sample))
		assert.NoError(t, err)
	}
	group.Go(accept)
	<-saving
	for range 4 {
		group.Go(accept)
	}
	awaitWaiting(t, in, 4)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	require.Error(t, in.Close(ctx), "it cannot be done in that time, and says so")
	_, err := in.Accept(delivery(sample))
	require.ErrorIs(t, err, intake.ErrDraining)
	close(commit)
	require.NoError(t, in.Close(t.Context()))
	group.Wait()
}

func awaitWaiting(t *testing.T, in *intake.Intake, tickets int) {
	t.Helper()
	require.Eventually(t, func() bool { return in.Waiting() == tickets }, 30*time.Second, time.Millisecond,
		"%d tickets should wait for a transaction", tickets)
}
