package postgres

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"myticket/internal/intake"
	"myticket/internal/ticket"
	"myticket/internal/treatment"
)

// LiveDialects reads tickets in the dialects that count now, while Run runs. While the database is away it goes on with those
// that it has.
//
// A newer version of the program may apply a dialect that this one does not understand. Then tickets of that source are read in
// the newest version before it that this program understands.
type LiveDialects struct {
	store  *Store
	listen bool

	current  atomic.Pointer[dialectSet]   // nil while no source has a dialect
	seen     atomic.Pointer[dialectsSeen] // nil until the dialects were read once
	known    chan struct{}                // closed then
	loading  chan struct{}                // has one place, so that only one goroutine loads at a time
	failures atomic.Int64
}

// dialectsSeen is what was found when the dialects were read last. It never changes.
type dialectsSeen struct {
	newest   int            // version of any source; 0 for none
	at       time.Time      // when that was made: another one has its number after the database was restored from a backup
	versions map[string]int // that are in use, by source
	foreign  int            // dialects that are not understood
}

// dialectSet are dialects that count at the same time. It never changes.
type dialectSet struct {
	sources map[string]versionedReader
	others  versionedReader // for sources that are not there
}

type versionedReader struct {
	reader  *ticket.Reader
	version int
}

// Intervals and timeouts of LiveDialects. A change is used within a second after it was told, or else after dialectsInterval.
const (
	dialectsInterval = 2 * time.Second
	dialectsTimeout  = 5 * time.Second
)

// NewLiveDialects returns LiveDialects. With listen it holds one connection of the store on which it is told of changes. Without,
// it asks for them.
func NewLiveDialects(store *Store, listen bool) *LiveDialects {
	return &LiveDialects{store: store, listen: listen, known: make(chan struct{}), loading: make(chan struct{}, 1)}
}

// Parse is a ticket.ParseFunc.
func (d *LiveDialects) Parse(source string, body []byte) (ticket.Order, []ticket.Problem, int) {
	with := d.of(source)
	order, problems := with.reader.Parse(body)
	return order, problems, with.version
}

// Text returns the text of a body, as Parse reads it.
func (d *LiveDialects) Text(source string, body []byte) string { return d.of(source).reader.Text(body) }

// of returns what reads the tickets of a source now.
func (d *LiveDialects) of(source string) versionedReader {
	set := d.current.Load()
	if set == nil {
		return versionedReader{}
	}
	with, ok := set.sources[source]
	if !ok {
		with = set.others
	}
	return with
}

// Await returns when the dialects were read once, and reports whether that was before ctx ended. No ticket may be read before.
func (d *LiveDialects) Await(ctx context.Context) bool {
	select {
	case <-d.known:
		return true
	case <-ctx.Done():
		return false
	}
}

// Load reads the dialects that count now, if others do than were read before.
func (d *LiveDialects) Load(ctx context.Context) error {
	err := d.store.pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error { return d.load(ctx, conn.Conn()) })
	return explain("read the dialects", err)
}

// Run takes up changes until ctx ends.
func (d *LiveDialects) Run(ctx context.Context) {
	failed := false
	for ctx.Err() == nil {
		var err error
		if d.listen {
			err = d.follow(ctx, func() { failed = false })
		} else {
			limited, cancel := context.WithTimeout(ctx, dialectsTimeout)
			err = d.Load(limited)
			cancel()
			failed = failed && err != nil
		}
		if err != nil && ctx.Err() == nil {
			d.failures.Add(1)
			if !failed {
				d.store.logger.Warn("the dialects cannot be read; no ticket is lost: until they can, tickets are read with those that were "+
					"read before, or not at all if none were; it is tried again", "error", err)
			}
			failed = true
		}
		pause(ctx, dialectsInterval)
	}
}

// follow waits for changes on one connection until something fails. It asks for changes, too, because a notification may be lost
// with its connection, and a pooler may pass none on. It calls works each time that it has read the dialects.
func (d *LiveDialects) follow(ctx context.Context, works func()) error {
	acquiring, cancel := context.WithTimeout(ctx, dialectsTimeout)
	defer cancel()
	pooled, err := d.store.pool.Acquire(acquiring)
	if err != nil {
		return err
	}
	defer pooled.Release()
	conn := pooled.Conn()
	defer func() { // otherwise another user of it would be told of changes
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing)
	}()
	if _, err := conn.Exec(acquiring, "LISTEN "+dialectsChannel); err != nil {
		return err
	}
	for ctx.Err() == nil {
		limited, cancel := context.WithTimeout(ctx, dialectsTimeout)
		err := d.load(limited, conn)
		cancel()
		if err != nil {
			return err
		}
		works()
		waiting, cancel := context.WithTimeout(ctx, dialectsInterval)
		_, err = conn.WaitForNotification(waiting)
		over := waiting.Err() != nil
		cancel()
		if err != nil && !over {
			return err
		}
	}
	return nil
}

