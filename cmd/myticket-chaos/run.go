package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"myticket/internal/devdb"
	"myticket/internal/lab"
	"myticket/internal/postgres"
)

// How long a server may take for an answer: its own limit, plus what a busy machine may add.
const (
	requestTimeout = 4 * time.Second
	slack          = time.Second
	deadline       = requestTimeout + slack
)

// run plays the chosen scenarios, prints the results, and returns an error that says what was wrong.
func run(ctx context.Context, c config, stdout io.Writer) (err error) {
	if c.selfCheck {
		c.only = strings.Join(slices.Sorted(maps.Keys(selfChecks)), ",")
	}
	chosen, err := choose(c.only)
	if err != nil {
		return err
	}
	h, err := newHarness(ctx, c, os.Stderr)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.close(context.WithoutCancel(ctx))) }()
	var results []result
	for _, s := range chosen {
		results = append(results, h.play(ctx, s))
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
	}
	if err := printResults(stdout, results, c.markdown); err != nil {
		return err
	}
	var wrong []error
	if c.selfCheck {
		for _, r := range results {
			wrong = append(wrong, selfChecks[r.name](stdout, r))
		}
		return errors.Join(wrong...)
	}
	for _, r := range results {
		wrong = append(wrong, r.err())
	}
	return errors.Join(wrong...)
}

// selfChecks are the scenarios that are played with a known fault, which they must find. A harness that does not find it proves
// nothing. The faults: the server answers before the commit, its Postgres does not wait for the standby, and its memory limit is
// less than it needs.
var selfChecks = map[string]func(io.Writer, result) error{
	"server-killed":   lossFound,
	"standby-missing": lossFound,
	"hostile":         memoryFound,
}

func lossFound(w io.Writer, r result) error {
	if r.lost == 0 {
		return errors.Join(fmt.Errorf("self-check: in %s acknowledged tickets must get lost, and no loss was found: "+
			"this harness proves nothing", r.name), r.err())
	}
	fmt.Fprintf(w, "self-check: the losses of %s were found, %d of them\n", r.name, r.lost)
	return nil
}

func memoryFound(w io.Writer, r result) error {
	if !slices.ContainsFunc(r.failures, func(s string) bool { return strings.Contains(s, tooMuchMemory) }) {
		return errors.Join(fmt.Errorf("self-check: in %s the server must take more memory than it may, and that was not found: "+
			"this harness proves nothing", r.name), r.err())
	}
	fmt.Fprintf(w, "self-check: the memory of %s was found to be too much\n", r.name)
	return nil
}

// choose returns the scenarios with these names, or all.
func choose(only string) ([]scenario, error) {
	if only == "" {
		return scenarios, nil
	}
	var chosen []scenario
	for name := range strings.SplitSeq(only, ",") {
		found := false
		for _, s := range scenarios {
			if s.name == strings.TrimSpace(name) {
				chosen, found = append(chosen, s), true
			}
		}
		if !found {
			return nil, fmt.Errorf("-only: there is no scenario %q. There are %s", name, strings.Join(names(), ", "))
		}
	}
	return chosen, nil
}

// harness is what the scenarios share: a server program, and a Postgres that they may break.
type harness struct {
	config   config
	progress io.Writer
	dir      string // temporary
	program  string
	database *devdb.Server
	crashes  crashes // of processes of Postgres
	trials   int
}

