package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"myticket/internal/lab"
)

const (
	sustainConcurrency = 200
	sustainLines       = 40
	// A server that fills order_lines behind intake says with these how far behind it is.
	linesLag     = "myticket_order_lines_lag_seconds"
	linesWaiting = "myticket_order_lines_waiting_tickets"
	// catchUpLimit bounds the wait for order_lines after the traffic.
	catchUpLimit = 10 * time.Minute
)

// sustained sends a share of the floor's rate for a long time, and prints whether the server keeps up, also with what it does
// behind.
func (b *bench) sustained(ctx context.Context) (err error) {
	t := newTickets(sustainLines, b.settings.products)
	floor, err := b.floorRate(ctx, t)
	if err != nil {
		return err
	}
	size := b.settings.share * floor * b.settings.sustain.Seconds() * float64(len(t.requests[0]))
	if err := checkRoom(b.database.Dir(), size); err != nil {
		return err
	}
	db, server, err := b.fresh(ctx, t.products)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	l := b.slice(sustainConcurrency, t)
	l.addr, l.rate, l.duration = server.addr, b.settings.share*floor, b.settings.sustain
	fmt.Fprintf(b.out, "%s at a steady rate for %s: %.2f of the floor's %.0f/s, over %d connections.\n\n",
		t.name, b.settings.sustain, b.settings.share, floor, sustainConcurrency)

	watch := watchGauges(ctx, server.admin, max(b.settings.sustain/600, 100*time.Millisecond), linesLag, linesWaiting)
	before, known := readClocks(server.PID(), b.database.PID(), false)
	r, err := l.run(ctx)
	after, ok := readClocks(server.PID(), b.database.PID(), true)
	seen, watchErr := watch()
	if err := errors.Join(err, watchErr); err != nil {
		return err
	}
	var works []work
	if known && ok {
		works = append(works, after.since(before, r.acked))
	}
	fmt.Fprint(b.out, "| asked/s | answered/s | share of the floor | p50 | p99 | lag of order lines, most and at the end "+
		"| tickets that wait for them, most and at the end | caught up after | peak memory | processor time |\n"+
		"|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	caughtUp, err := catchUp(ctx, server.admin, seen)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.out, "| %.0f | %.0f | **%.2f** | %s | %s | %s | %s | %s | %s | %s |\n", l.rate, r.perSecond, r.perSecond/floor,
		r.p50.Round(10*time.Microsecond), r.p99.Round(10*time.Microsecond), seen[linesLag].describe(" s"),
		seen[linesWaiting].describe(""), caughtUp, describeMemory(server.peakMemory()), describeWork(works))
	return db.checkStored(ctx, r.acked)
}

// checkRoom returns an error if a folder's disk has no room for what Postgres makes of tickets of a size in bytes: the bodies,
// their lines in half that size, and the write-ahead log.
func checkRoom(dir string, size float64) error {
	const mostLog = 6 << 30 // max_wal_size, and what comes before a checkpoint has ended
	var stat syscall.Statfs_t
	if err := syscall.Statfs(dir, &stat); err != nil {
		return fmt.Errorf("look for room in %s: %w", dir, err)
	}
	free, needed := float64(stat.Bavail)*float64(stat.Bsize), 1.5*size+min(3*size, mostLog)
	if free < needed {
		return fmt.Errorf("-sustain would need about %.0f GiB in %s, which has %.0f GiB: make it shorter, or name another disk "+
			"in TMPDIR", needed/(1<<30), dir, free/(1<<30))
	}
	return nil
}

// floorRate returns the median rate of the floor.
func (b *bench) floorRate(ctx context.Context, t *tickets) (rate float64, err error) {
	floor, err := startFloor(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, floor.stop()) }()
	l := b.slice(sustainConcurrency, t)
	l.addr = floor.addr
	var rates []float64
	for range b.settings.rounds {
		r, err := l.run(ctx)
		if err != nil {
			return 0, err
		}
		rates = append(rates, r.perSecond)
	}
	return median(rates), nil
}

// gauge is what was seen of a metric. The zero value is one that the server does not have.
type gauge struct {
	known      bool
	most, last float64
}

func (g gauge) describe(unit string) string {
	if !g.known {
		return "the server has no such metric"
	}
	return fmt.Sprintf("%.4g%s, %.4g%s", g.most, unit, g.last, unit)
}

func (g gauge) after(value float64) gauge {
	return gauge{known: true, most: max(g.most, value), last: value}
}

// watchGauges reads metrics again and again until the function that it returns is called, which returns what was seen.
func watchGauges(ctx context.Context, addr string, interval time.Duration, names ...string) func() (map[string]gauge, error) {
	ctx, cancel := context.WithCancel(ctx)
	seen, done := map[string]gauge{}, make(chan error, 1)
	go func() {
		for {
			found, err := lab.Metrics(context.WithoutCancel(ctx), addr, names...)
			if err != nil {
				done <- err
				return
			}
			for name, value := range found {
				seen[name] = seen[name].after(value)
			}
			if ctx.Err() != nil {
				done <- nil
				return
			}
			lab.Pause(ctx, interval)
		}
	}()
	return func() (map[string]gauge, error) {
		cancel()
		return seen, <-done
	}
}

// catchUp waits until no ticket waits for its order lines, and returns how long that took.
func catchUp(ctx context.Context, addr string, seen map[string]gauge) (string, error) {
	if !seen[linesWaiting].known {
		return "unknown", nil
	}
	start := time.Now()
	err := lab.Await(ctx, catchUpLimit, "order lines", func(ctx context.Context) error {
		found, err := lab.Metrics(ctx, addr, linesWaiting)
		if err == nil && found[linesWaiting] > 0 {
			err = fmt.Errorf("%.0f tickets wait for them", found[linesWaiting])
		}
		return err
	})
	return time.Since(start).Round(100 * time.Millisecond).String(), err
}
