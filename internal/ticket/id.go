package ticket

import (
	"crypto/rand"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
)

// process makes the ids of this process. There is one generator, so that all ids are ordered.
var process = IDs{Now: Now}

// NewID returns a new UUIDv7 and the time inside it, to the millisecond. A ticket's id contains its time, so that the id alone
// says which partition holds the ticket. NewID fails only if the system's random source fails.
func NewID() (uuid.UUID, time.Time, error) { return process.New() }

// IDTime returns the time inside a UUIDv7: its first 48 bits, Unix milliseconds (RFC 9562, section 5.7), in UTC.
func IDTime(id uuid.UUID) time.Time {
	ms := int64(id[0])<<40 | int64(id[1])<<32 | int64(id[2])<<24 | int64(id[3])<<16 | int64(id[4])<<8 | int64(id[5])
	return time.UnixMilli(ms).UTC()
}

// IDs makes UUIDv7s (RFC 9562, section 5.7). Each is greater than the one before, also if the clock stands still or goes back by
// less than a second. If the clock is set back by more, the ids follow it. uuid.NewV7 would keep the wrong time until the clock
// has caught up, and all that depends on ids or their times (partitions, retention, the newest ticket of a product) would be
// wrong too. The zero value is ready for use, by any number of goroutines.
type IDs struct {
	Now func() time.Time // Defaults to time.Now.

	mu   sync.Mutex // guards last
	last int64      // the first 60 bits of the last id without its version: milliseconds, and 1/4096 of these
}

// The bits of an id's lead after its milliseconds, and how far the clock may go back without being followed.
const (
	fractionBits  = 12
	followedAfter = 1000 << fractionBits
)

// New returns a new id and the time inside it, to the millisecond.
func (g *IDs) New() (uuid.UUID, time.Time, error) {
	var id uuid.UUID
	if _, err := rand.Read(id[8:]); err != nil {
		return uuid.Nil, time.Time{}, fmt.Errorf("read random bytes: %w", err)
	}
	id[8] = 0x80 | id[8]&0x3f // the variant of RFC 9562
	setLead(&id, g.lead())
	return id, IDTime(id), nil
}

// IDAt returns an id with another time, and that time to the millisecond: the id of a ticket that says when it was. The time must
// be after 1970. Ids of the same time are in the order of the part of a millisecond that it has, and else in no order.
func IDAt(id uuid.UUID, at time.Time) (uuid.UUID, time.Time) {
	setLead(&id, leadOf(at))
	return id, IDTime(id)
}

// setLead sets the first 60 bits of an id beside its version.
func setLead(id *uuid.UUID, lead int64) {
	ms, fraction := lead>>fractionBits, lead&(1<<fractionBits-1)
	id[0], id[1], id[2], id[3], id[4], id[5] = byte(ms>>40), byte(ms>>32), byte(ms>>24), byte(ms>>16), byte(ms>>8), byte(ms)
	id[6], id[7] = 0x70|byte(fraction>>8), byte(fraction) // version 7
}

// leadOf returns the first bits of an id of a time: milliseconds, and 12 bits of a fraction (section 6.2, method 3).
func leadOf(at time.Time) int64 {
	const millisecond = int64(time.Millisecond)
	nanoseconds := at.UnixNano()
	return nanoseconds/millisecond<<fractionBits | nanoseconds%millisecond<<fractionBits/millisecond
}

// lead returns the first bits of the next id: those of the time, or one more than the last lead.
func (g *IDs) lead() int64 {
	now := time.Now
	if g.Now != nil {
		now = g.Now
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	lead := leadOf(now()) // under the lock: otherwise a delayed goroutine would look like a clock that went back
	if behind := g.last - lead; behind >= 0 && behind < followedAfter {
		lead = g.last + 1
	}
	g.last = lead
	return lead
}
