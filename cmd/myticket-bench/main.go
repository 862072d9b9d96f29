// Command myticket-bench measures MyTicket against what is possible on the same machine in the same run: the same HTTP
// server answering without storing (the floor), and Postgres taking the same rows from pgbench (the ceiling). It starts
// every server it needs, on 127.0.0.1, sends traffic only there, and prints a Markdown table.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"runtime"
	"strconv"
	"strings"
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
	only     string
	profile  string
	args     string
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == "floor" {
		exit(serveFloor(os.Args[2]))
	}
	var s settings
	flag.StringVar(&s.server, "server", "bin/myticket", "the server to measure")
	flag.DurationVar(&s.warmUp, "warm-up", 2*time.Second, "traffic before each measurement")
	flag.DurationVar(&s.duration, "duration", 8*time.Second, "length of each measurement")
	flag.StringVar(&s.only, "only", "",
		"measure only rows of MyTicket that match this regular expression, such as \"2 lines, 10 products, concurrency 200\"")
	flag.StringVar(&s.profile, "profile", "", "write a CPU profile of the server during the first row into this file")
	flag.StringVar(&s.args, "args", "", "further arguments of the server, separated by spaces")
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
		// As a production server would have it, but for the memory of a small machine. Durability is the default: on.
		Settings: map[string]string{"shared_buffers": "512MB", "max_wal_size": "4GB", "max_connections": "200"},
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, database.Stop(context.WithoutCancel(ctx))) }()
	b := &bench{settings: s, out: out, database: database}
	if err := b.prepare(ctx); err != nil {
		return err
	}
	ceiling, err := b.ceiling(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "\n| | requests/s | p50 | p99 | /(a) | /(c) | peak memory |\n|---|--:|--:|--:|--:|--:|--:|\n")
	for _, lines := range []int{2, 40} {
		for _, concurrency := range []int{50, 200} {
			if err := b.rows(ctx, only, lines, concurrency, ceiling); err != nil {
				return err
			}
		}
	}
	return b.summary(ctx)
}

// bench is one run.
type bench struct {
	settings settings
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
	fmt.Fprintf(b.out, "%s, %d processors for everything, PostgreSQL %s with fsync and synchronous_commit on; "+
		"%s a row after %s of warm-up.\n",
		runtime.Version(), runtime.NumCPU(), version, b.settings.duration, b.settings.warmUp)
	return nil
}

// rows measures the floor and MyTicket for one shape of traffic.
func (b *bench) rows(ctx context.Context, only *regexp.Regexp, lines, concurrency int, ceiling float64) error {
	var floor float64
	for _, products := range []int{hotProducts, distinctProducts} {
		t := newTickets(lines, products)
		name := fmt.Sprintf("%s, concurrency %d", t.name, concurrency)
		if !only.MatchString(name) {
			continue
		}
		if floor == 0 {
			r, memory, err := b.measureFloor(ctx, load{concurrency: concurrency, tickets: t})
			if err != nil {
				return err
			}
			floor = r.perSecond
			b.print(fmt.Sprintf("(a) floor, %d lines, concurrency %d", lines, concurrency), r, "", "", memory)
		}
		r, memory, err := b.measureServer(ctx, load{concurrency: concurrency, tickets: t})
		if err != nil {
			return err
		}
		perCeiling := ""
		if lines == 2 {
			perCeiling = fmt.Sprintf("%.2f", r.perSecond/ceiling)
			if concurrency == 200 && products == hotProducts {
				b.best = r.perSecond
			}
		}
		b.print("(b) MyTicket, "+name, r, fmt.Sprintf("%.2f", r.perSecond/floor), perCeiling, memory)
	}
	return nil
}

