// Command myticket-bench measures MyTicket against what is possible on the same machine in the same run: the same HTTP server
// answering without storing (the floor), Postgres taking the same rows from pgbench (the ceiling), and, when asked, small
// handlers that a team would write instead (the peers). It starts every server it needs, on 127.0.0.1, sends traffic only there,
// and prints Markdown tables.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"syscall"
	"time"

	"myticket/internal/devdb"
)

// settings are the command line's.
type settings struct {
	server   string
	warmUp   time.Duration
	duration time.Duration
	rounds   int
	products int
	only     string
	profile  string
	args     string
	tracing  bool
	vs       string
	peers    bool
	latency  time.Duration
	spooled  int
	sustain  time.Duration
	share    float64
	retried  int
	events   int
}

func main() {
	// The servers beside MyTicket that are written in Go are this program.
	if len(os.Args) == 3 && os.Args[1] == "floor" {
		exit(serveFloor(os.Args[2]))
	}
	if len(os.Args) == 3 && os.Args[1] == "naive" {
		exit(serveNaive(os.Args[2], os.Getenv(databaseVariable)))
	}
	if len(os.Args) == 4 && os.Args[1] == "nats" {
		exit(serveNATS(os.Args[2], os.Args[3]))
	}
	var s settings
	flag.StringVar(&s.server, "server", "bin/myticket", "the server to measure")
	flag.DurationVar(&s.warmUp, "warm-up", 500*time.Millisecond, "traffic before each slice that is measured")
	flag.DurationVar(&s.duration, "duration", 2*time.Second, "length of each slice")
	flag.IntVar(&s.rounds, "rounds", 5, "slices of each server in turn, for each row; the medians are printed")
	flag.IntVar(&s.products, "products", 100_000,
		"products of the rows that name more than the ten hot ones; the new shop has a fifth")
	flag.StringVar(&s.only, "only", "",
		"measure only rows that match this regular expression, such as \"2 lines, 10 products, concurrency 200\" or \"spool\"")
	flag.StringVar(&s.profile, "profile", "", "write a CPU profile of the server during the first row into this file")
	flag.StringVar(&s.args, "args", "", "further arguments of the server, separated by spaces")
	flag.BoolVar(&s.tracing, "tracing", false,
		"measure only what traces cost: a server without them, one that samples 1 %, and one that samples all, in turn")
	flag.StringVar(&s.vs, "vs", "", "measure only this other program against -server, in turn")
	flag.BoolVar(&s.peers, "peers", false, "in each row also measure handlers that store each body with an INSERT of its own: "+
		"Go and pgx, Fastify and pg, FastAPI and asyncpg; the last two are installed into "+peersDir)
	flag.DurationVar(&s.latency, "latency", 500*time.Microsecond,
		"in some rows, what the network adds to each round trip between the servers and Postgres; 0 leaves out these rows")
	flag.IntVar(&s.spooled, "spooled", 100_000, "tickets to drain from a spool in each round; 0 leaves out these rows")
	flag.DurationVar(&s.sustain, "sustain", 0,
		"measure only a steady rate for this long, such as 10m: tickets of 40 lines, 100,000 products")
	flag.Float64Var(&s.share, "sustain-share", 0.25, "the rate of -sustain and -retried as a share of the floor's")
	flag.IntVar(&s.retried, "retried", 0, "measure only how long answers take beside a retry of this many tickets, such as 200000")
	flag.IntVar(&s.events, "events", 0, "measure only what events cost the webhook, and how fast so many of them are sent to "+
		"JetStream, such as 200000")
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

// bench is one run.
type bench struct {
	settings settings
	only     *regexp.Regexp
	out      io.Writer
	postgres map[string]string // settings of the database
	database *devdb.Server
	peers    []peer        // those that can be started on this machine
	made     int           // databases so far
	single   time.Duration // of one single-row commit
	pgbench  time.Duration // length of each run of pgbench, in whole seconds
	ceiling  float64       // rows/s of pgbench in batches
	best     float64       // requests/s of the two-line ticket at concurrency 200
}

// run measures everything and prints it.
func run(ctx context.Context, s settings, out io.Writer) error {
	b, err := newBench(s, out)
	if err != nil {
		return err
	}
	if s.peers {
		b.peers = installPeers(ctx, peersDir, out)
	}
	return b.run(ctx)
}

func newBench(s settings, out io.Writer) (*bench, error) {
	only, err := regexp.Compile(s.only)
	if err != nil {
		return nil, fmt.Errorf("-only: %w", err)
	}
	if s.rounds < 1 || s.duration <= 0 || min(s.spooled, s.retried, s.events) < 0 || s.share <= 0 || s.products < 5*hotProducts {
		return nil, fmt.Errorf("-rounds, -duration and -sustain-share must be more than 0, -spooled, -retried and -events must not "+
			"be less, and -products must be at least %d", 5*hotProducts)
	}
	return &bench{
		settings: s, only: only, out: out, pgbench: 6 * time.Second,
		// Like a production server, except that the memory suits a small machine. Durability is on by default.
		postgres: map[string]string{"shared_buffers": "512MB", "max_wal_size": "4GB", "max_connections": "200"},
	}, nil
}

func (b *bench) run(ctx context.Context) (err error) {
	b.database, err = devdb.Start(ctx, devdb.Config{Progress: os.Stderr, Settings: b.postgres})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.database.Stop(context.WithoutCancel(ctx))) }()
	description, err := b.prepare(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.out, "%s, %d processors for everything, %s. "+
		"Each row begins with a database of its own. All products of its tickets are there, with the names and prices that the "+
		"tickets say, each last seen within the last minute; that table was analyzed, and a checkpoint was made. ",
		runtime.Version(), runtime.NumCPU(), description)
	switch {
	case b.settings.tracing || b.settings.vs != "":
		return b.compare(ctx)
	case b.settings.sustain > 0:
		return b.sustained(ctx)
	case b.settings.retried > 0:
		return b.retried(ctx)
	case b.settings.events > 0:
		if err := b.compareEvents(ctx); err != nil {
			return err
		}
		return b.deliver(ctx)
	default:
		return b.everything(ctx)
	}
}

// everything measures all rows that -only asks for.
func (b *bench) everything(ctx context.Context) error {
	if b.needsCeiling() {
		if err := b.printCeiling(ctx); err != nil {
			return err
		}
	}
	if err := b.printRows(ctx); err != nil {
		return err
	}
	if err := b.summary(ctx); err != nil {
		return err
	}
	return b.printSpooled(ctx)
}

// needsCeiling reports whether a row is compared with pgbench, whose ticket has two lines.
func (b *bench) needsCeiling() bool {
	for r := range b.rows() {
		if r.tickets.lines == ceilingLines {
			return true
		}
	}
	for _, t := range b.spooledRows() {
		if t.lines == ceilingLines {
			return true
		}
	}
	return false
}
