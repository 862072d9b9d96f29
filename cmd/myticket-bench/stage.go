package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"myticket/internal/lab"
)

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
// another order each round. The speed of a shared machine drifts, and so the drift affects all of them. It ends with a look at
// what was stored.
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
		if i == serverAt && !r.isNew {
			if err := c.open(ctx, r.load); err != nil {
				return err
			}
		}
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
	db, server, err := b.fresh(ctx, hotProducts)
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
