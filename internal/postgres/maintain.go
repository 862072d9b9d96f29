package postgres

import (
	"context"
	"sync/atomic"
	"time"

	"myticket/internal/ticket"
)

// MaintainConfig says what Maintain keeps up. The zero value of a field means its default.
type MaintainConfig struct {
	Period Period // of a partition. Defaults to Day.
	Ahead  int    // partitions made ahead of time. Defaults to 3.
}

// How often Maintain looks. A change of a product is settled when every transaction that ran beside it must have ended:
// those of deliveries within seconds, for their senders do not wait any longer.
const (
	watchInterval     = time.Second
	watchTimeout      = time.Second
	partitionInterval = time.Minute
	backlogInterval   = 10 * time.Second
	settleInterval    = 5 * time.Second
	settleAfter       = 30 * time.Second
	settleLimit       = 1000
)

// Health is what Maintain last found.
type Health struct {
	Schema SchemaStatus
	Err    error // why the schema could not be read: the database does not answer
	Ready  bool  // the database answers, and this program can work on its schema

	// Misconfigured means that Err is no outage: the server answers, and lets this program not in.
	Misconfigured bool
}

// Maintainer watches the schema, makes partitions ahead of time and settles products, for as long as Run runs.
type Maintainer struct {
	config MaintainConfig
	store  *Store
	health atomic.Pointer[Health]

	backlog atomic.Pointer[Backlog] // nil until it is known
}

// NewMaintainer returns a Maintainer.
func NewMaintainer(config MaintainConfig, store *Store) *Maintainer {
	if config.Period == "" {
		config.Period = Day
	}
	if config.Ahead == 0 {
		config.Ahead = 3
	}
	m := &Maintainer{config: config, store: store}
	m.health.Store(&Health{})
	return m
}

// Health returns what was found last, at most a few seconds ago.
func (m *Maintainer) Health() Health { return *m.health.Load() }

// Run does its work until ctx ends. Nothing of it is urgent, and several servers may do it at once.
func (m *Maintainer) Run(ctx context.Context) {
	var partitions, settle, count time.Time
	tick := time.NewTicker(watchInterval)
	defer tick.Stop()
	for {
		h := m.look(ctx)
		now := time.Now()
		if h.Ready && !now.Before(partitions) {
			m.makePartitions(ctx, ticket.Now())
			partitions = now.Add(partitionInterval)
		}
		m.report(h) // ready only after the first partitions were made, or tried
		if h.Ready && !now.Before(settle) {
			m.settle(ctx)
			settle = now.Add(settleInterval)
		}
		if h.Ready && !now.Before(count) {
			m.count(ctx)
			count = now.Add(backlogInterval)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (m *Maintainer) look(ctx context.Context) Health {
	ctx, cancel := context.WithTimeout(ctx, watchTimeout)
	defer cancel()
	schema, err := m.store.Schema(ctx)
	// Who was let in once is right, and sees an outage.
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
		m.store.logger.Warn("not ready: this server cannot store tickets in the database as its schema is", "schema", h.Schema.String())
	}
}

func (m *Maintainer) makePartitions(ctx context.Context, now time.Time) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	made, err := m.store.EnsurePartitions(ctx, m.config.Period, m.config.Ahead, now)
	if err != nil {
		m.store.logger.Error("partitions could not be made; tickets without one go to the default partition and are moved later",
			"error", err)
	}
	if len(made) > 0 {
		m.store.logger.Info("made partitions", "partitions", made)
	}
}

func (m *Maintainer) count(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	b, err := m.store.Backlog(ctx)
	if err != nil && ctx.Err() == nil {
		m.store.logger.Warn("the tickets that wait could not be counted, so their metrics are old; none is lost, and it is tried again",
			"error", err)
		return
	}
	m.backlog.Store(&b)
}

func (m *Maintainer) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if _, err := m.store.SettleProducts(ctx, settleAfter, settleLimit); err != nil && ctx.Err() == nil {
		m.store.logger.Warn("products that changed could not be settled; tickets are not affected, and it is tried again", "error", err)
	}
}
