package events

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
)

// Store is what a Sender needs of the database.
type Store interface {
	// Subscribed returns all subscriptions, for a process.
	Subscribed(ctx context.Context, process uuid.UUID) ([]Subscribed, error)

	// Subscriptions returns how far all subscriptions have come. It takes longer.
	Subscriptions(ctx context.Context) ([]SubscriptionState, error)

	// EventReader returns a reader for a subscription, by a process. No two of a process may be in use for one subscription.
	EventReader(sub Subscribed, process uuid.UUID) Reader

	// PauseSending pauses a subscription, because of its target.
	PauseSending(ctx context.Context, name, why string) error

	// Running returns the oldest transaction that has not ended, and the next one. They are the same if none is under way.
	Running(ctx context.Context) (oldest, next uint64, err error)
}

// Subscribed is a subscription as a process finds it.
type Subscribed struct {
	Subscription
	ChangedAt time.Time
	Paused    bool
	Free      bool // no other process sends its events
}

var (
	// ErrLost means that another process sends the events of the subscription, or that it was changed or deleted.
	ErrLost = errors.New("this process does not send the events of the subscription any more")

	// ErrTooManyDeadLetters means that a subscription would have more than MaxDeadLetters.
	ErrTooManyDeadLetters = errors.New("it has as many dead letters as are kept: look at them with \"myticket subscriptions " +
		"dead-letters\", have them sent again or delete them, and resume it")
)

// Reader reads what a subscription is to get, from its place on. One goroutine may call Next, and others the rest.
type Reader interface {
	// Take takes the subscription's lease, which lasts for Lease, and reports whether it is free.
	Take(ctx context.Context) (bool, error)

	// Keep has the lease last for Lease again. It reports false if it is lost.
	Keep(ctx context.Context) (bool, error)

	// Next returns what comes after the chunks that it returned before, or a chunk with a nil Place if there is nothing now. The
	// chunk is about at most so many tickets, which are at least one.
	Next(ctx context.Context, most int) (Chunk, error)

	// Done notes what became of a chunk, in the order of Next. It returns ErrLost, also if the subscription was changed since it was
	// found, or ErrTooManyDeadLetters, and then notes nothing.
	Done(ctx context.Context, chunk Chunk, delivery Delivery) error

	// Storing returns how many tickets a second are being stored, by all servers; 0 if none was in the last second.
	Storing(ctx context.Context) (float64, error)

	// Failing notes why the target takes no events. The next Done takes it back.
	Failing(ctx context.Context, why string) error

	// Begun takes a failure back that begins with NotOpened or NotRead.
	Begun(ctx context.Context) error

	// Leave lets another process take the lease at once.
	Leave(ctx context.Context) error
}

// NotOpened is the beginning of the failure of a subscription whose target could not be opened.
const NotOpened = "its target cannot be opened: "

// NotRead is the beginning of the failure of a subscription whose events cannot be read or noted.
const NotRead = "its events cannot be read or noted: "

// Lease is how long a process keeps a subscription without a sign of life.
const Lease = 10 * time.Second

// ChunkTickets is the most tickets that a chunk is ever about.
const ChunkTickets = 1000

// Chunk is some events, and where they were read.
type Chunk struct {
	Events  []Event
	Tickets int  // that it is about; of one of them it may have only some products
	Missing int  // tickets that are not there any more, or cannot be read
	Full    bool // there may be more, but it is about as many tickets as were asked for
	Place   any  // for the Reader; nil if nothing was read

	// Age is how long the first of these events has waited, More whether others wait behind them, and Took how long it took to read
	// them. Events of a replay, or that are sent again, have no Age, and nothing waits behind them.
	Age  time.Duration
	More bool
	Took time.Duration
}

// Delivery is what became of a chunk: each of its events was delivered or is a dead letter.
type Delivery struct {
	Delivered int
	Dead      []DeadLetter // their Event, Type, Ticket, Product, Attempts and Reason
}
