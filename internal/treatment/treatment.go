// Package treatment treats the tickets that are stored but not read yet (TO_TREAT): those whose batch the database refused,
// and those that a person sent back. Several servers may do it at the same time.
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

// Claim is a ticket that only this process may treat until the lease ends.
type Claim struct {
	Ticket *ticket.Ticket
	// Attempt counts the claims of the ticket since it was stored or sent back, this one included.
	Attempt int
	// Number counts the claims since the ticket was stored, and each time that it was sent back. It never decreases. Together
	// with Attempt it is the fencing token: a process whose lease has ended has an old number, and its writes change nothing.
	Number int
}

// Store is what treatment needs of a store. Its errors are those of package ticket.
type Store interface {
	// Claim claims up to limit tickets that are due for the time of a lease, and returns them, the longest due first. A ticket
	// that was claimed before is returned alone.
	Claim(ctx context.Context, limit int, lease time.Duration) ([]Claim, error)
	// Finish stores what was read from a claimed ticket, its status, and its products, in one transaction. It returns the
	// status that was stored, which may be ticket.Error because of the products, and the problems. ErrClaimLost means that
	// another process has claimed the ticket meanwhile; then nothing was changed.
	Finish(ctx context.Context, c Claim) (ticket.Status, []ticket.Problem, error)
	// Postpone gives up the claim: the ticket may be claimed again after wait. ErrClaimLost is as with Finish.
	Postpone(ctx context.Context, c Claim, wait time.Duration) error
}

// ErrClaimLost means that a claim is not valid any more, because another process treats the ticket or has treated it.
var ErrClaimLost = errors.New("another process has claimed the ticket")

// Config bounds a Treater. The zero value of a field means its default.
type Config struct {
	Interval    time.Duration // between two looks for due tickets if there was none. Defaults to 1 s.
	Batch       int           // tickets claimed at once. Defaults to 32.
	Lease       time.Duration // how long the claims of a batch last. Defaults to 1 min.
	Timeout     time.Duration // of one call to the store, and never longer than the lease. Defaults to 10 s.
	MaxAttempts int           // after this many the ticket becomes ERROR. Defaults to 10.
	MinBackOff  time.Duration // before the second attempt; it doubles with each. Defaults to 1 s.
	MaxBackOff  time.Duration // the longest back-off. Defaults to 10 min.

	// Busy reports whether this server is storing tickets, which comes before those that were stored already. Then treatment
	// pauses after each ticket for as long as that took. Defaults to never.
	Busy func() bool

	Logger  *slog.Logger     // Defaults to slog.Default.
	Metrics *Metrics         // Defaults to metrics that are not exposed.
	Parse   ticket.ParseFunc // Defaults to ticket.ParseAny.
}

// Treater treats tickets.
type Treater struct {
	config Config
	store  Store
}

// New returns a Treater. It does nothing until Run, RunOnce or Treat is called.
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
	if config.Busy == nil {
		config.Busy = func() bool { return false }
	}
	if config.Parse == nil {
		config.Parse = ticket.ParseAny
	}
	return &Treater{config: config, store: store}
}

// Run treats due tickets until ctx ends. While the store is away it tries again at every interval.
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
		case <-time.After(tr.config.Interval/2 + rand.N(tr.config.Interval)): // jitter: servers must not act in step
		}
	}
}

// RunOnce claims one batch of due tickets, treats it, and returns how many tickets it claimed. Tickets that are not treated
// before ctx ends keep their claim until the lease ends.
func (tr *Treater) RunOnce(ctx context.Context) (int, error) {
	leaseEnd := time.Now().Add(tr.config.Lease)
	claims, err := tr.claim(ctx)
	if err != nil {
		return 0, err
	}
	for _, c := range claims {
		if ctx.Err() != nil || !time.Now().Before(leaseEnd) {
			break
		}
		start := time.Now()
		if _, _, err := tr.attempt(ctx, c, leaseEnd); err != nil {
			tr.config.Logger.With(c.Ticket.LogAttr()).
				Warn("a ticket could not be treated; it stays TO_TREAT and is tried again", "attempt", c.Attempt, "error", err)
		}
		tr.giveWay(ctx, time.Since(start))
	}
	return len(claims), nil //nolint:nilerr // a ticket that was not treated before ctx ended is not a failure
}

