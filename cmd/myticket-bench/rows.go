package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"slices"
	"strings"
	"time"

	"myticket/internal/lab"
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
				for _, products := range []int{hotProducts, distinctProducts} {
					r := row{load: b.slice(concurrency, newTickets(lines, products))}
					if !yield(r) {
						return
					}
				}
			}
		}
		opening := row{load: b.slice(200, newShopTickets(40, newShopProducts)), isNew: true}
		opening.warmUp = 0
		if !yield(opening) || b.settings.latency == 0 {
			return
		}
		for _, lines := range []int{2, 40} {
			for _, concurrency := range []int{50, 200} {
				r := row{load: b.slice(concurrency, newTickets(lines, distinctProducts)), latency: b.settings.latency}
				if !yield(r) {
					return
				}
			}
		}
	}
}

// slice is traffic as long as the settings say.
func (b *bench) slice(concurrency int, t tickets) load {
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
	fmt.Fprintf(b.out, "\nA row is %d slices of %s of each server in turn, each after %s of warm-up. The new shop has no products, and "+
		"each of its slices begins with a fresh server and an empty database, without warm-up. Processor time is in µs a ticket, of "+
		"the client, the server and Postgres.\n",
		b.settings.rounds, b.settings.duration, b.settings.warmUp)
	if b.settings.latency > 0 {
		fmt.Fprintf(b.out, "Where Postgres is away, a proxy in the client's process delays what it answers, so each round trip takes %s "+
			"more; the client's processor time includes the proxy's.\n", b.settings.latency)
	}
	fmt.Fprint(b.out, "\n| tickets of | concurrency | (a) floor/s | (b) MyTicket/s | p50 | p99 "+
		"| (b)/(a) | least and most | (b)/(c) | peak memory | processor time |\n"+
		"|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	var beside []string
	for r := range b.rows() {
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

func (b *bench) printRow(r row, floor, server *contender) {
	rate, perCeiling := median(server.rates), ""
	if r.tickets.lines == 2 {
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

// measure runs a row.
func (b *bench) measure(ctx context.Context, r row, contenders []*contender) error {
	if !r.isNew {
		return b.stage(ctx, r, contenders, 0, b.settings.rounds)
	}
	for round := range b.settings.rounds {
		if err := b.stage(ctx, r, contenders, round, 1); err != nil {
			return err
		}
	}
	return nil
}

// stage starts the contenders on a fresh database, all at the same time, and sends traffic to them in turn, slice by slice, in
// another order each round. The speed of a shared machine drifts, and so the drift affects all of them. It ends with a look at what
// was stored.
func (b *bench) stage(ctx context.Context, r row, contenders []*contender, first, rounds int) (err error) {
	products := r.tickets.products
	if r.isNew {
		products = 0
	}
	db, err := b.newDatabase(ctx, products)
	if err != nil {
		return err
	}
	for _, p := range b.peers {
		if err := db.exec(ctx, p.createTable()); err != nil {
			return err
		}
	}
	address := db.url
	if r.latency > 0 {
		proxy, through, err := delayed(ctx, address, r.latency)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, proxy.Close()) }()
		address = through
	}
	before := make([]int, len(contenders))
	for i, c := range contenders {
		before[i] = c.acked
		if c.process, err = c.start(ctx, address); err != nil {
			return fmt.Errorf("start %s: %w", c.name, err)
		}
		defer func() { err = errors.Join(err, c.process.stop()) }()
	}
	if b.settings.profile != "" {
		length := time.Duration(rounds*len(contenders)) * (r.warmUp + r.duration)
		defer saveProfile(contenders[serverAt].process.admin, b.settings.profile, length)()
		b.settings.profile = ""
	}
	for round := range rounds {
		for i := range contenders {
			if err := contenders[(first+round+i)%len(contenders)].measure(ctx, r.load, b.database.PID()); err != nil {
				return err
			}
		}
	}
	if err := db.checkStored(ctx, contenders[serverAt].acked-before[serverAt]); err != nil {
		return err
	}
	for i, p := range b.peers {
		at := peersAt + i
		if err := p.checkStored(ctx, db, contenders[at].acked-before[at]); err != nil {
			return err
		}
	}
	return nil
}

// delayed starts a proxy before a database, and returns the URL that leads through it.
func delayed(ctx context.Context, address string, latency time.Duration) (*lab.Proxy, string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, "", fmt.Errorf("read the URL of the database: %w", err)
	}
	proxy, err := lab.StartProxy(ctx, u.Host, lab.Delay(latency))
	if err != nil {
		return nil, "", err
	}
	u.Host = proxy.Addr()
	return proxy, u.String(), nil
}

// summary measures the answer time at half load, and compares it with a single-row commit.
func (b *bench) summary(ctx context.Context) (err error) {
	if b.best == 0 {
		return nil
	}
	db, err := b.newDatabase(ctx, hotProducts)
	if err != nil {
		return err
	}
	server, err := b.launch(ctx, b.settings.server, db.url, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	l := b.slice(50, newTickets(2, hotProducts))
	l.addr, l.rate, l.duration = server.addr, b.best/2, time.Duration(b.settings.rounds)*b.settings.duration
	r, err := l.run(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.out, "\nAt half of that rate (2 lines, 10 products, %.0f/s over 50 connections) p50 is %s and p99 %s, "+
		"%.1f times a single-row commit (%s, pgbench with one client).\n", r.perSecond, r.p50.Round(10*time.Microsecond),
		r.p99.Round(10*time.Microsecond), float64(r.p99)/float64(b.single), b.single.Round(time.Microsecond))
	return db.checkStored(ctx, r.acked)
}
