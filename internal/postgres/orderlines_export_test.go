package postgres

import "time"

// Yield is the pause after a transaction that took some time and filled tickets of an age.
func (l *OrderLines) Yield(took, age time.Duration) time.Duration { return l.yield(took, age) }

// SetClock replaces the clock, before the first Round.
func (l *OrderLines) SetClock(now func() time.Time) { l.now = now }

// What OrderLines asks.
const (
	NextInOutboxSQL  = nextInOutbox
	ReadForLinesSQL  = readForLines
	OutboxBacklogSQL = outboxBacklog
)
