// Package treatment treats the tickets that are stored and not read yet (TO_TREAT): those whose batch the database
// refused, and those that a person sent back. Several servers may do it at once.
package treatment

import (
	"cmp"
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
	// Attempt counts the claims of the ticket since it was stored or sent back, this one included.
	Attempt int
	// Number counts them since it was stored, and each time that it was sent back. It never goes back. With Attempt it is
	// the fence: a process whose lease ran out holds an old number, and its writes change nothing.
	Number int
}

// Store is what treatment needs of a store. Its errors are those of package ticket.
type Store interface {
	// Claim returns up to limit tickets that are due, oldest due first, and claims them for lease. One that was claimed
	// before comes alone.
	Claim(ctx context.Context, limit int, lease time.Duration) ([]Claim, error)
	// Finish stores what was read from a claimed ticket, its status, and its products, in one transaction. It returns what
	// the ticket is stored as, which may be ticket.Error because of its products. ErrClaimLost means that another process
	// claimed it meanwhile; nothing was changed.
	Finish(ctx context.Context, c Claim) (ticket.Status, []ticket.Problem, error)
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
	Timeout     time.Duration // of one call to the store; no call lasts longer than the lease. Defaults to 10 s.
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
	config.Interval = cmp.Or(config.Interval, time.Second)
	config.Batch = cmp.Or(config.Batch, 32)
	config.Lease = cmp.Or(config.Lease, time.Minute)
	config.Timeout = cmp.Or(config.Timeout, 10*time.Second)
	config.MaxAttempts = cmp.Or(config.MaxAttempts, 10)
	config.MinBackOff = cmp.Or(config.MinBackOff, time.Second)
	config.MaxBackOff = cmp.Or(config.MaxBackOff, 10*time.Minute)
	config.Logger = cmp.Or(config.Logger, slog.Default())
	if config.Metrics == nil {
		config.Metrics = NewMetrics(nil)
	}
	if config.Parse == nil {
		config.Parse = ticket.Parse
	}
	return &Treater{config: config, store: store}
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
		if claimed > 0 && err == nil {
			continue // there may be more
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
	claims, err := tr.claim(ctx)
	if err != nil {
		return 0, fmt.Errorf("claim tickets: %w", err)
	}
	for _, c := range claims {
		if ctx.Err() != nil || !time.Now().Before(leaseEnd) {
			break
		}
		if _, _, err := tr.attempt(ctx, c, leaseEnd); err != nil {
			tr.config.Logger.With(c.Ticket.LogAttr()).
				Warn("a ticket could not be treated; it stays TO_TREAT and is tried again", "attempt", c.Attempt, "error", err)
		}
	}
	return len(claims), nil //nolint:nilerr // what ctx left no time for is no failure
}

func (tr *Treater) claim(ctx context.Context) ([]Claim, error) {
	ctx, cancel := context.WithTimeout(ctx, min(tr.config.Timeout, tr.config.Lease))
	defer cancel()
	return tr.store.Claim(ctx, tr.config.Batch, tr.config.Lease)
}

// Treat reads a ticket that this process has stored claimed, and stores what it says: attempt is the number of its claims,
// and nobody has sent the ticket back yet. A ticket that cannot be read, or that the store refuses, becomes ERROR with the
// reason; one whose transaction fails for another reason is postponed, and becomes ERROR after Config.MaxAttempts. It
// returns what the ticket is stored as. An error means that the ticket is TO_TREAT still, or that somebody else has it.
func (tr *Treater) Treat(ctx context.Context, t ticket.Ticket, attempt int) (ticket.Status, []ticket.Problem, error) {
	return tr.attempt(ctx, Claim{Ticket: &t, Attempt: attempt, Number: attempt}, time.Now().Add(tr.config.Lease))
}

// attempt treats a claimed ticket until the lease ends.
func (tr *Treater) attempt(ctx context.Context, c Claim, leaseEnd time.Time) (ticket.Status, []ticket.Problem, error) {
	ctx, cancel := context.WithDeadline(ctx, leaseEnd)
	defer cancel()
	status, problems, err := tr.treat(ctx, c)
	tr.config.Metrics.attempt(status, err)
	return status, problems, err
}

// treat stores what it reads, or else that it cannot be kept, or else that it is to be tried again.
func (tr *Treater) treat(ctx context.Context, c Claim) (ticket.Status, []ticket.Problem, error) {
	if c.Attempt > tr.config.MaxAttempts { // whoever treated it was killed each time
		return tr.giveUp(ctx, c, ProblemAttempts, errors.New("each attempt was cut short"))
	}
	read := *c.Ticket
	read.Order, read.Problems = tr.config.Parse(read.Body)
	read.Status = ticket.Treated
	if len(read.Problems) > 0 {
		read.Status = ticket.Error
	}
	status, problems, err := tr.finish(ctx, c, read)
	switch {
	case err == nil || errors.Is(err, ErrClaimLost):
		return status, problems, err
	case errors.Is(err, ticket.ErrRefused):
		return tr.giveUp(ctx, c, ProblemRefused, err)
	case c.Attempt >= tr.config.MaxAttempts:
		return tr.giveUp(ctx, c, ProblemAttempts, err)
	}
	if postponeErr := tr.postpone(ctx, c); postponeErr != nil {
		err = fmt.Errorf("%w (nor postponed, so the lease must end first: %w)", err, postponeErr)
	}
	return "", nil, err
}

// finish and postpone are given up in time: on a connection that went silent nobody answers, however long one waits.
func (tr *Treater) finish(ctx context.Context, c Claim, read ticket.Ticket) (ticket.Status, []ticket.Problem, error) {
	ctx, cancel := context.WithTimeout(ctx, tr.config.Timeout)
	defer cancel()
	c.Ticket = &read
	return tr.store.Finish(ctx, c)
}

func (tr *Treater) postpone(ctx context.Context, c Claim) error {
	ctx, cancel := context.WithTimeout(ctx, tr.config.Timeout)
	defer cancel()
	return tr.store.Postpone(ctx, c, tr.backOff(c.Attempt))
}

// Codes of the problems that treatment adds.
const (
	ProblemRefused  = "database_refused" // the database refuses what was read from the ticket
	ProblemAttempts = "attempts_used_up" // no attempt succeeded; the last reason is in the message
)

// giveUp stores the ticket as ERROR, with what was read from it left out: it is what the store refuses.
func (tr *Treater) giveUp(ctx context.Context, c Claim, code string, reason error) (ticket.Status, []ticket.Problem, error) {
	read := *c.Ticket
	read.Status, read.Order = ticket.Error, ticket.Order{}
	read.Problems = []ticket.Problem{{
		Code:    code,
		Message: ticket.CleanText(fmt.Sprintf("not kept after %d attempt(s): %v", c.Attempt, reason), 500),
	}}
	return tr.finish(ctx, c, read)
}

// backOff is exponential, with a jitter of half of it.
func (tr *Treater) backOff(attempt int) time.Duration {
	wait := tr.config.MaxBackOff
	if shift := attempt - 1; shift < 32 && tr.config.MinBackOff<<shift < wait && tr.config.MinBackOff<<shift > 0 {
		wait = tr.config.MinBackOff << shift
	}
	return wait/2 + rand.N(wait/2+1)
}
