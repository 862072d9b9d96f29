package postgres

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"myticket/internal/ticket"
)

// MaintainConfig configures a Maintainer. The zero value of a field means its default.
type MaintainConfig struct {
	Period Period // length of a partition. Defaults to Day.
	Ahead  int    // partitions to make ahead of time. Defaults to 3.

	OrderLines bool // order lines are filled (by OrderLines, on this server or another one)
}

// Intervals and timeouts of a Maintainer.
const (
	watchInterval = time.Second
	watchTimeout  = time.Second

	// prepareTimeout is how long a server waits for its first partitions before it becomes ready without them.
	prepareTimeout = 10 * time.Second

	// settleAfter is the time after which every transaction has ended that did not see a change of a product: those that ran beside
	// it, and those that relied on what was there before (knownFor). Transactions of deliveries end within seconds, because their
	// senders do not wait longer.
	settleAfter = knownFor + 30*time.Second
	settleLimit = 1000

	// moveFor is how long tickets that were set aside are moved before other jobs have a turn.
	moveFor = 20 * time.Second

	// backlogFresh is the age after which a count is not exposed any more.
	backlogFresh = time.Minute
)

// job is a task that is repeated.
type job struct {
	name     string
	interval time.Duration
	timeout  time.Duration
	level    slog.Level // of failures
	failed   string     // what a failure means, for the log
	do       func(context.Context) (more bool, err error)
	aside    bool // it runs beside the other jobs, because it may take hours
}

func (m *Maintainer) jobs() []job {
	return []job{
		{
			"partitions", time.Minute, 30 * time.Second, slog.LevelError,
			"partitions could not be made; tickets without a partition go to the default partition and are moved later", m.makePartitions,
			false,
		},
		{
			"strays", 10 * time.Second, moveFor + 2*pieceTimeout, slog.LevelError,
			"tickets of a full default partition could not be moved; they are safe, but no query finds them; it is tried again",
			m.moveStrays, false,
		},
		{
			"outbox", time.Minute, time.Minute, slog.LevelWarn,
			"old partitions of the outbox or of order lines could not be dropped; tickets are not affected, and it is tried again",
			m.dropOld, false,
		},
		{
			"settle", 5 * time.Second, 10 * time.Second, slog.LevelWarn,
			"products that changed could not be settled; tickets are not affected, and it is tried again", m.settle,
			false,
		},
		{
			"count", 10 * time.Second, 5 * time.Second, slog.LevelWarn,
			"the tickets that wait could not be counted, so their metrics are old and will be left out; no ticket is lost, " +
				"and it is tried again",
			m.count, false,
		},
		{
			"new_groups", 5 * time.Second, 5 * time.Second, slog.LevelWarn,
			"it is not known whether problems of tickets are new, so some are not in the metric and the log; tickets are not affected",
			m.reportNewGroups, false,
		},
		{
			"problem_groups", time.Minute, 24 * time.Hour, slog.LevelWarn,
			"ERROR tickets of the version before could not be grouped, or an index for it not be made: `myticket problems` is slow, or " +
				"does not say what is wrong with them; tickets are not affected, and it is tried again",
			m.groupProblems, true,
		},
	}
}

// Health is what a Maintainer found last.
type Health struct {
	Schema SchemaStatus
	Err    error // why the schema could not be read; usually the database does not answer
	Ready  bool  // the database answers, and this program can use its schema

	// Misconfigured means that Err is not an outage: the server answers, and rejects the login.
	Misconfigured bool
}

// Maintainer watches the schema, makes partitions ahead of time, moves stray tickets, drops old partitions of the outbox and of
// order lines, settles products, counts the backlog and groups what is wrong with tickets, while Run runs.
type Maintainer struct {
	config MaintainConfig
	store  *Store
	health atomic.Pointer[Health]

	schemaReady atomic.Bool   // as it was found last
	prepared    chan struct{} // closed after the first attempt to make partitions
	// turn has one place, so that only one job runs, with one connection, at a time, and those that are aside.
	turn chan struct{}

	backlog  atomic.Pointer[counted[Backlog]]        // nil until it is known
	lines    atomic.Pointer[counted[OutboxBacklog]]  // of order lines; nil until it is known
	archived atomic.Pointer[counted[ArchiveBacklog]] // nil until it is known
	failures map[string]*atomic.Int64
}

// counted is a backlog and the time of its count.
type counted[B any] struct {
	backlog B
	at      time.Time
}

// fresh reports whether a count may be exposed.
func (c *counted[B]) fresh() bool { return c != nil && time.Since(c.at) < backlogFresh }

// NewMaintainer returns a Maintainer.
func NewMaintainer(config MaintainConfig, store *Store) *Maintainer {
	if config.Period == "" {
		config.Period = Day
	}
	if config.Ahead == 0 {
		config.Ahead = 3
	}
	m := &Maintainer{
		config: config, store: store, prepared: make(chan struct{}), turn: make(chan struct{}, 1),
		failures: map[string]*atomic.Int64{},
	}
	m.health.Store(&Health{})
	for _, j := range m.jobs() {
		m.failures[j.name] = &atomic.Int64{}
	}
	return m
}

// Health returns what was found last. It is at most a few seconds old.
func (m *Maintainer) Health() Health { return *m.health.Load() }

