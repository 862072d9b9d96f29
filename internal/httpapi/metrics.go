package httpapi

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.opentelemetry.io/otel/trace"
)

// otherLabel is the label of all sources that the sources file does not name. A name from a request's path never becomes a
// label, because senders could make any number of them.
const otherLabel = "other"

// metrics counts the webhook's requests. Values of labels come only from the sources file and from this program.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec

	// The counters that were used, because looking them up by their labels costs as much as the rest.
	made sync.Map // kind → *counted
}

// kind says which requests are counted together, and counted holds their counters.
type (
	kind struct {
		source, outcome string
		status          int
	}
	counted struct {
		requests prometheus.Counter
		duration prometheus.Observer
	}
)

// newMetrics registers the metrics with r. Counters of the named sources exist from the start. Otherwise rate and increase
// would miss the first ticket of a source (https://prometheus.io/docs/practices/instrumentation/#avoid-missing-metrics), and a
// source that never sent would not be seen at all.
func newMetrics(r prometheus.Registerer, sources *Sources) *metrics {
	auto := promauto.With(r)
	m := &metrics{
		requests: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "myticket_http_requests_total",
			Help: "Requests to the webhook, by source (a name of the sources file, default, or other for all the rest) and " +
				"outcome: treated, error, to_treat, spooled and duplicate are 2xx; any other is the code of the problem.",
		}, []string{"source", "outcome"}),
		duration: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name: "myticket_http_request_duration_seconds",
			Help: "Time from the end of reading a request to the webhook to its answer, by status code.",
			// From a commit on a fast disk to when senders give up (5 s), with the latency objective (0.5 s) and overflow (1 s).
			Buckets:                         []float64{.0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}, []string{"code"}),
	}
	onHold := auto.NewGaugeVec(prometheus.GaugeOpts{
		Name: "myticket_source_on_hold",
		Help: "1 if the source is on hold, so its tickets are answered 503 and not stored, else 0; by source (a name of the sources " +
			"file, or other for all that it does not name).",
	}, []string{"source"})
	for name, source := range sources.named {
		onHold.WithLabelValues(sources.label(name)).Set(0)
		if source.hold {
			onHold.WithLabelValues(sources.label(name)).Set(1)
		}
		for _, outcome := range []string{outcomeTreated, outcomeError, outcomeToTreat, outcomeSpooled} {
			m.requests.WithLabelValues(sources.label(name), outcome)
		}
	}
	return m
}

// request counts a request. If its span is sampled, the trace is the exemplar.
func (m *metrics) request(r Response, took time.Duration, span trace.SpanContext) {
	key := kind{r.Source, r.Outcome, r.Status}
	found, ok := m.made.Load(key)
	if !ok {
		found, _ = m.made.LoadOrStore(key, &counted{
			m.requests.WithLabelValues(r.Source, r.Outcome), m.duration.WithLabelValues(strconv.Itoa(r.Status)),
		})
	}
	c, _ := found.(*counted)
	c.requests.Inc()
	if exemplar, ok := c.duration.(prometheus.ExemplarObserver); ok && span.IsSampled() {
		exemplar.ObserveWithExemplar(took.Seconds(), prometheus.Labels{"trace_id": span.TraceID().String()})
		return
	}
	c.duration.Observe(took.Seconds())
}
