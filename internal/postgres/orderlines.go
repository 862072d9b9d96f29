package postgres

import (
	"context"
	"errors"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// linesReader is the name under which the filler of order lines reads the outbox.
const linesReader = "order_lines"

// OrderLinesConfig configures OrderLines.
type OrderLinesConfig struct {
	Period Period // length of a partition. Defaults to Day.

	// Ready reports whether the database can be used. Defaults to always.
	Ready func() bool

	// Busy reports whether this server is storing tickets, which comes before their lines. Defaults to never.
	Busy func() bool

	// Registry gets the metrics. Defaults to none.
	Registry prometheus.Registerer
}

// OrderLines fills ticket_lines, and so the view order_lines, a moment behind the tickets.
type OrderLines struct {
	config OrderLinesConfig
	filler lineFiller
	now    func() time.Time
}

// Intervals and limits of OrderLines.
const (
	linesInterval = time.Second
	linesTimeout  = 10 * time.Second // of a transaction
	linesRows     = 64               // of the outbox that are read at once, with the tickets of at least as many batches

	// While tickets are stored, filling pauses after each transaction for linesYield times as long as that took, and less the
	// later the lines are; not at all once they are linesLate. So it takes a tenth of the time at first, which leaves a burst
	// nearly undisturbed, and as much as it needs of an endless load.
	linesYield    = 9
	linesLate     = time.Minute
	linesMaxPause = 2 * time.Second // less than outboxHold
)

// NewOrderLines returns OrderLines.
func NewOrderLines(config OrderLinesConfig, store *Store) *OrderLines {
	if config.Period == "" {
		config.Period = Day
	}
	if config.Ready == nil {
		config.Ready = func() bool { return true }
	}
	if config.Busy == nil {
		config.Busy = func() bool { return false }
	}
	return &OrderLines{config: config, now: time.Now, filler: lineFiller{
		store: store, reader: outboxReader{store, linesReader, uuid.New()}, period: config.Period,
		failed: promauto.With(config.Registry).NewCounter(prometheus.CounterOpts{
			Name: "myticket_order_lines_failed_tickets_total",
			Help: "Tickets whose lines this server could not fill, so order_lines lacks them. The tickets themselves are stored.",
		}),
	}}
}

// Run fills until ctx ends. Several servers may do so: one of them works, and another one follows within seconds after it ended.
func (l *OrderLines) Run(ctx context.Context) {
	store, failed := l.filler.store, false
	for ctx.Err() == nil {
		more := false
		if l.config.Ready() {
			var err error
			more, err = l.Round(ctx)
			if err != nil && ctx.Err() == nil && !failed {
				store.logger.Warn("order lines could not be filled; tickets are not affected, and it is tried again", "error", err)
			}
			failed = err != nil
		}
		if !more {
			pause(ctx, linesInterval)
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	if err := l.filler.reader.leave(ctx); err != nil {
		store.logger.Debug("another server fills order lines only after some seconds", "error", err)
	}
}

// Round fills the lines of some batches. It reports whether there may be more. It does nothing while another server fills.
func (l *OrderLines) Round(ctx context.Context) (more bool, err error) {
	if !l.spare() {
		return false, nil
	}
	read := l.now()
	chunk, err := l.filler.reader.next(ctx, linesRows, linesTimeout)
	if err != nil {
		return false, explain("read the outbox", err)
	}
	tickets := chunk.tickets()
	if last := len(chunk.rows) - 1; last >= 0 && len(tickets) == 0 { // rows that change no lines
		step := outboxStep{from: chunk.after, to: chunk.rows[last].xid, at: chunk.rows[last].at}
		return chunk.more, explain("pass by rows of the outbox", l.filler.write(ctx, nil, nil, step))
	}
	for place := chunk.after; len(tickets) > 0; {
		if !l.spare() {
			return false, nil
		}
		start := l.now()
		age := tickets[0].row.age + start.Sub(read) // a chunk of drained tickets can take minutes
		limited, cancel := context.WithTimeout(ctx, linesTimeout)
		var n int
		n, place, err = l.filler.fill(limited, tickets, place)
		cancel()
		if errors.Is(err, errNotReader) {
			return false, nil
		}
		if err != nil {
			return false, explain("fill order lines", err)
		}
		tickets = tickets[n:]
		pause(ctx, l.yield(l.now().Sub(start), age))
	}
	return chunk.more, nil
}

// spare reports whether there is a connection to spare. Batches come first, and so does the check whether the database answers.
func (l *OrderLines) spare() bool {
	pool := l.filler.store.pool.Stat()
	return pool.AcquiredConns() < pool.MaxConns()-1 || pool.MaxConns() < 3
}

// yield returns the pause after a transaction that took some time and filled tickets of an age.
func (l *OrderLines) yield(took, age time.Duration) time.Duration {
	if !l.config.Busy() {
		return 0
	}
	inTime := min(max(1-age.Seconds()/linesLate.Seconds(), 0), 1)
	return min(time.Duration(inTime*linesYield*float64(took)), linesMaxPause)
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
