package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"
)

// backlogLimit is the most tickets that are counted. An index of that many is read in some 10 ms.
const backlogLimit = 100_000

// backlog reads the partial indexes of the tickets that wait for a person or for treatment, and never the tickets themselves. Of
// products it reads those that are unsettled.
const backlog = `
SELECT
    (SELECT count(*) FROM (SELECT FROM tickets WHERE status = 'ERROR' LIMIT $1) AS e),
    t.waiting, t.oldest, t.overdue,
    (SELECT greatest(reltuples, 0)::float8 FROM pg_class WHERE oid = 'products'::regclass),
    p.unsettled, p.oldest
FROM (
    SELECT count(*) AS waiting, coalesce(extract(epoch FROM now() - min(received_at)), 0)::float8 AS oldest,
           greatest(coalesce(extract(epoch FROM now() - min(next_attempt_at)), 0), 0)::float8 AS overdue
    FROM (SELECT received_at, next_attempt_at FROM tickets WHERE status = 'TO_TREAT' ORDER BY next_attempt_at LIMIT $1) AS w
) AS t, (
    SELECT count(*) AS unsettled,
           greatest(coalesce(extract(epoch FROM now() - min(changed_at) FILTER (WHERE named_until IS NULL)), 0), 0)::float8
               AS oldest
    FROM (SELECT changed_at, named_until FROM products WHERE unsettled_from IS NOT NULL LIMIT $1) AS u
) AS p`

// Backlog is what waits in the whole database.
type Backlog struct {
	Error   int           // tickets that could not be read; at most 100,000 are counted
	ToTreat int           // tickets that wait for treatment; at most 100,000 are counted
	Oldest  time.Duration // age of the oldest ticket that is TO_TREAT; 0 for none
	Overdue time.Duration // for how long the first of these has been due; 0 for none

	Strays int // tickets of a full default partition that are still to be moved; at most 100,000 per table are counted

	Products     float64       // estimated by Postgres at its last ANALYZE
	Unsettled    int           // products that changed and were not looked at again yet; at most 100,000 are counted
	OldestChange time.Duration // time since the ticket that changed the first of these; 0 for none
}

// Backlog counts what waits.
func (s *Store) Backlog(ctx context.Context) (Backlog, error) {
	var b Backlog
	var oldest, overdue, change float64
	err := s.pool.QueryRow(ctx, backlog, backlogLimit).
		Scan(&b.Error, &b.ToTreat, &oldest, &overdue, &b.Products, &b.Unsettled, &change)
	if err != nil {
		return Backlog{}, fmt.Errorf("count what waits: %w", err)
	}
	b.Oldest, b.Overdue, b.OldestChange = seconds(oldest), seconds(overdue), seconds(change)
	b.Strays, err = s.Strays(ctx)
	return b, err
}

// outboxBacklog reads no more than 10,000 batches.
const outboxBacklog = `
SELECT coalesce(extract(epoch FROM clock_timestamp() - min(at)), 0)::float8, coalesce(sum(octet_length(tickets)) / 16, 0)::int8
FROM (SELECT at, tickets FROM outbox
      WHERE xid > coalesce((SELECT ` + ownPlace + ` FROM outbox_readers r WHERE name = $1), '0') ORDER BY xid LIMIT 10000) w`

// OutboxBacklog is what a reader of the outbox has not read.
type OutboxBacklog struct {
	Tickets int           // of at most 10,000 batches
	Oldest  time.Duration // age of the oldest batch; 0 for none
}

