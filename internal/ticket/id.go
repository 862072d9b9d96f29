package ticket

import (
	"time"

	"github.com/google/uuid"
)

// NewID returns a new UUIDv7 and the time inside it, to the millisecond. A ticket's identity carries its time so that
// the identity alone tells which partition holds the ticket. It fails only when the system's random source does.
func NewID() (uuid.UUID, time.Time, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return uuid.Nil, time.Time{}, err
	}
	return id, IDTime(id), nil
}

// IDTime returns the time inside a UUIDv7: its first 48 bits, Unix milliseconds (RFC 9562, section 5.7), in UTC.
func IDTime(id uuid.UUID) time.Time {
	ms := int64(id[0])<<40 | int64(id[1])<<32 | int64(id[2])<<24 | int64(id[3])<<16 | int64(id[4])<<8 | int64(id[5])
	return time.UnixMilli(ms).UTC()
}
