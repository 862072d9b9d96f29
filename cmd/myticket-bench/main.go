// Command myticket-bench measures MyTicket against what is possible on the same machine in the same run: the same HTTP
// server answering without storing (the floor), and Postgres taking the same rows from pgbench (the ceiling). It starts
// every server it needs, on 127.0.0.1, sends traffic only there, and prints a Markdown table.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"myticket/internal/devdb"
	"myticket/internal/postgres"
)

// settings are the command line's.
type settings struct {
	server   string
	warmUp   time.Duration
	duration time.Duration
	rounds   int
	only     string
	profile  string
	args     string
	tracing  bool
	vs       string
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == "floor" {
		exit(serveFloor(os.Args[2]))
	}
	var s settings
	flag.StringVar(&s.server, "server", "bin/myticket", "the server to measure")
	flag.DurationVar(&s.warmUp, "warm-up", 500*time.Millisecond, "traffic before each slice that is measured")
	flag.DurationVar(&s.duration, "duration", 2*time.Second, "length of each slice")
	flag.IntVar(&s.rounds, "rounds", 5, "slices of each server in turn, for each row; the medians are printed")
	flag.StringVar(&s.only, "only", "",
		"measure only rows that match this regular expression, such as \"2 lines, 10 products, concurrency 200\"")
	flag.StringVar(&s.profile, "profile", "", "write a CPU profile of the server during the first row into this file")
	flag.StringVar(&s.args, "args", "", "further arguments of the server, separated by spaces")
	flag.BoolVar(&s.tracing, "tracing", false,
		"measure only what traces cost: a server without them, one that samples 1 %, and one that samples all, in turn")
	flag.StringVar(&s.vs, "vs", "", "measure only this other program against -server, in turn")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	exit(run(ctx, s, os.Stdout))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "myticket-bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// run measures everything and prints it.
func run(ctx context.Context, s settings, out io.Writer) (err error) {
	only, err := regexp.Compile(s.only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	database, err := devdb.Start(ctx, devdb.Config{
		Progress: os.Stderr,
		// Like a production server, except that the memory suits a small machine. Durability is on by default.
		Settings: map[string]string{"shared_buffers": "512MB", "max_wal_size": "4GB", "max_connections": "200"},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, database.Stop(context.WithoutCancel(ctx))) }()
	b := &bench{settings: s, only: only, out: out, database: database}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	if s.tracing || s.vs != "" {
		return b.compare(ctx)
	}
	fmt.Fprintf(out, "A row is %d slices of %s of the floor and of MyTicket in turn, each after %s of warm-up.\n",
		s.rounds, s.duration, s.warmUp)
	ceiling, err := b.ceiling(ctx)
	if err != nil {
		return err
	}
	fmt.Fprint(out, "\n| tickets of | concurrency | (a) floor/s | (b) MyTicket/s | p50 | p99 "+
		"| (b)/(a) | least and most | (b)/(c) | peak memory |\n"+
		"|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n")
	for l := range b.loads() {
		if err := b.printRow(ctx, l, ceiling); err != nil {
			return err
		}
	}
	return b.summary(ctx)
}

// bench is one run.
type bench struct {
	settings settings
	only     *regexp.Regexp
	out      io.Writer
	database *devdb.Server
	url      string
	single   time.Duration // of one single-row commit
	best     float64       // requests/s of the two-line ticket at concurrency 200
}

func (b *bench) prepare(ctx context.Context) error {
	if err := b.database.CreateDatabase(ctx, "bench"); err != nil {
		return err
	}
	b.url = b.database.URL("bench")
	if err := postgres.MigrateUp(ctx, b.url); err != nil {
		return err
	}
	conn, err := pgx.Connect(ctx, b.url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	var version, fsync, commit string
	err = conn.QueryRow(ctx, `SELECT current_setting('server_version'), current_setting('fsync'),
		current_setting('synchronous_commit')`).Scan(&version, &fsync, &commit)
	if err != nil {
		return err
	}
	if fsync != "on" || commit != "on" {
		return fmt.Errorf("fsync is %s and synchronous_commit is %s: without both there is nothing to measure", fsync, commit)
	}
	fmt.Fprintf(b.out, "%s, %d processors for everything, PostgreSQL %s with fsync and synchronous_commit on. ",
		runtime.Version(), runtime.NumCPU(), version)
	return nil
}

// loads are the rows: each shape of traffic that -only asks for.
func (b *bench) loads() iter.Seq[load] {
	return func(yield func(load) bool) {
		for _, lines := range []int{2, 40} {
			for _, concurrency := range []int{50, 200} {
				for _, products := range []int{hotProducts, distinctProducts} {
					t := newTickets(lines, products)
					if b.only.MatchString(fmt.Sprintf("%s, concurrency %d", t.name, concurrency)) &&
						!yield(load{concurrency: concurrency, tickets: t}) {
						return
					}
				}
			}
		}
	}
}

// printRow measures MyTicket for one shape of traffic, and the floor beside it.
func (b *bench) printRow(ctx context.Context, l load, ceiling float64) error {
	r, err := b.row(ctx, l)
	if err != nil {
		return err
	}
	perCeiling := ""
	if l.tickets.lines == 2 {
		perCeiling = fmt.Sprintf("%.2f", r.server.perSecond/ceiling)
		if l.concurrency == 200 && l.tickets.products == hotProducts {
			b.best = r.server.perSecond
		}
	}
	fmt.Fprintf(b.out, "| %s | %d | %.0f | %.0f | %s | %s | **%.2f** | %.2f–%.2f | %s | %s |\n", l.tickets.name, l.concurrency,
		r.floor, r.server.perSecond, r.server.p50.Round(10*time.Microsecond), r.server.p99.Round(10*time.Microsecond),
		median(r.ratios), slices.Min(r.ratios), slices.Max(r.ratios), perCeiling, r.memory)
	return nil
}

// comparison is what a row measured: medians over its slices, and the ratio of each pair of them.
type comparison struct {
	floor  float64
	server result
	ratios []float64
	memory string
}

// row runs the floor and MyTicket at the same time, and sends traffic to them in turn, slice by slice. The speed of a
// shared machine drifts, and so the drift affects both. MyTicket begins on empty tables.
func (b *bench) row(ctx context.Context, l load) (r comparison, err error) {
	program, err := os.Executable()
	if err != nil {
		return r, err
	}
	floor, err := startFloor(ctx, program)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, floor.stop()) }()
	server, err := b.startServer(ctx)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	l.warmUp, l.duration = b.settings.warmUp, b.settings.duration
	if b.settings.profile != "" {
		length := time.Duration(b.settings.rounds) * 2 * (l.warmUp + l.duration)
		defer saveProfile(server.admin, b.settings.profile, length)()
		b.settings.profile = ""
	}
	var floors, rates []float64
	var p50s, p99s []time.Duration
	acked := 0
	for range b.settings.rounds {
		l.addr = floor.addr
		onFloor, err := l.run(ctx)
		if err != nil {
			return r, err
		}
		l.addr = server.addr
		onServer, err := l.run(ctx)
		if err != nil {
			return r, err
		}
		acked += onServer.acked
		floors, rates = append(floors, onFloor.perSecond), append(rates, onServer.perSecond)
		p50s, p99s = append(p50s, onServer.p50), append(p99s, onServer.p99)
		r.ratios = append(r.ratios, onServer.perSecond/onFloor.perSecond)
	}
	r.floor, r.memory = median(floors), server.peakMemory()
	r.server = result{perSecond: median(rates), p50: median(p50s), p99: median(p99s)}
	return r, b.checkStored(ctx, acked)
}

// checkStored compares what was acknowledged with what is stored, because a benchmark that loses tickets measures nothing.
func (b *bench) checkStored(ctx context.Context, acked int) error {
	conn, err := pgx.Connect(ctx, b.url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	var stored int
	if err := conn.QueryRow(ctx, `SELECT count(*) FROM tickets WHERE status = 'TREATED'`).Scan(&stored); err != nil {
		return err
	}
	if stored != acked {
		return fmt.Errorf("%d tickets were acknowledged and %d are stored and treated", acked, stored)
	}
	return nil
}

func median[T float64 | time.Duration](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// summary measures the answer time at half load, and compares it with a single-row commit.
func (b *bench) summary(ctx context.Context) (err error) {
	if b.best == 0 {
		return nil
	}
	server, err := b.startServer(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	l := load{
		addr: server.addr, concurrency: 50, rate: b.best / 2, tickets: newTickets(2, hotProducts),
		warmUp: b.settings.warmUp, duration: time.Duration(b.settings.rounds) * b.settings.duration,
	}
	r, err := l.run(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.out, "\nAt half of that rate (2 lines, 10 products, %.0f/s over 50 connections) p50 is %s and p99 %s, "+
		"%.1f times a single-row commit (%s, pgbench with one client).\n", r.perSecond, r.p50.Round(10*time.Microsecond),
		r.p99.Round(10*time.Microsecond), float64(r.p99)/float64(b.single), b.single.Round(time.Microsecond))
	return b.checkStored(ctx, r.acked)
}

// empty empties tables, so that all measurements begin in the same state.
func (b *bench) empty(ctx context.Context, tables string) error {
	conn, err := pgx.Connect(ctx, b.url)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for _, sql := range []string{`TRUNCATE ` + tables, `CHECKPOINT`} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return err
		}
	}
	return nil
}
