package intake

import (
	"context"
	"crypto/sha256"
	"time"

	"github.com/google/uuid"

	"myticket/internal/ticket"
)

// Entry is a ticket on its way into a store, and the idempotency key that it came with. A store or a spool only reads it.
type Entry struct {
	Ticket ticket.Ticket // with what was read from it, unless the Batch is Unread
	CameAt time.Time     // when the delivery came, if it said another time (Delivery.Time); otherwise zero

	Key          string // idempotency key; empty for none
	KeyExpiresAt time.Time
	BodySHA256   [sha256.Size]byte // set when Key is
}

// Came returns when the entry came, whatever time its sender says it is of.
func (e *Entry) Came() time.Time {
	if !e.CameAt.IsZero() {
		return e.CameAt
	}
	return e.Ticket.ReceivedAt
}

// Batch is what one transaction stores, all or nothing.
type Batch struct {
	Entries []*Entry // at least one

	// Unread stores only what came: the status is ticket.ToTreat, and what was read from the tickets is left out.
	Unread bool
	// ClaimFor is for a batch that is Unread: the process that stores the tickets treats them itself, and others may claim
	// them after this time, by the store's own clock. 0 leaves them to the first process that claims them.
	ClaimFor time.Duration

	Drained bool // the tickets come from the spool, so no sender waits for an answer
}

// Outcome is what became of one entry.
type Outcome struct {
	ID       uuid.UUID // of the stored ticket: the entry's own, or with Duplicate that of the earlier delivery
	Status   ticket.Status
	Problems []ticket.Problem // with Status ticket.Error

	Duplicate bool // the key was used before for the same body: nothing more was stored
	KeyReused bool // the key was used before for another body: nothing was stored, and the other fields are empty
}

// Saved is what became of the entries that were stored together.
type Saved struct {
	Outcomes []Outcome // one per entry, in their order
	// StoredBy is the traceparent of the span that stored them, or failed to; empty where that is not traced.
	StoredBy string
}

// Store is what intake needs of a durable store. Its errors are those of package ticket.
type Store interface {
	// Save stores all entries of a batch in one transaction, or none. A ticket that is already there (same ID) is no error,
	// so a batch whose commit was ambiguous can be saved again.
	Save(ctx context.Context, b Batch) (Saved, error)
	// Ping reports whether Save has a chance, whatever the tickets are: whether the store answers, takes what a batch
	// writes, and commits it. A store that answers and takes nothing (a locked table, a missing standby) fails it.
	Ping(ctx context.Context) error
}

// Spooled is an entry in the spool, and where it is there.
type Spooled struct {
	Entry
	Place Place
}

// Place is where an entry is in a spool. It means something to that spool alone, and until it is closed.
type Place struct{ Segment, Sequence uint64 }

// Spool is what intake needs of a durable queue on this machine's disk. It takes tickets while the store is away or behind.
// Any number of goroutines may call Put and Find, and Find never waits for the disk. Only one at a time may call Peek,
// Remove and Refuse.
type Spool interface {
	// Put stores all entries durably, or none. An entry whose idempotency key is in the spool already is not stored again:
	// its Outcome is a Duplicate or KeyReused. ErrSpoolFull means that there is no room; any other error means that the disk
	// fails.
	Put(entries []*Entry) (Saved, error)
	// Find returns the ticket that was spooled for an idempotency key. Until KeysRead is closed, it may not know tickets that
	// a process before this one spooled.
	Find(source, key string) (id uuid.UUID, bodySHA256 [sha256.Size]byte, ok bool)
	// KeysRead is closed when Find knows the keys of all tickets.
	KeysRead() <-chan struct{}
	// Peek returns the oldest tickets, unread, without those to skip: up to n tickets of up to b bytes, at least one ticket
	// if there is any. They stay in the spool until Remove. The caller owns what it gets.
	Peek(n int, b int64, skip func(uuid.UUID) bool) ([]Spooled, error)
	// Remove removes tickets that Peek returned, by their Place. One that is gone already is no error.
	Remove(tickets []Spooled) error
	// Refuse keeps a copy of a ticket for a person, because the store does not take it. The ticket itself stays until Remove.
	Refuse(e *Entry) error
}

// Treater treats one ticket that is stored unread and claimed by this process, and returns what the ticket is now. Attempt
// counts the claims of the ticket. An error means that the ticket is ticket.ToTreat still, or that another process has it.
type Treater interface {
	Treat(ctx context.Context, t ticket.Ticket, attempt int) (ticket.Status, []ticket.Problem, error)
}