// summary measures the answer time at half load, against a single-row commit.
func (b *bench) summary(ctx context.Context) error {
	if b.best == 0 {
		return nil
	}
	r, memory, err := b.measureServer(ctx, load{concurrency: 50, rate: b.best / 2, tickets: newTickets(2, hotProducts)})
	if err != nil {
		return err
	}
	b.print("(b) MyTicket, 2 lines, 10 products, half of its best rate", r, "", "", memory)
	fmt.Fprintf(b.out, "\nAt half load p99 is %.1f times a single-row commit (%s, pgbench with one client).\n",
		float64(r.p99)/float64(b.single), b.single.Round(time.Microsecond))
	return nil
}

func (b *bench) print(name string, r result, perFloor, perCeiling, memory string) {
	fmt.Fprintf(b.out, "| %s | %.0f | %s | %s | %s | %s | %s |\n", name, r.perSecond,
		r.p50.Round(10*time.Microsecond), r.p99.Round(10*time.Microsecond), perFloor, perCeiling, memory)
}

func (b *bench) measureFloor(ctx context.Context, l load) (result, string, error) {
	program, err := os.Executable()
	if err != nil {
		return result{}, "", err
	}
	return b.measure(ctx, l, exec.Command(program, "floor", freeAddr()), "")
}

// measureServer starts a server of its own for each row, on empty tables.
func (b *bench) measureServer(ctx context.Context, l load) (result, string, error) {
	conn, err := pgx.Connect(ctx, b.url)
	if err != nil {
		return result{}, "", err
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, `TRUNCATE tickets, products, deliveries`); err != nil {
		return result{}, "", err
	}
	if _, err := conn.Exec(ctx, `CHECKPOINT`); err != nil { // every row begins alike
		return result{}, "", err
	}
	admin := freeAddr()
	server := exec.Command(b.settings.server, append([]string{"serve", "--http-addr", freeAddr(), "--admin-addr", admin,
		"--database-url", b.url, "--log-level", "warn"}, strings.Fields(b.settings.args)...)...)
	r, memory, err := b.measure(ctx, l, server, admin)
	if err != nil {
		return result{}, "", err
	}
	var stored int
	if err := conn.QueryRow(ctx, `SELECT count(*) FROM tickets WHERE status = 'TREATED'`).Scan(&stored); err != nil {
		return result{}, "", err
	}
	if stored != r.acked {
		return result{}, "", fmt.Errorf("%d tickets were acknowledged and %d are stored and treated", r.acked, stored)
	}
	return r, memory, nil
}

// measure runs a server process (its third argument is its address) under a load, and returns its peak memory too.
func (b *bench) measure(ctx context.Context, l load, server *exec.Cmd, admin string) (_ result, memory string, err error) {
	l.warmUp, l.duration = b.settings.warmUp, b.settings.duration
	l.addr = server.Args[2]
	if admin != "" {
		l.addr = server.Args[3]
	}
	var log bytes.Buffer
	server.Stderr, server.Stdout = &log, &log
	if err := server.Start(); err != nil {
		return result{}, "", fmt.Errorf("start %s: %w", server.Path, err)
	}
	defer func() {
		_ = server.Process.Signal(syscall.SIGTERM)
		if waitErr := server.Wait(); waitErr != nil || err != nil {
			err = errors.Join(err, waitErr, fmt.Errorf("the server's log:\n%s", log.Bytes()))
		}
	}()
	if err := awaitAnswer(ctx, l.addr, admin); err != nil {
		return result{}, "", err
	}
	if b.settings.profile != "" && admin != "" {
		stopProfile := saveProfile(admin, b.settings.profile, l.duration)
		defer stopProfile()
		b.settings.profile = ""
	}
	r, err := l.run(ctx)
	if err != nil {
		return result{}, "", err
	}
	return r, peakMemory(server.Process.Pid), nil
}

// peakMemory returns the largest resident set of a process (VmHWM of proc(5)), or "" where there is no /proc.
func peakMemory(pid int) string {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			if kib, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB"))); err == nil {
				return fmt.Sprintf("%d MiB", kib>>10)
			}
		}
	}
	return ""
}

// freeAddr returns an address of this machine that nobody listens on.
func freeAddr() string {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "127.0.0.1:0"
	}
	defer listener.Close()
	return listener.Addr().String()
}