// maxPause bounds the pause after a ticket that took long.
const maxPause = time.Second

// giveWay pauses after a ticket that took some time, while tickets are being stored. So a person who sends many tickets back
// takes half of one connection from them.
func (tr *Treater) giveWay(ctx context.Context, took time.Duration) {
	if !tr.config.Busy() {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(min(took, maxPause)):
	}
}

func (tr *Treater) claim(ctx context.Context) ([]Claim, error) {
	ctx, cancel := context.WithTimeout(ctx, min(tr.config.Timeout, tr.config.Lease))
	defer cancel()
	return tr.store.Claim(ctx, tr.config.Batch, tr.config.Lease)
}

// Treat reads a ticket that this process has stored with a claim, and stores what it says. Attempt is the number of its
// claims so far; the ticket must never have been sent back. A ticket that cannot be read, or that the store refuses, becomes
// ERROR with the reason. If the transaction fails for another reason, the ticket is postponed, and becomes ERROR after
// Config.MaxAttempts. Treat returns the status and the problems that were stored. An error means that the ticket is still
// TO_TREAT, or that another process has it.
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

// treat stores what it reads. If it cannot, it stores ERROR; if another attempt may help, it postpones the ticket instead.
func (tr *Treater) treat(ctx context.Context, c Claim) (ticket.Status, []ticket.Problem, error) {
	if c.Attempt > tr.config.MaxAttempts { // the process that treated it was killed each time
		return tr.giveUp(ctx, c, 0, ProblemAttempts, errors.New("each attempt was cut short"))
	}
	read := *c.Ticket
	read.Order, read.Problems, read.Dialect = tr.config.Parse(read.Source, read.Body)
	read.Status = ticket.Treated
	if len(read.Problems) > 0 {
		read.Status = ticket.Error
	}
	status, problems, err := tr.finish(ctx, c, read)
	switch {
	case err == nil || errors.Is(err, ErrClaimLost):
		return status, problems, err
	case errors.Is(err, ticket.ErrRefused):
		return tr.giveUp(ctx, c, read.Dialect, ProblemRefused, err)
	case c.Attempt >= tr.config.MaxAttempts:
		return tr.giveUp(ctx, c, read.Dialect, ProblemAttempts, err)
	}
	if postponeErr := tr.postpone(ctx, c); postponeErr != nil {
		err = fmt.Errorf("%w (and it could not be postponed, so the lease must end first: %w)", err, postponeErr)
	}
	return "", nil, err
}

// finish and postpone have a timeout, because a connection that went silent never answers.
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

// giveUp stores the ticket as ERROR, without what was read from it, because that may be what the store refuses. Dialect is that
// which it was read with.
func (tr *Treater) giveUp(
	ctx context.Context, c Claim, dialect int, code string, reason error,
) (ticket.Status, []ticket.Problem, error) {
	read := *c.Ticket
	read.Status, read.Order, read.Dialect = ticket.Error, ticket.Order{}, dialect
	read.Problems = []ticket.Problem{{
		Code:    code,
		Message: ticket.CleanText(fmt.Sprintf("not kept after %d attempt(s): %v", c.Attempt, reason), 500),
	}}
	return tr.finish(ctx, c, read)
}

// backOff returns an exponential back-off, of which half is jitter.
func (tr *Treater) backOff(attempt int) time.Duration {
	wait := tr.config.MaxBackOff
	if shift := attempt - 1; shift < 32 && tr.config.MinBackOff<<shift < wait && tr.config.MinBackOff<<shift > 0 {
		wait = tr.config.MinBackOff << shift
	}
	return wait/2 + rand.N(wait/2+1)
}