func newHarness(ctx context.Context, c config, progress io.Writer) (h *harness, err error) {
	h = &harness{config: c, progress: progress}
	if h.dir, err = os.MkdirTemp("", "myticket-chaos-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(h.dir))
		}
	}()
	if err := h.build(ctx); err != nil {
		return nil, err
	}
	port, err := lab.FreePort(ctx)
	if err != nil {
		return nil, err
	}
	h.database, err = devdb.Start(ctx, devdb.Config{
		Port: port, Progress: progress, Log: &h.crashes,
		// Like a production server, except that the memory suits a small machine. Durability is on by default.
		Settings: map[string]string{"shared_buffers": "256MB", "max_wal_size": "2GB"},
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// build builds the server under test from the sources of this repository.
func (h *harness) build(ctx context.Context) error {
	h.program = filepath.Join(h.dir, "myticket")
	if h.config.selfCheck {
		return build(ctx, h.program, "unsafeack")
	}
	return build(ctx, h.program, "")
}

func build(ctx context.Context, program, tags string) error {
	command := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-tags", tags, "-o", program, "myticket/cmd/myticket")
	command.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := command.CombinedOutput(); err != nil {
		return fmt.Errorf("build the server (is this run inside its repository?): %w:\n%s", err, output)
	}
	return nil
}

func (h *harness) close(ctx context.Context) error {
	return errors.Join(h.database.Stop(ctx), os.RemoveAll(h.dir))
}

// play runs one scenario on a database and a spool folder of its own, and checks what it left.
func (h *harness) play(ctx context.Context, s scenario) result {
	begin := time.Now()
	t, err := h.newTrial(ctx, s)
	if err == nil {
		err = t.play(ctx, s)
		err = errors.Join(err, t.cleanUp())
		for _, line := range h.crashes.take() {
			t.failf("something other than this harness killed a process of Postgres: %s", line)
		}
	}
	t.result.count(t.ledger)
	if err != nil {
		t.failf("the scenario did not reach its end: %s", err)
	}
	fmt.Fprintf(h.progress, "%s: %s, %s\n", s.name, t.result.word(), time.Since(begin).Round(100*time.Millisecond))
	return t.result
}

// trial is one scenario while it is played.
type trial struct {
	*harness

	result   result
	ledger   *ledger
	others   *ledger // tickets of senders that the table does not count; they are checked too
	maker    *maker
	url      string // of the database
	spool    string // folder of the spools
	servers  []*server
	cleanups []func() error
	ended    time.Time // when the fault and the load were over; zero while they are not
}

func (h *harness) newTrial(ctx context.Context, s scenario) (*trial, error) {
	h.trials++
	t := &trial{
		harness: h, result: result{name: s.name, fault: s.fault},
		ledger: newLedger(), others: newLedger(), maker: newMaker(),
	}
	if err := h.databaseUp(ctx); err != nil {
		return t, err
	}
	name := fmt.Sprintf("chaos_%d", h.trials)
	if err := h.database.CreateDatabase(ctx, name); err != nil {
		return t, err
	}
	t.url = h.database.URL(name)
	t.spool = filepath.Join(h.dir, name)
	return t, errors.Join(postgres.MigrateUp(ctx, t.url), os.Mkdir(t.spool, 0o700))
}

// databaseUp starts Postgres if the scenario before left it dead.
func (h *harness) databaseUp(ctx context.Context) error {
	if h.database.PID() != 0 {
		return nil
	}
	return h.database.Restart(ctx)
}

// play runs the scenario, waits until every spool is empty and the servers take tickets, stops them, and checks what is stored.
func (t *trial) play(ctx context.Context, s scenario) error {
	if err := s.play(ctx, t); err != nil {
		return err
	}
	if t.result.skipped != "" {
		return nil
	}
	if t.ended.IsZero() {
		t.ended = time.Now()
	}
	if err := t.drain(ctx); err != nil {
		return err
	}
	for _, s := range t.servers {
		if err := t.takesTickets(ctx, s); err != nil {
			return err
		}
	}
	for _, s := range t.servers {
		if err := s.stop(); err != nil {
			t.failf("%s", err)
		}
	}
	return t.check(ctx)
}

// drain waits until every spool is empty, and notes how long that took after the end of the fault and the load.
func (t *trial) drain(ctx context.Context) error {
	for _, s := range t.servers {
		err := lab.Await(ctx, t.span(5*time.Minute, time.Minute), "the spool to become empty", func(ctx context.Context) error {
			m, err := s.metrics(ctx, "myticket_spool_tickets")
			if err == nil && m[0] != 0 {
				err = fmt.Errorf("%.0f tickets are in it", m[0])
			}
			return err
		})
		if err != nil {
			return errors.Join(err, s.why())
		}
	}
	if t.result.drained == 0 && !t.ended.IsZero() {
		t.result.drained = time.Since(t.ended)
	}
	return nil
}

// takesTickets demands that the server stores tickets in Postgres again, because nothing is broken any more.
func (t *trial) takesTickets(ctx context.Context, s *server) error {
	return t.awaitAnswer(ctx, s, 200, "after it was all over")
}

// awaitAnswer sends new tickets until one is answered with the status.
func (t *trial) awaitAnswer(ctx context.Context, s *server, status int, when string) error {
	client := newClient(1)
	defer client.CloseIdleConnections()
	what := fmt.Sprintf("an answer %d %s", status, when)
	return lab.Await(ctx, 30*time.Second, what, func(ctx context.Context) error {
		if got := t.send(ctx, client, s.http); got != status {
			return fmt.Errorf("the last answer was %d", got)
		}
		return nil
	})
}

// cleanUp ends what the scenario left running, in reverse order.
func (t *trial) cleanUp() error {
	for _, s := range t.servers {
		s.kill()
	}
	var errs []error
	for _, end := range slices.Backward(t.cleanups) {
		errs = append(errs, end())
	}
	return errors.Join(errs...)
}

func (t *trial) onEnd(f func() error) { t.cleanups = append(t.cleanups, f) }

// failf notes a demand that did not hold. The scenario goes on, because what it leaves is still worth checking.
func (t *trial) failf(format string, args ...any) {
	t.result.failures = append(t.result.failures, fmt.Sprintf(format, args...))
}

// notef adds a sentence below the table.
func (t *trial) notef(format string, args ...any) {
	t.result.notes = append(t.result.notes, fmt.Sprintf(format, args...))
}

// span returns the first value for a full run, or the second for a short one.
func (t *trial) span(full, short time.Duration) time.Duration {
	if t.config.short {
		return short
	}
	return full
}

func (t *trial) times(full, short int) int {
	if t.config.short {
		return short
	}
	return full
}

// newServer prepares a server on addresses and a spool folder of its own, which it keeps over restarts.
func (t *trial) newServer(ctx context.Context, url string, args ...string) (*server, error) {
	s := &server{program: t.program}
	for _, addr := range []*string{&s.http, &s.admin} {
		var err error
		if *addr, err = lab.FreeAddr(ctx); err != nil {
			return nil, err
		}
	}
	s.args = append([]string{"serve", "--http-addr", s.http, "--admin-addr", s.admin, "--database-url", url}, args...)
	s.args = append(s.args, "--spool-dir", t.spoolOf(len(t.servers)))
	t.servers = append(t.servers, s)
	return s, nil
}

// spoolOf returns the spool folder of a server, by its place in t.servers.
func (t *trial) spoolOf(server int) string { return filepath.Join(t.spool, strconv.Itoa(server)) }

// startServer starts a new server and waits until it is ready.
func (t *trial) startServer(ctx context.Context, url string, args ...string) (*server, error) {
	s, err := t.newServer(ctx, url, args...)
	if err != nil {
		return nil, err
	}
	if err := s.start(ctx); err != nil {
		return nil, err
	}
	return s, s.awaitReady(ctx)
}
