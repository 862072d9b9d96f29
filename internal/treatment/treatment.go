// Package treatment treats the tickets that are stored and not read yet (TO_TREAT): those whose batch the database
// refused, and those that a person sent back. Several servers may do it at once.
package treatment

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"myticket/internal/ticket"
)

// Claim is a ticket that this process may treat, and nobody else until the lease ends.
type Claim struct {
	Ticket *ticket.Ticket
	// Attempt counts the claims of the ticket, this one included. It is the fence: a process whose lease ran out holds
	// an old number, and its writes change nothing.
	Attempt int
}

// Store is what treatment needs of a store. Its errors are those of package ticket.
type Store interface {
	// Claim returns up to limit tickets that are due, oldest due first, and claims them for lease.
	Claim(ctx context.Context, limit int, lease time.Duration) ([]Claim, error)
	// Finish stores what was read from a claimed ticket, its status, and its products, in one transaction.
	// ErrClaimLost means that another process claimed it meanwhile; nothing was changed.
	Finish(ctx context.Context, c Claim) error
	// Postpone gives the claim back: the ticket may be claimed again after wait. ErrClaimLost as with Finish.
	Postpone(ctx context.Context, c Claim, wait time.Duration) error
}

// ErrClaimLost means that a claim is not valid any more: somebody else is treating the ticket, or has.
var ErrClaimLost = errors.New("another process has claimed the ticket")

// Config bounds a Treater. The zero value of a field means its default.
type Config struct {
	Interval    time.Duration // between looks for tickets that are due, when none was. Defaults to 1 s.
	Batch       int           // tickets claimed at once. Defaults to 32.
	Lease       time.Duration // how long a claim lasts, for all of a batch. Defaults to 1 min.
	MaxAttempts int           // after this many the ticket becomes ERROR. Defaults to 10.
	MinBackOff  time.Duration // before the second attempt; it doubles with each. Defaults to 1 s.
	MaxBackOff  time.Duration // the longest back-off. Defaults to 10 min.

	Logger  *slog.Logger                                  // Defaults to slog.Default.
	Metrics *Metrics                                      // Defaults to metrics that nobody sees.
	Parse   func([]byte) (ticket.Order, []ticket.Problem) // Defaults to ticket.Parse.
}

// Treater treats tickets.
type Treater struct {
	config Config
	store  Store
}

// New returns a Treater. It does nothing by itself until Run is called.
func New(config Config, store Store) *Treater {
	setDefault(&config.Interval, time.Second)
	setDefault(&config.Batch, 32)
	setDefault(&config.Lease, time.Minute)
	setDefault(&config.MaxAttempts, 10)
	setDefault(&config.MinBackOff, time.Second)
	setDefault(&config.MaxBackOff, 10*time.Minute)
	if config.Logger == nil {
		config.Logger = slog.Default()
	}
	if config.Metrics == nil {
		config.Metrics = NewMetrics(nil)
	}
	if config.Parse == nil {
		config.Parse = ticket.Parse
	}
	return &Treater{config: config, store: store}
}

func setDefault[T int | time.Duration](field *T, value T) {
	if *field == 0 {
		*field = value
	}
}

// Run treats what is due until ctx ends. While the store is away it looks again at every interval.
func (tr *Treater) Run(ctx context.Context) {
	for ctx.Err() == nil {
		claimed, err := tr.RunOnce(ctx)
		if err != nil && ctx.Err() == nil {
			tr.config.Metrics.failures.Inc()
			tr.config.Logger.Warn("tickets that wait for treatment could not be claimed; they stay TO_TREAT and are tried again",
				"error", err)
		}
		if claimed == tr.config.Batch && err == nil {
			continue // there is probably more
		}
		select {
		case <-ctx.Done():
		case <-time.After(tr.config.Interval/2 + rand.N(tr.config.Interval)): // servers do not march in step
		}
	}
}

