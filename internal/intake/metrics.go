package intake

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"myticket/internal/ticket"
)

// Metrics counts what intake does.
type Metrics struct {
	tickets      map[ticket.Status]prometheus.Counter
	problems     *prometheus.CounterVec
	orders       prometheus.Counter
	lines        prometheus.Counter
	duplicates   prometheus.Counter
	batches      *prometheus.CounterVec
	batchTickets prometheus.Histogram
	batchBytes   prometheus.Histogram
	wait         prometheus.Histogram
	commit       prometheus.Histogram
	overflow     map[cause]prometheus.Counter
	spool        prometheus.Histogram
	drained      prometheus.Counter
	drainFailed  prometheus.Counter
	refused      prometheus.Counter
	steppedOver  prometheus.Counter
}

// NewMetrics registers the metrics with r; nil registers them nowhere.
func NewMetrics(r prometheus.Registerer) *Metrics {
	auto := promauto.With(r)
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		return auto.NewHistogram(prometheus.HistogramOpts{
			Name: name, Help: help, Buckets: buckets,
			NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100, NativeHistogramMinResetDuration: time.Hour,
		})
	}
	// A commit of a fast disk, one of a busy server, overflow (1 s), and the longest that a transaction may take (2 s).
	seconds := []float64{.0025, .005, .01, .025, .05, .1, .25, .5, 1, 2, 5}
	m := &Metrics{
		tickets: map[ticket.Status]prometheus.Counter{},
		problems: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "myticket_intake_problems_total",
			Help: "Tickets that could not be read, by the code of a problem that they have; each code counts once a ticket.",
		}, []string{"code"}),
		orders: auto.NewCounter(prometheus.CounterOpts{
			Name: "myticket_intake_orders_total",
			Help: "Tickets that were read and stored, those of the spool when they came into the database.",
		}),
		lines: auto.NewCounter(prometheus.CounterOpts{
			Name: "myticket_intake_order_lines_total",
			Help: "Product lines of the tickets that were read and stored.",
		}),
		duplicates: auto.NewCounter(prometheus.CounterOpts{
			Name: "myticket_intake_duplicates_total",
			Help: "Deliveries answered with an earlier ticket because of their idempotency key.",
		}),
		batches: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "myticket_intake_batches_total",
			Help: "Batches handed to the database, by outcome: committed or failed.",
		}, []string{"outcome"}),
		batchTickets: histogram("myticket_intake_batch_tickets", "Tickets in a batch.",
			[]float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 512}),
		batchBytes: histogram("myticket_intake_batch_bytes",
			"What the tickets of a batch become, in bytes: bodies, what was read, and the rows made of them.",
			prometheus.ExponentialBuckets(256, 8, 7)),
		wait: histogram("myticket_intake_wait_seconds", "How long the oldest ticket of a batch waited for its transaction to begin.",
			seconds),
		commit: histogram("myticket_intake_commit_seconds", "How long the transaction of a batch took.",
			seconds),
		overflow: map[cause]prometheus.Counter{},
		spool: histogram("myticket_spool_write_seconds", "How long writing tickets to the spool took, fsync included.",
			seconds),
		drained: auto.NewCounter(prometheus.CounterOpts{
			Name: "myticket_spool_drained_total",
			Help: "Tickets that were brought from the spool into the database.",
		}),
		drainFailed: auto.NewCounter(prometheus.CounterOpts{
			Name: "myticket_spool_drain_failures_total",
			Help: "Attempts to bring tickets from the spool into the database that failed; they are repeated.",
		}),
		refused: auto.NewCounter(prometheus.CounterOpts{
			Name: "myticket_spool_refused_total",
			Help: "Tickets of the spool that the database refuses even unread, or took in no try; they are kept in files of their own.",
		}),
		steppedOver: auto.NewCounter(prometheus.CounterOpts{
			Name: "myticket_spool_stepped_over_total",
			Help: "Times that a ticket of the spool was stepped over, because the database takes others; it is tried again some times.",
		}),
	}
	overflow := auto.NewCounterVec(prometheus.CounterOpts{
		Name: "myticket_spool_overflow_total",
		Help: "Tickets that went to the spool, by reason: away, failed (or not answered in time), wait, full.",
	}, []string{"reason"})
	for why, reason := range map[cause]string{
		causeAway: "away", causeFailed: "failed", causeWait: "wait", causeFull: "full",
	} {
		m.overflow[why] = overflow.WithLabelValues(reason)
	}
	stored := auto.NewCounterVec(prometheus.CounterOpts{
		Name: "myticket_intake_tickets_total",
		Help: "Tickets stored, by the status they were answered with.",
	}, []string{"status"})
	for _, status := range []ticket.Status{ticket.Treated, ticket.Error, ticket.ToTreat, ticket.Spooled} {
		m.tickets[status] = stored.WithLabelValues(string(status))
	}
	return m
}

