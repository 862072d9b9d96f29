package intake

import (
	"cmp"
	"log/slog"
	"time"

	"github.com/google/uuid"

	"myticket/internal/ticket"
)

// Config bounds an Intake. The zero value of a field means its default.
type Config struct {
	BatchTickets    int           // most tickets in one transaction. Defaults to 256.
	BatchBytes      int           // most bytes (Ticket.Cost) in one transaction; one ticket always fits. Defaults to 4 MiB.
	BatchesInFlight int           // transactions at the same time. Defaults to 2.
	WaitingTickets  int           // most tickets that wait for a transaction; more get ErrOverloaded. Defaults to 10,000.
	WaitingBytes    int           // most bytes (Ticket.Cost) of these; as much again while they are read. Defaults to 64 MiB.
	Timeout         time.Duration // from a delivery to its answer. Defaults to 4 s, because common senders give up after 5 s.
	Spool           Spool         // Defaults to none: tickets that the store does not take are refused.
	OverflowWait    time.Duration // how long a ticket waits for a transaction before it goes to the spool. Defaults to 1 s.
	StoreTimeout    time.Duration // after which a transaction is canceled and its tickets go to the spool. Defaults to 2 s.
	DrainTimeout    time.Duration // after which a drain transaction of the largest size is canceled. Defaults to 10 s.
	DrainTries      int           // after which a ticket of the spool that alone cannot be stored is set aside. Defaults to 5.
	DrainRetry      time.Duration // how long it is stepped over after the first try; doubles with each. Defaults to 5 s.
	KeyTTL          time.Duration // how long an idempotency key is remembered. Defaults to 7 days.
	TimeLimit       time.Duration // how long ago a ticket may be by Delivery.Time. Defaults to 30 days.
	Lease           time.Duration // how long a ticket that was stored unread stays claimed. Defaults to 1 min.

	// StartAway is why the store counts as away at first: no ticket is read and none is sent to it before Store.Ping succeeds.
	// Defaults to nil: the store is there.
	StartAway error

	Logger  *slog.Logger                         // Defaults to slog.Default.
	Metrics *Metrics                             // Defaults to metrics that are not exposed.
	NewID   func() (uuid.UUID, time.Time, error) // Defaults to ticket.NewID.
	Parse   ticket.ParseFunc                     // Defaults to ticket.ParseAny.
}

func (c *Config) setDefaults() {
	c.BatchTickets = cmp.Or(c.BatchTickets, 256)
	c.BatchBytes = cmp.Or(c.BatchBytes, 4<<20)
	c.BatchesInFlight = cmp.Or(c.BatchesInFlight, 2)
	c.WaitingTickets = cmp.Or(c.WaitingTickets, 10_000)
	c.WaitingBytes = cmp.Or(c.WaitingBytes, 64<<20)
	c.Timeout = cmp.Or(c.Timeout, 4*time.Second)
	c.OverflowWait = cmp.Or(c.OverflowWait, time.Second)
	c.StoreTimeout = cmp.Or(c.StoreTimeout, 2*time.Second)
	c.DrainTimeout = cmp.Or(c.DrainTimeout, 10*time.Second)
	c.DrainTries = cmp.Or(c.DrainTries, 5)
	c.DrainRetry = cmp.Or(c.DrainRetry, 5*time.Second)
	c.KeyTTL = cmp.Or(c.KeyTTL, 7*24*time.Hour)
	c.TimeLimit = cmp.Or(c.TimeLimit, 30*24*time.Hour)
	c.Lease = cmp.Or(c.Lease, time.Minute)
	c.Logger = cmp.Or(c.Logger, slog.Default())
	if c.Metrics == nil {
		c.Metrics = NewMetrics(nil)
	}
	if c.NewID == nil {
		c.NewID = ticket.NewID
	}
	if c.Parse == nil {
		c.Parse = ticket.ParseAny
	}
}
