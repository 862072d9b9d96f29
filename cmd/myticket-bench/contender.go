package main

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"time"

	"myticket/internal/lab"
)

// contender is a server whose figures are compared with those of others in the same row.
type contender struct {
	name  string
	start func(ctx context.Context, url string) (*process, error) // on the database of that URL

	process *process
	figures
}

// figures are what a contender did in one row.
type figures struct {
	rates  []float64 // tickets/s of each slice
	p50s   []time.Duration
	p99s   []time.Duration
	works  []work // of each slice; none if the machine does not say
	acked  int
	memory int64 // peak in bytes; 0 if the machine does not say
}

// work is processor time for a ticket in seconds, of each of the three that take part.
type work struct{ client, server, postgres float64 }

// measure sends traffic to the contender. postgres is the process id of the postmaster.
func (c *contender) measure(ctx context.Context, l load, postgres int) error {
	l.addr = c.process.addr
	before, known := readClocks(c.process.PID(), postgres, false)
	r, err := l.run(ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	if after, ok := readClocks(c.process.PID(), postgres, true); ok && known {
		c.works = append(c.works, after.since(before, r.acked))
	}
	c.rates, c.p50s, c.p99s = append(c.rates, r.perSecond), append(c.p50s, r.p50), append(c.p99s, r.p99)
	c.acked += r.acked
	c.memory = max(c.memory, c.process.peakMemory())
	return nil
}

// open sends each ticket once. So the server has seen what the product base says, as one that has run for half a minute: to ask
// about all products is what its first seconds are made of.
func (c *contender) open(ctx context.Context, l load) error {
	l.addr, l.count = c.process.addr, l.tickets.count
	r, err := l.run(ctx)
	if err != nil {
		return fmt.Errorf("%s, before the first slice: %w", c.name, err)
	}
	c.acked += r.acked
	return nil
}

// clocks are the processor times that were used until a moment.
type clocks struct{ client, server, postgres time.Duration }

// readClocks returns false if the machine does not say. To look takes time itself, so the client's clock is read last before the
// traffic and first after it.
func readClocks(server, postgres int, isAfter bool) (c clocks, known bool) {
	if isAfter {
		c.client = ownTime()
	}
	var err error
	if c.server, err = lab.TreeCPUTime(server); err != nil {
		return c, false
	}
	if c.postgres, err = lab.TreeCPUTime(postgres); err != nil {
		return c, false
	}
	if !isAfter {
		c.client = ownTime()
	}
	return c, true
}

func ownTime() time.Duration {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage) // it cannot fail with these arguments
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func (c clocks) since(before clocks, tickets int) work {
	each := func(d time.Duration) float64 { return d.Seconds() / float64(tickets) }
	return work{
		client: each(c.client - before.client), server: each(c.server - before.server), postgres: each(c.postgres - before.postgres),
	}
}

// serverWork is the part of the server alone.
func (f *figures) serverWork() []float64 {
	all := make([]float64, len(f.works))
	for i, w := range f.works {
		all[i] = w.server
	}
	return all
}

// describeWork returns the medians in µs: of the client, the server and Postgres.
func describeWork(works []work) string {
	if len(works) == 0 {
		return "unknown"
	}
	middle := func(of func(work) float64) float64 {
		var all []float64
		for _, w := range works {
			all = append(all, of(w))
		}
		return median(all) * 1e6
	}
	return fmt.Sprintf("%.0f + %.0f + %.0f", middle(func(w work) float64 { return w.client }),
		middle(func(w work) float64 { return w.server }), middle(func(w work) float64 { return w.postgres }))
}

// describeMemory returns bytes in MiB.
func describeMemory(bytes int64) string {
	if bytes == 0 {
		return "unknown"
	}
	return fmt.Sprintf("%d MiB", bytes>>20)
}

// pairs returns a/b, slice by slice; nothing if one of them is not known for each.
func pairs(a, b []float64) []float64 {
	if len(a) != len(b) {
		return nil
	}
	all := make([]float64, len(a))
	for i := range a {
		all[i] = a[i] / b[i]
	}
	return all
}

func median[T float64 | time.Duration](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
