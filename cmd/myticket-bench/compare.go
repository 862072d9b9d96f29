package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

// variant is a server that differs from another in one thing.
type variant struct {
	contender

	program     string
	environment []string
	spans       *receiver
	target      string // of the events of its tickets, which a process beside it sends; empty for none
}

// compare sends traffic to the variants of the server in turn, slice by slice, in another order each round. It prints each
// variant's figures as a ratio to those of the first.
func (b *bench) compare(ctx context.Context) error {
	named := func(name, program string) *variant {
		return &variant{contender: contender{name: name}, program: program}
	}
	variants := []*variant{named("`"+b.settings.server+"`", b.settings.server)}
	if b.settings.vs != "" {
		variants = append(variants, named("`"+b.settings.vs+"`", b.settings.vs))
	}
	if b.settings.tracing {
		some, all := named("the first, 1 % sampled", b.settings.server), named("the first, 100 % sampled", b.settings.server)
		some.spans, some.environment = &receiver{}, []string{
			"OTEL_TRACES_SAMPLER=parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG=0.01",
		}
		all.spans, all.environment = &receiver{}, []string{"OTEL_TRACES_SAMPLER=parentbased_always_on"}
		variants = append(variants, some, all)
	}
	for _, v := range variants {
		if v.spans != nil {
			address, stop, err := v.spans.listen(ctx)
			if err != nil {
				return err
			}
			defer stop()
			v.environment = append(v.environment, "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+address)
		}
	}
	return b.compareVariants(ctx, variants)
}

func (b *bench) compareVariants(ctx context.Context, variants []*variant) error {
	fmt.Fprintf(b.out, "%d rounds a row, in each a slice of %s for each server after %s of warm-up, in another order each time. "+
		"Ratios are medians over the rounds, with their 95 %% interval.\n\n"+
		"| tickets of | concurrency | server | tickets/s | p50 | p99 | ratio of tickets/s | ratio of the server's CPU a ticket "+
		"| spans received a ticket | peak memory | processor time |\n|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|\n",
		b.settings.rounds, b.settings.duration, b.settings.warmUp)
	rates, works := make([][]float64, len(variants)), make([][]float64, len(variants)) // ratios of all rounds of all rows
	for r := range b.rows() {
		if r.isNew {
			continue // each round would need fresh servers
		}
		if err := b.compareRow(ctx, variants, r); err != nil {
			return fmt.Errorf("%s, concurrency %d: %w", r.label(), r.concurrency, err)
		}
		for i, v := range variants {
			rates[i] = append(rates[i], pairs(v.rates, variants[0].rates)...)
			works[i] = append(works[i], pairs(v.serverWork(), variants[0].serverWork())...)
		}
	}
	for i, v := range variants[1:] {
		fmt.Fprintf(b.out, "| all | | %s | | | | %s | %s | | | |\n", v.name,
			describeRatios(rates[i+1]), describeRatios(works[i+1]))
	}
	return nil
}

// compareRow measures fresh servers with one shape of traffic. Each round begins without tickets; products stay, because a server
// may remember them.
func (b *bench) compareRow(ctx context.Context, variants []*variant, r row) (err error) {
	db, err := b.newDatabase(ctx, r.tickets.products)
	if err != nil {
		return err
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
	for _, v := range variants {
		v.figures = figures{}
		if v.process, err = b.launch(ctx, v.program, address, v.environment); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, v.process.stop()) }()
		if err := v.open(ctx, r.load); err != nil {
			return err
		}
	}
	acked := func() (all int) {
		for _, v := range variants {
			all += v.acked
		}
		return all
	}
	for round := range b.settings.rounds {
		if err := db.exec(ctx, `TRUNCATE tickets, deliveries`, `CHECKPOINT`); err != nil {
			return err
		}
		before := acked()
		for i := range variants {
			if err := b.beside(ctx, db.url, variants[(round+i)%len(variants)], r.load); err != nil {
				return err
			}
		}
		if err := db.checkStored(ctx, acked()-before); err != nil {
			return err
		}
	}
	b.printComparison(variants, r)
	return nil
}

func (b *bench) printComparison(variants []*variant, r row) {
	for i, v := range variants {
		rates, cpus, spans := "", "", ""
		if i > 0 {
			rates = describeRatios(pairs(v.rates, variants[0].rates))
			cpus = describeRatios(pairs(v.serverWork(), variants[0].serverWork()))
		}
		if v.spans != nil {
			spans = fmt.Sprintf("%.3f", float64(v.spans.received.Swap(0))/float64(v.acked))
		}
		fmt.Fprintf(b.out, "| %s | %d | %s | %.0f | %s | %s | %s | %s | %s | %s | %s |\n", r.label(), r.concurrency, v.name,
			median(v.rates), median(v.p50s).Round(10*time.Microsecond), median(v.p99s).Round(10*time.Microsecond), rates, cpus, spans,
			describeMemory(v.memory), describeWork(v.works))
	}
}

// describeRatios returns the median of ratios, and the interval that has the true one with 95 %: that of the order statistics, by
// the normal approximation of the binomial distribution.
func describeRatios(ratios []float64) string {
	if len(ratios) == 0 {
		return ""
	}
	all := slices.Sorted(slices.Values(ratios))
	n := float64(len(all))
	reach := 1.96 * math.Sqrt(n) / 2
	low := max(int(math.Floor(n/2-reach)), 0)
	high := min(int(math.Ceil(n/2+reach)), len(all)-1)
	return fmt.Sprintf("**%.3f** (%.3f–%.3f)", median(all), all[low], all[high])
}