// Run works until ctx ends. Nothing of it is urgent, and several servers may do it at once. It uses one connection for its
// jobs, and for one that is aside another one, beside the pool. Once a second it uses one for a moment, to check whether the
// database is there. That check waits for no job.
func (m *Maintainer) Run(ctx context.Context) {
	var loops sync.WaitGroup
	loops.Go(func() { m.watch(ctx) })
	for _, j := range m.jobs() {
		loops.Go(func() { m.repeat(ctx, j) })
	}
	loops.Wait()
}

// watch checks whether the database is there and its schema is right.
func (m *Maintainer) watch(ctx context.Context) {
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	ready, timer := m.prepared, (<-chan time.Time)(nil)
	for {
		h := m.look(ctx)
		m.schemaReady.Store(h.Ready)
		if h.Ready && ready != nil { // become ready only after the first attempt to make partitions
			if timer == nil {
				timer = time.After(prepareTimeout)
			}
			select {
			case <-ctx.Done():
				return
			case <-ready:
			case <-timer:
			}
			ready = nil
		}
		m.report(h)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// repeat runs a job at its interval while the schema is right.
func (m *Maintainer) repeat(ctx context.Context, j job) {
	for {
		pause := watchInterval / 4
		if m.schemaReady.Load() {
			pause = j.interval
			if m.run(ctx, j) {
				pause = 0
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// run runs a job once when it has its turn, and reports whether there is more to do now.
func (m *Maintainer) run(ctx context.Context, j job) (more bool) {
	if !j.aside {
		select {
		case <-ctx.Done():
			return false
		case m.turn <- struct{}{}:
		}
		defer func() { <-m.turn }()
	}
	limited, cancel := context.WithTimeout(ctx, j.timeout)
	defer cancel()
	more, err := j.do(limited)
	if err != nil && ctx.Err() == nil {
		m.failures[j.name].Add(1)
		m.store.logger.Log(ctx, j.level, j.failed, "error", err)
	}
	return more && err == nil
}

func (m *Maintainer) look(ctx context.Context) Health {
	ctx, cancel := context.WithTimeout(ctx, watchTimeout)
	defer cancel()
	schema, err := m.store.Schema(ctx)
	// After a login has succeeded once, the settings are right, and a failure is an outage.
	wrong := (m.Health().Schema.Latest == 0 || m.Health().Misconfigured) && unwelcome(err)
	return Health{Schema: schema, Err: err, Ready: err == nil && schema.Ready(), Misconfigured: wrong}
}

func (m *Maintainer) report(h Health) {
	was := m.health.Swap(&h)
	switch {
	case h.Ready && !was.Ready:
		m.store.logger.Info("the database is there and its schema is right", "schema", h.Schema.Version)
	case h.Err != nil && (was.Err == nil || was.Ready):
		m.store.logger.Warn("the database does not answer; no ticket can be stored in it until it does", "error", h.Err)
	case h.Err == nil && !h.Ready && h.Schema != was.Schema:
		m.store.logger.Warn("not ready: this server cannot store tickets in the database with its present schema",
			"schema", h.Schema.String())
	}
}

func (m *Maintainer) makePartitions(ctx context.Context) (more bool, err error) {
	made, err := m.store.EnsurePartitions(ctx, m.config.Period, m.config.Ahead, ticket.Now())
	outbox, outboxErr := m.store.EnsureOutbox(ctx)
	made, err = append(made, outbox...), errors.Join(err, outboxErr)
	if len(made) > 0 {
		m.store.logger.Info("made partitions", "partitions", made)
	}
	select {
	case <-m.prepared:
	default:
		close(m.prepared) // no other job closes it
	}
	return false, err
}

func (m *Maintainer) dropOld(ctx context.Context) (more bool, err error) {
	outbox, err := m.store.CleanOutbox(ctx, m.config.OrderLines)
	lines, linesErr := m.store.dropOldLines(ctx)
	if dropped := slices.Concat(outbox, lines); len(dropped) > 0 {
		m.store.logger.Info("dropped old partitions", "partitions", dropped)
	}
	return false, errors.Join(err, linesErr)
}

func (m *Maintainer) moveStrays(ctx context.Context) (more bool, err error) {
	moved, more, err := m.store.MoveStrays(ctx, m.config.Period, moveFor)
	if moved > 0 {
		m.store.logger.Info("moved tickets of a full default partition to their partitions", "tickets", moved, "more", more)
	}
	return more, err
}

// settle settles the products of one minute. After a time in which only the version before ran, there are many minutes.
func (m *Maintainer) settle(ctx context.Context) (more bool, err error) {
	n, err := m.store.SettleProducts(ctx, settleAfter, settleLimit)
	return n > 0, err
}

// count counts the backlogs, each by itself. If one fails, its last count stays until it is older than backlogFresh: see Collect.
func (m *Maintainer) count(ctx context.Context) (more bool, err error) {
	b, err := m.store.Backlog(ctx)
	if err == nil {
		m.backlog.Store(&counted[Backlog]{b, time.Now()})
	}
	archived, archiveErr := m.store.ArchiveBacklog(ctx)
	if err = errors.Join(err, archiveErr); archiveErr == nil {
		m.archived.Store(&counted[ArchiveBacklog]{archived, time.Now()})
	}
	if !m.config.OrderLines {
		return false, err
	}
	lines, linesErr := m.store.OrderLinesBacklog(ctx)
	if linesErr == nil {
		m.lines.Store(&counted[OutboxBacklog]{lines, time.Now()})
	}
	return false, errors.Join(err, linesErr)
}
