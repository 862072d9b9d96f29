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

// FillAfter reads what is next, and writes its lines to the store that failOver returns.
func (l *OrderLines) FillAfter(ctx context.Context, failOver func() *Store) error {
	f := &l.filler
	chunk, err := f.reader.next(ctx, linesRows, linesTimeout)
	if err != nil {
		return err
	}
	tickets := chunk.tickets()
	rows, n, err := f.read(ctx, tickets)
	if err != nil {
		return err
	}
	f.store = failOver()
	f.reader.store = f.store
	step := stepTo(tickets, n, chunk.after)
	if err := f.write(ctx, rows, nil, outboxStep{from: step.from, of: step.of}); err != nil {
		return err
	}
	return f.write(ctx, rows, nil, step)
}

// ErrNotReader is what a step returns that changed nothing.
var ErrNotReader = errNotReader

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