// RunOnce claims one batch of what is due, treats it, and returns how many tickets it claimed. Tickets that ctx leaves
// no time for keep their claim until its lease ends.
func (tr *Treater) RunOnce(ctx context.Context) (int, error) {
	leaseEnd := time.Now().Add(tr.config.Lease)
	claims, err := tr.store.Claim(ctx, tr.config.Batch, tr.config.Lease)
	if err != nil {
		return 0, fmt.Errorf("claim tickets: %w", err)
	}
	for _, c := range claims {
		if ctx.Err() != nil || !time.Now().Before(leaseEnd) {
			break
		}
		if err := tr.Treat(ctx, c.Ticket, c.Attempt); err != nil {
			tr.config.Logger.With(c.Ticket.LogAttr()).
				Warn("a ticket could not be treated; it stays TO_TREAT and is tried again", "attempt", c.Attempt, "error", err)
		}
	}
	return len(claims), nil //nolint:nilerr // what ctx left no time for is no failure
}

// Treat reads a claimed ticket and stores what it says. A ticket that cannot be read, or that the store refuses, becomes
// ERROR with the reason; one whose transaction fails for another reason is postponed, and becomes ERROR after
// Config.MaxAttempts. It updates t's Status, Problems and Order. An error means that the ticket is TO_TREAT still, or
// that somebody else has it.
func (tr *Treater) Treat(ctx context.Context, t *ticket.Ticket, attempt int) error {
	read := *t
	err := tr.treat(ctx, &read, attempt)
	tr.config.Metrics.attempt(read.Status, err)
	if err == nil {
		*t = read
	}
	return err
}

// treat stores what it reads, or else that it cannot be kept, or else that it is to be tried again.
func (tr *Treater) treat(ctx context.Context, read *ticket.Ticket, attempt int) error {
	if attempt > tr.config.MaxAttempts { // whoever treated it was killed each time
		return tr.giveUp(ctx, read, attempt, ProblemAttempts, errors.New("each attempt was cut short"))
	}
	read.Order, read.Problems = tr.config.Parse(read.Body)
	read.Status = ticket.Treated
	if len(read.Problems) > 0 {
		read.Status = ticket.Error
	}
	err := tr.store.Finish(ctx, Claim{read, attempt})
	switch {
	case err == nil || errors.Is(err, ErrClaimLost):
		return err
	case errors.Is(err, ticket.ErrRefused):
		return tr.giveUp(ctx, read, attempt, ProblemRefused, err)
	case attempt >= tr.config.MaxAttempts:
		return tr.giveUp(ctx, read, attempt, ProblemAttempts, err)
	}
	if postponeErr := tr.store.Postpone(ctx, Claim{read, attempt}, tr.backOff(attempt)); postponeErr != nil {
		return fmt.Errorf("%w (nor postponed, so the lease must end first: %w)", err, postponeErr)
	}
	return err
}

// Codes of the problems that treatment adds.
const (
	ProblemRefused  = "database_refused" // the database refuses what was read from the ticket
	ProblemAttempts = "attempts_used_up" // no attempt succeeded; the last reason is in the message
)

// giveUp stores the ticket as ERROR, with what was read from it left out: it is what the store refuses.
func (tr *Treater) giveUp(ctx context.Context, t *ticket.Ticket, attempt int, code string, reason error) error {
	t.Status, t.Order = ticket.Error, ticket.Order{}
	t.Problems = []ticket.Problem{{
		Code:    code,
		Message: ticket.CleanText(fmt.Sprintf("not kept after %d attempt(s): %v", attempt, reason), 500),
	}}
	return tr.store.Finish(ctx, Claim{t, attempt})
}

// backOff is exponential, with a jitter of half of it.
func (tr *Treater) backOff(attempt int) time.Duration {
	wait := tr.config.MaxBackOff
	if shift := attempt - 1; shift < 32 && tr.config.MinBackOff<<shift < wait && tr.config.MinBackOff<<shift > 0 {
		wait = tr.config.MinBackOff << shift
	}
	return wait/2 + rand.N(wait/2+1)
}
