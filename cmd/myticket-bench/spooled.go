package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"myticket/internal/lab"
)

const (
	spoolConcurrency = 200
	// drainLimit bounds one drain.
	drainLimit = 10 * time.Minute
	// bytesPerLine is more than a line of a ticket takes in the spool.
	bytesPerLine = 200
)

// drain is what one round of a spool's row measured, in tickets/s but for the time.
type drain struct {
	webhook, spooled, drained float64
	total                     time.Duration // from the first answer of Postgres until the last ticket is treated
	memory                    int64
	works                     []work // none if the machine does not say; the client only waits
}

// printSpooled measures how fast the tickets of a spool get into Postgres, beside the rate of the webhook in the same minute.
func (b *bench) printSpooled(ctx context.Context) error {
	rows := b.spooledRows()
	if len(rows) == 0 {
		return nil
	}
	fmt.Fprintf(b.out, "\n%d tickets are put into a spool while Postgres is down, %d times. Drained is their rate into Postgres, "+
		"each stored and treated, while no others come. Webhook is what the same server took over %d connections shortly before.\n\n"+
		"| tickets of | drained/s | webhook/s | drained/webhook | least and most | drained/(c) | into the spool/s "+
		"| Postgres up until all are treated | peak memory | processor time |\n|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
		b.settings.spooled, b.settings.rounds, spoolConcurrency)
	for _, t := range rows {
		var drains []drain
		for range b.settings.rounds {
			d, err := b.drainOnce(ctx, t)
			if err != nil {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			drains = append(drains, d)
		}
		b.printDrains(t, drains)
	}
	return nil
}

// spooledRows are those that -only asks for.
func (b *bench) spooledRows() (rows []*tickets) {
	for _, lines := range []int{2, 40} {
		t := newTickets(lines, b.settings.products)
		t.name += ", drained from a spool"
		if b.settings.spooled > 0 && b.wants(t.name, spoolConcurrency) {
			rows = append(rows, t)
		}
	}
	return rows
}

func (b *bench) printDrains(t *tickets, drains []drain) {
	var webhook, spooled, drained []float64
	var totals []time.Duration
	var works []work
	var memory int64
	for _, d := range drains {
		webhook, spooled, drained = append(webhook, d.webhook), append(spooled, d.spooled), append(drained, d.drained)
		totals, works, memory = append(totals, d.total), append(works, d.works...), max(memory, d.memory)
	}
	all, perCeiling := pairs(drained, webhook), ""
	if t.lines == ceilingLines {
		perCeiling = fmt.Sprintf("%.2f", median(drained)/b.ceiling)
	}
	fmt.Fprintf(b.out, "| %s | %.0f | %.0f | **%.2f** | %.2f–%.2f | %s | %.0f | %s | %s | %s |\n", t.name, median(drained),
		median(webhook), median(all), slices.Min(all), slices.Max(all), perCeiling, median(spooled),
		median(totals).Round(10*time.Millisecond), describeMemory(memory), describeWork(works))
}

// drainOnce fills the spool of a fresh server and lets it drain.
func (b *bench) drainOnce(ctx context.Context, t *tickets) (d drain, err error) {
	folder, err := os.MkdirTemp("", "myticket-bench-")
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(folder)) }()
	count := b.settings.spooled
	room := max(count*(t.lines+5)*bytesPerLine, 1<<30)
	db, server, err := b.fresh(ctx, t.products, "--spool-dir", folder,
		"--spool-max-tickets", strconv.Itoa(2*count), "--spool-max-bytes", strconv.Itoa(room))
	if err != nil {
		return d, err
	}
	defer func() { err = errors.Join(err, server.stop()) }()

	l := b.slice(spoolConcurrency, t)
	l.addr = server.addr
	before, err := l.run(ctx)
	if err != nil {
		return d, err
	}
	if err := b.database.Kill(); err != nil { // Stop would remove the data
		return d, err
	}
	l.count, l.mayBeKept = count, true
	kept, err := l.run(ctx)
	if err != nil {
		return d, err
	}
	if waiting, err := spoolTickets(ctx, server); err != nil || waiting != count {
		return d, errors.Join(err, fmt.Errorf("%d of %d tickets are in the spool", waiting, count))
	}
	if err := b.database.Restart(ctx); err != nil {
		return d, err
	}
	d.webhook, d.spooled = before.perSecond, kept.perSecond
	if err := d.watch(ctx, b.database.PID(), server, db, count, before.acked+count); err != nil {
		return d, err
	}
	d.memory = server.peakMemory()
	return d, db.checkStored(ctx, before.acked+count)
}

// watch measures the drain, which begins by itself. The time before the server notices that Postgres is back is in the total
// alone.
func (d *drain) watch(ctx context.Context, postgres int, server *process, db *database, count, stored int) error {
	const interval = 20 * time.Millisecond
	start := time.Now()
	begin := start
	clock, known := readClocks(server.PID(), postgres, false)
	for left := count; left > 0; lab.Pause(ctx, interval) {
		asked := time.Now()
		var err error
		if left, err = spoolTickets(ctx, server); err != nil {
			return err
		}
		if left == count {
			begin = asked
			clock, known = readClocks(server.PID(), postgres, false)
		}
		if time.Since(start) > drainLimit {
			return fmt.Errorf("%d of %d tickets were still in the spool after %s", left, count, drainLimit)
		}
	}
	err := lab.Await(ctx, drainLimit, "drained tickets to be treated", func(ctx context.Context) error {
		n, err := db.count(ctx, `SELECT count(*) FROM tickets WHERE status = 'TREATED'`)
		if err == nil && n < stored {
			err = fmt.Errorf("%d of %d are", n, stored)
		}
		return err
	})
	if err != nil {
		return err
	}
	end := time.Now()
	d.drained, d.total = float64(count)/end.Sub(begin).Seconds(), end.Sub(start)
	if after, ok := readClocks(server.PID(), postgres, true); ok && known {
		d.works = []work{after.since(clock, count)}
	}
	return nil
}

// spoolTickets returns how many tickets are in the server's spool.
func spoolTickets(ctx context.Context, server *process) (int, error) {
	const name = "myticket_spool_tickets"
	found, err := lab.Metrics(ctx, server.admin, name)
	if err != nil {
		return 0, err
	}
	value, ok := found[name]
	if !ok {
		return 0, fmt.Errorf("the server has no metric %s", name)
	}
	return int(value), nil
}