// OrderLinesBacklog counts the tickets that are stored and whose lines are still to be filled, with those that have none.
func (s *Store) OrderLinesBacklog(ctx context.Context) (b OutboxBacklog, err error) {
	var oldest float64
	err = s.steady(ctx, func(tx pgx.Tx) error {
		return tx.QueryRow(ctx, outboxBacklog, linesReader).Scan(&oldest, &b.Tickets)
	})
	if err != nil {
		return OutboxBacklog{}, fmt.Errorf("count the tickets whose lines are to be filled: %w", err)
	}
	b.Oldest = seconds(oldest)
	return b, nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// describe returns the description of a metric.
func describe(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("myticket_"+name, help, labels, nil)
}

// The metrics of the database. Those of the pool are about this server. The others are the same from every server.
var (
	poolConnections = describe("postgres_connections",
		"Connections of this server to Postgres, by state: in_use, idle or opening.", "state")
	poolMax      = describe("postgres_max_connections", "Most connections that this server may have.")
	poolAcquires = describe("postgres_acquires_total", "Requests for a connection.")
	poolWaits    = describe("postgres_waits_total", "Requests for a connection when none was free, so they waited or opened one.")
	poolWaited   = describe("postgres_wait_seconds_total", "Time spent waiting for a connection when none was free.")
	poolGivenUp  = describe("postgres_waits_canceled_total", "Canceled waits for a connection.")
	poolOpened   = describe("postgres_connections_opened_total", "Connections that were opened.")

	jobFailures = describe("maintenance_failures_total",
		"Runs of a maintenance task that failed or took too long, by task: partitions, strays, outbox, settle, count, "+
			"new_groups or problem_groups. "+
			"The task is repeated.", "task")

	schemaVersion = describe("schema_version", "Version of the database's schema.")
	schemaNeeded  = describe("schema_needed_version", "Version of the schema that this server needs.")
	schemaDirty   = describe("schema_dirty", "1 if a migration failed half-way.")

	backlogTickets = describe("backlog_tickets",
		"Tickets in the database that wait for a person (ERROR) or for treatment (TO_TREAT), by status; "+
			"at most 100000 are counted.", "status")
	backlogAge     = describe("backlog_oldest_age_seconds", "Age of the oldest ticket that is TO_TREAT; 0 for none.")
	backlogOverdue = describe("backlog_overdue_seconds",
		"Time since the first TO_TREAT ticket became due; 0 for none.")
	backlogStrays = describe("strays",
		"Tickets of a full default partition that are still to be moved to their partitions. No query finds them until "+
			"they are there. At most 100000 per table are counted.")
	linesLag = describe("order_lines_lag_seconds",
		"Age of the oldest batch of tickets that is stored and not in order_lines yet; 0 for none. Absent without --order-lines.")
	linesWaiting = describe("order_lines_waiting_tickets",
		"Tickets that are stored and not in order_lines yet; those of at most 10000 batches are counted. Absent without --order-lines.")
	archiveBehind = describe("archive_lag_seconds",
		"Time since the oldest partition that is not archived was old enough to be (--keep of the last run); 0 for none. "+
			"Absent if nothing was ever archived.")
	archiveParts = describe("archive_parts",
		"Parts of the archive by state: detached (in Postgres), verified (in both), archived or restored. "+
			"Absent if nothing was ever archived.", "state")
	archiveSuccess = describe("archive_last_success_timestamp_seconds",
		"Time of the last run of the archive that succeeded. Absent if there was none.")
	archiveFailures = describe("archive_failures_total",
		"Runs of the archive that failed. Absent if nothing was ever archived.")
	productsKnown     = describe("products", "Products in the product base, estimated by Postgres.")
	productsUnsettled = describe("products_unsettled",
		"Products whose name or price changed and was not compared with the newest tickets yet, which is done a minute later; "+
			"at most 100000 are counted.")
	productsOldest = describe("products_unsettled_age_seconds",
		"Time since the ticket that changed the first unsettled product; 0 for none. If it grows for hours, the tickets of that "+
			"minute are too many and too long to be read, or they are set aside: the product may say what an older ticket says.")
)

// Describe implements prometheus.Collector.
func (m *Maintainer) Describe(descriptions chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		poolConnections, poolMax, poolAcquires, poolWaits, poolWaited, poolGivenUp, poolOpened,
		jobFailures, schemaVersion, schemaNeeded, schemaDirty, backlogTickets, backlogAge, backlogOverdue, backlogStrays,
		linesLag, linesWaiting, archiveBehind, archiveParts, archiveSuccess, archiveFailures,
		productsKnown, productsUnsettled, productsOldest,
	} {
		descriptions <- d
	}
}

