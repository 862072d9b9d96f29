package main

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"
)

// row is one shape of traffic, and what it meets.
type row struct {
	load

	isNew   bool          // a shop that opens: without products, and each round begins anew, without a warm-up
	latency time.Duration // of each round trip to Postgres, beside the machine's own
}

func (r row) label() string {
	if r.latency > 0 {
		return fmt.Sprintf("%s, Postgres %s away", r.tickets.name, r.latency)
	}
	return r.tickets.name
}

// rows are those that -only asks for.
func (b *bench) rows() iter.Seq[row] {
	return func(yield func(row) bool) {
		for r := range b.allRows() {
			if b.wants(r.label(), r.concurrency) && !yield(r) {
				return
			}
		}
	}
}

func (b *bench) wants(label string, concurrency int) bool {
	return b.only.MatchString(fmt.Sprintf("%s, concurrency %d", label, concurrency))
}

func (b *bench) allRows() iter.Seq[row] {
	return func(yield func(row) bool) {
		for _, lines := range []int{2, 40} {
			for _, concurrency := range []int{50, 200} {
				for _, products := range []int{hotProducts, b.settings.products} {
					r := row{load: b.slice(concurrency, newTickets(lines, products))}
					if !yield(r) {
						return
					}
				}
			}
		}
		opening := row{load: b.slice(200, newShopTickets(40, b.settings.products/5)), isNew: true}
		opening.warmUp = 0
		if !yield(opening) || b.settings.latency == 0 {
			return
		}
		for _, lines := range []int{2, 40} {
			for _, concurrency := range []int{50, 200} {
				r := row{load: b.slice(concurrency, newTickets(lines, b.settings.products)), latency: b.settings.latency}
				if !yield(r) {
					return
				}
			}
		}
	}
}

// slice is traffic as long as the settings say.
func (b *bench) slice(concurrency int, t *tickets) load {
	return load{concurrency: concurrency, tickets: t, warmUp: b.settings.warmUp, duration: b.settings.duration}
}

// The floor and MyTicket come before all peers.
const (
	floorAt = iota
	serverAt
	peersAt
)

func (b *bench) contenders() []*contender {
	all := []*contender{
		{name: "the floor", start: func(ctx context.Context, _ string) (*process, error) { return startFloor(ctx) }},
		{name: "MyTicket", start: func(ctx context.Context, url string) (*process, error) {
			return b.launch(ctx, b.settings.server, url, nil)
		}},
	}
	for _, p := range b.peers {
		all = append(all, &contender{name: p.name, start: p.start})
	}
	return all
}

// printRows measures the rows, and prints one table of MyTicket and one of the peers.
func (b *bench) printRows(ctx context.Context) error {
	var beside []string
	isFirst := true
	for r := range b.rows() {
		if isFirst {
			b.printRowsHeader()
			isFirst = false
		}
		contenders := b.contenders()
		if err := b.measure(ctx, r, contenders); err != nil {
			return fmt.Errorf("%s, concurrency %d: %w", r.label(), r.concurrency, err)
		}
		b.printRow(r, contenders[floorAt], contenders[serverAt])
		if len(b.peers) > 0 {
			beside = append(beside, besidePeers(r, contenders[serverAt], contenders[peersAt:]))
		}
	}
	if len(beside) > 0 {
		fmt.Fprintf(b.out, "\n%s\n%s", b.peersHeader(), strings.Join(beside, ""))
	}
	return nil
}

func (b *bench) printRowsHeader() {
	fmt.Fprintf(b.out, "\nA row is %d slices of %s of each server in turn, each after %s of warm-up. Before the first one, each "+
		"ticket was sent once to MyTicket. The new shop has no products, and each of its slices begins with a fresh server and an "+
		"empty database, without warm-up. Processor time is in µs a ticket, of the client, the server and Postgres.\n",
		b.settings.rounds, b.settings.duration, b.settings.warmUp)
	if b.settings.latency > 0 {
		fmt.Fprintf(b.out, "Where Postgres is away, a proxy in the client's process delays what it answers, so each round trip takes "+
			"%s more; the client's processor time includes the proxy's.\n", b.settings.latency)
	}
	fmt.Fprint(b.out, "\n| tickets of | concurrency | (a) floor/s | (b) MyTicket/s | p50 | p99 "+
		"| (b)/(a) | least and most | (b)/(c) | peak memory | processor time |\n"+
		"|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
}

func (b *bench) printRow(r row, floor, server *contender) {
	rate, perCeiling := median(server.rates), ""
	if r.tickets.lines == ceilingLines {
		perCeiling = fmt.Sprintf("%.2f", rate/b.ceiling)
		if r.concurrency == 200 && r.tickets.products == hotProducts {
			b.best = rate
		}
	}
	all := pairs(server.rates, floor.rates)
	fmt.Fprintf(b.out, "| %s | %d | %.0f | %.0f | %s | %s | **%.2f** | %.2f–%.2f | %s | %s | %s |\n", r.label(), r.concurrency,
		median(floor.rates), rate, median(server.p50s).Round(10*time.Microsecond), median(server.p99s).Round(10*time.Microsecond),
		median(all), slices.Min(all), slices.Max(all), perCeiling, describeMemory(server.memory), describeWork(server.works))
}
