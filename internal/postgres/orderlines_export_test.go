package postgres

import "time"

// Yield is the pause after a transaction that took some time and filled tickets of an age.
func (l *OrderLines) Yield(took, age time.Duration) time.Duration { return l.yield(took, age) }

// What OrderLines asks.
const (
	NextInOutboxSQL  = nextInOutbox
	ReadForLinesSQL  = readForLines
	OutboxBacklogSQL = outboxBacklog
)