// Collect implements prometheus.Collector. It sends no query. What it exposes of the database was read some seconds ago, and
// is left out while the database does not answer, or if there was no count for a minute.
func (m *Maintainer) Collect(metrics chan<- prometheus.Metric) {
	send := func(d *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
		metrics <- prometheus.MustNewConstMetric(d, kind, value, labels...)
	}
	pool := m.store.pool.Stat()
	send(poolConnections, prometheus.GaugeValue, float64(pool.AcquiredConns()), "in_use")
	send(poolConnections, prometheus.GaugeValue, float64(pool.IdleConns()), "idle")
	send(poolConnections, prometheus.GaugeValue, float64(pool.ConstructingConns()), "opening")
	send(poolMax, prometheus.GaugeValue, float64(pool.MaxConns()))
	send(poolAcquires, prometheus.CounterValue, float64(pool.AcquireCount()))
	send(poolWaits, prometheus.CounterValue, float64(pool.EmptyAcquireCount()))
	send(poolWaited, prometheus.CounterValue, pool.EmptyAcquireWaitTime().Seconds())
	send(poolGivenUp, prometheus.CounterValue, float64(pool.CanceledAcquireCount()))
	send(poolOpened, prometheus.CounterValue, float64(pool.NewConnsCount()))

	for name, failures := range m.failures {
		send(jobFailures, prometheus.CounterValue, float64(failures.Load()), name)
	}

	health := m.Health()
	if health.Schema.Latest > 0 && health.Err == nil {
		dirty := 0.0
		if health.Schema.Dirty {
			dirty = 1
		}
		send(schemaVersion, prometheus.GaugeValue, float64(health.Schema.Version))
		send(schemaNeeded, prometheus.GaugeValue, float64(health.Schema.Latest))
		send(schemaDirty, prometheus.GaugeValue, dirty)
	}
	if !health.Ready {
		return
	}
	if counted := m.backlog.Load(); counted.fresh() {
		b := counted.backlog
		send(backlogTickets, prometheus.GaugeValue, float64(b.Error), "ERROR")
		send(backlogTickets, prometheus.GaugeValue, float64(b.ToTreat), "TO_TREAT")
		send(backlogAge, prometheus.GaugeValue, b.Oldest.Seconds())
		send(backlogOverdue, prometheus.GaugeValue, b.Overdue.Seconds())
		send(backlogStrays, prometheus.GaugeValue, float64(b.Strays))
		send(productsKnown, prometheus.GaugeValue, b.Products)
		send(productsUnsettled, prometheus.GaugeValue, float64(b.Unsettled))
		send(productsOldest, prometheus.GaugeValue, b.OldestChange.Seconds())
	}
	if lines := m.lines.Load(); lines.fresh() {
		send(linesLag, prometheus.GaugeValue, lines.backlog.Oldest.Seconds())
		send(linesWaiting, prometheus.GaugeValue, float64(lines.backlog.Tickets))
	}
	if archived := m.archived.Load(); archived.fresh() && archived.backlog.Configured {
		b := archived.backlog
		send(archiveBehind, prometheus.GaugeValue, b.Lag.Seconds())
		send(archiveFailures, prometheus.CounterValue, float64(b.Failures))
		for state, n := range b.Parts {
			send(archiveParts, prometheus.GaugeValue, float64(n), string(state))
		}
		if !b.Success.IsZero() {
			send(archiveSuccess, prometheus.GaugeValue, float64(b.Success.UnixMilli())/1000)
		}
	}
}