// load reads the dialects if there is another version than before.
func (d *LiveDialects) load(ctx context.Context, conn *pgx.Conn) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case d.loading <- struct{}{}:
	}
	defer func() { <-d.loading }()
	seen := dialectsSeen{versions: map[string]int{}}
	err := conn.QueryRow(ctx, `SELECT version, created_at FROM dialects ORDER BY version DESC LIMIT 1`).Scan(&seen.newest, &seen.at)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return err
	}
	if was := d.seen.Load(); was != nil && seen.newest == was.newest && seen.at.Equal(was.at) {
		return nil
	}
	rows, err := conn.Query(ctx, selectCurrent)
	if err != nil {
		return err
	}
	written, err := pgx.CollectRows(rows, scanDialect)
	if err != nil {
		return err
	}
	set := &dialectSet{sources: map[string]versionedReader{}}
	for _, v := range written {
		with, err := d.understood(ctx, conn, v)
		if err != nil {
			return err
		}
		if with.version != v.Version {
			seen.foreign++
		}
		if with.version == 0 {
			continue
		}
		seen.versions[v.Source] = with.version
		if v.Source == OtherSources {
			set.others = with
		} else {
			set.sources[v.Source] = with
		}
	}
	d.take(set, seen)
	return nil
}

// understood returns the reader of a version, or else of the newest before it that this program understands. It has version 0 if
// there is none, or if that one took the dialect away: then the source is as others are.
func (d *LiveDialects) understood(ctx context.Context, conn *pgx.Conn, v DialectVersion) (versionedReader, error) {
	for wanted := v.Version; ; {
		reader, err := d.store.readers.of(v.Version, v.Dialect)
		if err == nil {
			return versionedReader{reader, v.Version}, nil
		}
		d.store.logger.Error("a dialect is not understood, because a newer version of this program has applied it: tickets of its "+
			"source are read as the version of the dialect before it says; upgrade this server, or revert the dialect",
			"source", v.Source, "version", v.Version, "of", wanted, "error", err)
		rows, err := conn.Query(ctx, selectDialects+` WHERE source = $1 AND version < $2 ORDER BY version DESC LIMIT 1`,
			v.Source, v.Version)
		if err != nil {
			return versionedReader{}, err
		}
		before, err := pgx.CollectRows(rows, scanDialect)
		if err != nil || len(before) == 0 || before[0].Dialect == nil {
			return versionedReader{}, err
		}
		v = before[0]
	}
}

// take makes dialects the ones that tickets are read in. Only one goroutine at a time may call it.
func (d *LiveDialects) take(set *dialectSet, seen dialectsSeen) {
	if len(seen.versions) == 0 {
		set = nil
	}
	d.current.Store(set)
	if was := d.seen.Swap(&seen); was == nil {
		close(d.known)
	}
	if seen.newest > 0 {
		d.store.logger.Info("tickets are read in these dialects from now on", "newest", seen.newest, "sources", len(seen.versions))
	}
}

// currentStore is a Store that reads the dialects before tickets are read that waited.
type currentStore struct {
	*Store
	dialects *LiveDialects
}

// Ping implements intake.Store. The store counts as away until the dialects were read. So the tickets of a spool are read in
// those that count when the database is back, and while no dialects were ever read, no ticket is read in a wrong one.
func (s currentStore) Ping(ctx context.Context) error {
	if err := s.dialects.Load(ctx); err != nil {
		return err
	}
	return s.Store.Ping(ctx)
}

// Claim implements treatment.Store. It reads the dialects after it has claimed tickets: one that counted when a ticket was sent
// back counts for that ticket. If they cannot be read, the tickets are claimed again when the lease ends.
func (s currentStore) Claim(ctx context.Context, limit int, lease time.Duration) ([]treatment.Claim, error) {
	claims, err := s.Store.Claim(ctx, limit, lease)
	if err != nil || len(claims) == 0 {
		return nil, err
	}
	if err := s.dialects.Load(ctx); err != nil {
		return nil, err
	}
	return claims, nil
}

// Store returns the store for intake, which must start with Intake.StartAway if Load failed.
func (d *LiveDialects) Store() intake.Store { return currentStore{d.store, d} }

// Treatment returns the store for treatment.
func (d *LiveDialects) Treatment() treatment.Store { return currentStore{d.store, d} }

// The metrics of dialects.
var (
	dialectsNewest = describe("dialects_newest_version",
		"Newest version of a dialect that this server knows; 0 for none. Absent until it has read the dialects.")
	dialectVersions = describe("dialect_version", "Version of the dialect in which this server reads the tickets of a source that "+
		"has one; the source * stands for all others.", "source")
	dialectsForeign = describe("dialects_not_understood",
		"Dialects that this server does not understand, because a newer version of the program has applied them. Tickets of these "+
			"sources are read as the version before says.")
	dialectsFailures = describe("dialects_failures_total",
		"Failed attempts to read the dialects. They are repeated, and tickets are read in the dialects that were read before.")
)

// Describe implements prometheus.Collector.
func (d *LiveDialects) Describe(descriptions chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{dialectsNewest, dialectVersions, dialectsForeign, dialectsFailures} {
		descriptions <- desc
	}
}

// Collect implements prometheus.Collector. It never waits for the database.
func (d *LiveDialects) Collect(metrics chan<- prometheus.Metric) {
	metrics <- prometheus.MustNewConstMetric(dialectsFailures, prometheus.CounterValue, float64(d.failures.Load()))
	seen := d.seen.Load()
	if seen == nil {
		return
	}
	metrics <- prometheus.MustNewConstMetric(dialectsNewest, prometheus.GaugeValue, float64(seen.newest))
	metrics <- prometheus.MustNewConstMetric(dialectsForeign, prometheus.GaugeValue, float64(seen.foreign))
	for source, version := range seen.versions {
		metrics <- prometheus.MustNewConstMetric(dialectVersions, prometheus.GaugeValue, float64(version), source)
	}
}