// Register adds the gauges of what waits in intake, and of what may.
func (in *Intake) Register(r prometheus.Registerer) {
	auto := promauto.With(r)
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "myticket_intake_database_away",
		Help: "1 while the database takes no tickets: they are spooled, or refused where there is no spool.",
	}, func() float64 {
		if in.Available() {
			return 0
		}
		return 1
	})
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "myticket_intake_waiting_tickets",
		Help: "Tickets that wait for a transaction.",
	}, func() float64 { tickets, _ := in.queue.waiting(); return float64(tickets) })
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "myticket_intake_waiting_bytes",
		Help: "What the tickets that wait for a transaction become, in bytes.",
	}, func() float64 { _, bytes := in.queue.waiting(); return float64(bytes) })
	auto.NewGauge(prometheus.GaugeOpts{
		Name: "myticket_intake_max_waiting_tickets",
		Help: "Tickets that may wait for a transaction.",
	}).Set(float64(in.config.WaitingTickets))
	auto.NewGauge(prometheus.GaugeOpts{
		Name: "myticket_intake_max_waiting_bytes",
		Help: "What the tickets that may wait for a transaction become, in bytes.",
	}).Set(float64(in.config.WaitingBytes))
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "myticket_intake_in_flight",
		Help: "Deliveries that were accepted and are not answered yet.",
	}, func() float64 { return float64(in.inFlight.Load()) })
}

// answered counts a ticket of a number of lines that is stored, whose sender is told so.
func (m *Metrics) answered(o Outcome, lines int) {
	if counter := m.tickets[o.Status]; counter != nil {
		counter.Inc()
	}
	m.read(o, lines)
}

// read counts what is in a ticket that went into the database.
func (m *Metrics) read(o Outcome, lines int) {
	switch o.Status {
	case ticket.Treated:
		m.orders.Inc()
		m.lines.Add(float64(lines))
	case ticket.Error:
		for i, p := range o.Problems {
			if !slices.ContainsFunc(o.Problems[:i], func(before ticket.Problem) bool { return before.Code == p.Code }) {
				m.problems.WithLabelValues(p.Code).Inc()
			}
		}
	case ticket.Spooled, ticket.ToTreat, ticket.Dismissed:
	}
}

// batch counts a batch. StoredBy is its span, as in Saved.
func (m *Metrics) batch(tickets, bytes int, wait, commit time.Duration, storedBy string, err error) {
	outcome := "committed"
	if err != nil {
		outcome = "failed"
	}
	m.batches.WithLabelValues(outcome).Inc()
	m.batchTickets.Observe(float64(tickets))
	m.batchBytes.Observe(float64(bytes))
	observe(m.wait, wait.Seconds(), storedBy)
	observe(m.commit, commit.Seconds(), storedBy)
}

// observe adds the trace of a span as exemplar, where there is one.
func observe(h prometheus.Histogram, value float64, traceparent string) {
	if exemplar, ok := h.(prometheus.ExemplarObserver); ok && len(traceparent) >= 35 {
		exemplar.ObserveWithExemplar(value, prometheus.Labels{"trace_id": traceparent[3:35]})
		return
	}
	h.Observe(value)
}
