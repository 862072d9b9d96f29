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
	BatchTickets    int           // tickets in one transaction at most. Defaults to 256.
	BatchBytes      int           // sum of Ticket.Cost in one transaction at most; one ticket always fits. Defaults to 4 MiB.
	BatchesInFlight int           // transactions under way at once. Defaults to 2.
	WaitingTickets  int           // tickets waiting for a transaction at most, beyond that ErrOverloaded. Defaults to 10,000.
	WaitingBytes    int           // sum of Ticket.Cost of those at most; of what is being read as much again. Defaults to 64 MiB.
	Timeout         time.Duration // from a delivery to its answer. Defaults to 4 s: common senders give up at 5 s.
	Spool           Spool         // Defaults to none: what the store does not take is refused.
	OverflowWait    time.Duration // how long a ticket waits for a transaction before it is spooled. Defaults to 1 s.
	StoreTimeout    time.Duration // after which a transaction is given up and its tickets spooled. Defaults to 2 s.
	DrainTickets    int           // tickets of the spool in one transaction at most. Defaults to 1,024.
	DrainTimeout    time.Duration // after which a transaction of the largest size is given up. Defaults to 10 s.
	DrainTries      int           // after which a ticket of the spool that alone cannot be stored is set aside. Defaults to 5.
	DrainRetry      time.Duration // how long it is stepped over after the first; it doubles with each. Defaults to 5 s.
	KeyTTL          time.Duration // how long an idempotency key is remembered. Defaults to 7 days.
	Lease           time.Duration // how long a ticket that was stored unread stays claimed. Defaults to 1 min.

	Logger  *slog.Logger                                  // Defaults to slog.Default.
	Metrics *Metrics                                      // Defaults to metrics that are not exposed.
	NewID   func() (uuid.UUID, time.Time, error)          // Defaults to ticket.NewID.
	Parse   func([]byte) (ticket.Order, []ticket.Problem) // Defaults to ticket.Parse.
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
	c.DrainTickets = cmp.Or(c.DrainTickets, 1024)
	c.DrainTimeout = cmp.Or(c.DrainTimeout, 10*time.Second)
	c.DrainTries = cmp.Or(c.DrainTries, 5)
	c.DrainRetry = cmp.Or(c.DrainRetry, 5*time.Second)
	c.KeyTTL = cmp.Or(c.KeyTTL, 7*24*time.Hour)
	c.Lease = cmp.Or(c.Lease, time.Minute)
	c.Logger = cmp.Or(c.Logger, slog.Default())
	if c.Metrics == nil {
		c.Metrics = NewMetrics(nil)
	}
	if c.NewID == nil {
		c.NewID = ticket.NewID
	}
	if c.Parse == nil {
		c.Parse = ticket.Parse
	}
}
