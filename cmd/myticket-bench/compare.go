package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"myticket/internal/lab"
)

// variant is a server that differs from another in one thing.
type variant struct {
	name        string
	program     string
	environment []string

	process *process
	spans   *receiver
	figures
}

// figures are what a variant did in one row.
type figures struct {
	rates []float64 // tickets/s of each slice
	cpus  []float64 // processor time of the server for a ticket of each slice, in seconds; none if the machine does not say
	p50s  []time.Duration
	p99s  []time.Duration
	acked int
}

// compare sends traffic to the variants of the server in turn, slice by slice, in another order each round. It prints each
// variant's figures as a ratio to those of the first.
func (b *bench) compare(ctx context.Context) error {
	variants := []*variant{{name: "`" + b.settings.server + "`", program: b.settings.server}}
	if b.settings.vs != "" {
		variants = append(variants, &variant{name: "`" + b.settings.vs + "`", program: b.settings.vs})
	}
	if b.settings.tracing {
		variants = append(variants,
			&variant{name: "the first, 1 % sampled", program: b.settings.server, spans: &receiver{}, environment: []string{
				"OTEL_TRACES_SAMPLER=parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG=0.01",
			}},
			&variant{name: "the first, 100 % sampled", program: b.settings.server, spans: &receiver{}, environment: []string{
				"OTEL_TRACES_SAMPLER=parentbased_always_on",
			}})
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
	fmt.Fprintf(b.out, "%d rounds a row, in each a slice of %s for each server after %s of warm-up, in another order each time. "+
		"Ratios are medians over the rounds, with their 95 %% interval.\n\n"+
		"| tickets of | concurrency | server | tickets/s | p50 | p99 | ratio of tickets/s | ratio of the server's CPU a ticket "+
		"| spans received a ticket |\n|---|--:|---|--:|--:|--:|--:|--:|--:|\n",
		b.settings.rounds, b.settings.duration, b.settings.warmUp)
	for l := range b.loads() {
		if err := b.compareRow(ctx, variants, l); err != nil {
			return err
		}
	}
	return nil
}

// compareRow measures fresh servers with one shape of traffic. Each round begins without tickets; products stay, because a server
// limits how many new ones a source may add.
func (b *bench) compareRow(ctx context.Context, variants []*variant, l load) (err error) {
	l.warmUp, l.duration = b.settings.warmUp, b.settings.duration
	if err := b.empty(ctx, "tickets, products, deliveries"); err != nil {
		return err
	}
	for _, v := range variants {
		v.figures = figures{}
		if v.process, err = b.launch(ctx, v.program, v.environment); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, v.process.stop()) }()
	}
	for round := range b.settings.rounds {
		if err := b.empty(ctx, "tickets, deliveries"); err != nil {
			return err
		}
		acked := 0
		for i := range variants {
			v := variants[(round+i)%len(variants)]
			n, err := v.measure(ctx, l)
			if err != nil {
				return err
			}
			acked += n
		}
		if err := b.checkStored(ctx, acked); err != nil {
			return err
		}
	}
	b.printComparison(variants, l)
	return nil
}

// measure sends traffic to the variant, and returns how many tickets it acknowledged.
func (v *variant) measure(ctx context.Context, l load) (acked int, err error) {
	l.addr = v.process.addr
	before, err := lab.CPUTime(v.process.PID())
	known := err == nil
	r, err := l.run(ctx)
	if err != nil {
		return 0, err
	}
	if after, err := lab.CPUTime(v.process.PID()); known && err == nil {
		v.cpus = append(v.cpus, (after-before).Seconds()/float64(r.acked))
	}
	v.rates, v.p50s, v.p99s = append(v.rates, r.perSecond), append(v.p50s, r.p50), append(v.p99s, r.p99)
	v.acked += r.acked
	return r.acked, nil
}

func (b *bench) printComparison(variants []*variant, l load) {
	for i, v := range variants {
		rates, cpus, spans := "", "", ""
		if i > 0 {
			rates, cpus = ratios(v.rates, variants[0].rates), ratios(v.cpus, variants[0].cpus)
		}
		if v.spans != nil {
			spans = fmt.Sprintf("%.3f", float64(v.spans.received.Swap(0))/float64(v.acked))
		}
		fmt.Fprintf(b.out, "| %s | %d | %s | %.0f | %s | %s | %s | %s | %s |\n", l.tickets.name, l.concurrency, v.name, median(v.rates),
			median(v.p50s).Round(10*time.Microsecond), median(v.p99s).Round(10*time.Microsecond), rates, cpus, spans)
	}
}

// ratios returns the median of a/b, round by round, and the interval that has the true median with 95 %: that of the order
// statistics, by the normal approximation of the binomial distribution.
func ratios(a, b []float64) string {
	if len(a) == 0 || len(a) != len(b) {
		return ""
	}
	all := make([]float64, len(a))
	for i := range a {
		all[i] = a[i] / b[i]
	}
	slices.Sort(all)
	n := float64(len(all))
	reach := 1.96 * math.Sqrt(n) / 2
	low := max(int(math.Floor(n/2-reach)), 0)
	high := min(int(math.Ceil(n/2+reach)), len(all)-1)
	return fmt.Sprintf("**%.3f** (%.3f–%.3f)", median(all), all[low], all[high])
}

// receiver takes spans over OTLP's http/protobuf, counts them, and throws them away.
type receiver struct{ received atomic.Int64 }

func (r *receiver) listen(ctx context.Context) (address string, stop func(), err error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	server := &http.Server{Handler: r, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(listener) }()
	return listener.Addr().String(), func() { _ = server.Close() }, nil
}

// ServeHTTP implements http.Handler.
func (r *receiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	body, err := io.ReadAll(request.Body)
	if err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	r.received.Add(int64(countSpans(body, 1, 2, 2)))
}

// countSpans counts the messages at the end of a path of field numbers: resource_spans, scope_spans, spans
// (https://github.com/open-telemetry/opentelemetry-proto). Reading them completely would cost as much as making them.
func countSpans(message []byte, field protowire.Number, below ...protowire.Number) int {
	found := 0
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return found
		}
		message = message[n:]
		if n = protowire.ConsumeFieldValue(number, kind, message); n < 0 {
			return found
		}
		if number == field && kind == protowire.BytesType {
			if len(below) == 0 {
				found++
			} else if inner, length := protowire.ConsumeBytes(message); length > 0 {
				found += countSpans(inner, below[0], below[1:]...)
			}
		}
		message = message[n:]
	}
	return found
}
