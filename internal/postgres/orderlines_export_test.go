package postgres

import (
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

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

// ExplainSteady runs a statement as those of an outboxReader, and returns its plan.
func (s *Store) ExplainSteady(ctx context.Context, sql string) (plan string, err error) {
	err = s.steady(ctx, func(tx pgx.Tx) error {
		rows, err := tx.Query(ctx, `EXPLAIN (ANALYZE) `+sql)
		if err != nil {
			return err
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		plan = strings.Join(lines, "\n")
		return err
	})
	return plan, err
}
