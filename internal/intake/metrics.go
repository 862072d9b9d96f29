package intake

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"myticket/internal/ticket"
)

// Metrics are the metrics of an Intake and of a drain.
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
	// From the commit of a fast disk to a busy server, overflow (1 s), and the longest transaction (2 s).
	seconds := []float64{.0025, .005, .01, .025, .05, .1, .25, .5, 1, 2, 5}
	m := &Metrics{
		tickets: map[ticket.Status]prometheus.Counter{},
		problems: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "myticket_intake_problems_total",
			Help: "Tickets that could not be read, by the code of their problem; each code counts once per ticket.",
		}, []string{"code"}),
		orders: auto.NewCounter(prometheus.CounterOpts{
			Name: "myticket_intake_orders_total",
			Help: "Tickets that were read and stored; tickets of the spool count when they are stored in the database.",
		}),
		lines: auto.NewCounter(prometheus.CounterOpts{
			Name: "myticket_intake_order_lines_total",
			Help: "Product lines of the tickets that were read and stored.",
		}),
		duplicates: auto.NewCounter(prometheus.CounterOpts{
			Name: "myticket_intake_duplicates_total",
			Help: "Deliveries that were answered with an earlier ticket because of their idempotency key.",
		}),
		batches: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "myticket_intake_batches_total",
			Help: "Batches sent to the database, by outcome: committed or failed.",
		}, []string{"outcome"}),
		batchTickets: histogram("myticket_intake_batch_tickets", "Tickets in a batch.",
			[]float64{1, 2, 4, 8, 16, 32, 64, 128, 256, 512}),
		batchBytes: histogram("myticket_intake_batch_bytes",
			"Bytes of a batch: bodies, what was read from them, and the rows that are stored.",
			prometheus.ExponentialBuckets(256, 8, 7)),
		wait: histogram("myticket_intake_wait_seconds", "Time that the oldest ticket of a batch waited for its transaction to begin.",
			seconds),
		commit: histogram("myticket_intake_commit_seconds", "Duration of the transaction of a batch.",
			seconds),
		overflow: map[cause]prometheus.Counter{},
		spool: histogram("myticket_spool_write_seconds", "Duration of a write to the spool, with fsync.",
			seconds),
		drained: auto.NewCounter(prometheus.CounterOpts{
			Name: "myticket_spool_drained_total",
			Help: "Tickets of the spool that were stored in the database.",
		}),
		drainFailed: auto.NewCounter(prometheus.CounterOpts{
			Name: "myticket_spool_drain_failures_total",
			Help: "Failed attempts to store tickets of the spool in the database; they are repeated.",
		}),
		refused: auto.NewCounter(prometheus.CounterOpts{
			Name: "myticket_spool_refused_total",
			Help: "Tickets of the spool that the database refuses even unread, or did not take in any try; " +
				"they are kept in .refused files.",
		}),
		steppedOver: auto.NewCounter(prometheus.CounterOpts{
			Name: "myticket_spool_stepped_over_total",
			Help: "Times that a ticket of the spool was stepped over because the database takes others but not this one; " +
				"it is tried again.",
		}),
	}
	overflow := auto.NewCounterVec(prometheus.CounterOpts{
		Name: "myticket_spool_overflow_total",
		Help: "Tickets that went to the spool, by reason: away, failed (or no answer in time), wait, full.",
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

// Register adds the gauges of what waits in intake, and of its limits.
func (in *Intake) Register(r prometheus.Registerer) {
	auto := promauto.With(r)
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "myticket_intake_database_away",
		Help: "1 while the database takes no tickets: they go to the spool, or are refused if there is none.",
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
		Help: "Bytes of the tickets that wait for a transaction, with what was read from them.",
	}, func() float64 { _, bytes := in.queue.waiting(); return float64(bytes) })
	auto.NewGauge(prometheus.GaugeOpts{
		Name: "myticket_intake_max_waiting_tickets",
		Help: "Most tickets that may wait for a transaction.",
	}).Set(float64(in.config.WaitingTickets))
	auto.NewGauge(prometheus.GaugeOpts{
		Name: "myticket_intake_max_waiting_bytes",
		Help: "Most bytes of the tickets that may wait for a transaction.",
	}).Set(float64(in.config.WaitingBytes))
	auto.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "myticket_intake_in_flight",
		Help: "Deliveries that have no answer yet.",
	}, func() float64 { return float64(in.inFlight.Load()) })
}

// answered counts a stored ticket of n lines when its sender gets the answer.
func (m *Metrics) answered(o Outcome, n int) {
	if counter := m.tickets[o.Status]; counter != nil {
		counter.Inc()
	}
	m.read(o, n)
}

// read counts what was read from a ticket of n lines that is in the database.
func (m *Metrics) read(o Outcome, n int) {
	switch o.Status {
	case ticket.Treated:
		m.orders.Inc()
		m.lines.Add(float64(n))
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

// observe adds a value to a histogram, with the trace of a span as exemplar if there is one.
func observe(h prometheus.Histogram, value float64, traceparent string) {
	if exemplar, ok := h.(prometheus.ExemplarObserver); ok && len(traceparent) >= 35 {
		exemplar.ObserveWithExemplar(value, prometheus.Labels{"trace_id": traceparent[3:35]})
		return
	}
	h.Observe(value)
}
