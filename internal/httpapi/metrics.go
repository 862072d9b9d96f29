package httpapi

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"go.opentelemetry.io/otel/trace"
)

// otherLabel is the source of whoever is not named in the sources file. What senders write into the path never becomes a
// label: anybody could make any number of them.
const otherLabel = "other"

// metrics counts the webhook's requests. The values of its labels are those of the sources file and of this program.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec

	// Looking them up by their labels costs as much as the rest.
	made sync.Map // kind → *counted
}

// kind is what is counted together, and counted is where.
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

// newMetrics registers the metrics with r. The sources that somebody has named are there from the start: a counter that
// begins with its first ticket hides that ticket from rate and increase
// (https://prometheus.io/docs/practices/instrumentation/#avoid-missing-metrics), and who never sent would not be seen at all.
func newMetrics(r prometheus.Registerer, sources *Sources) *metrics {
	auto := promauto.With(r)
	m := &metrics{
		requests: auto.NewCounterVec(prometheus.CounterOpts{
			Name: "myticket_http_requests_total",
			Help: "Requests to the webhook, by source (those of the sources file, default, and other for all the rest) and " +
				"outcome: treated, error, to_treat, spooled and duplicate are 2xx; anything else is the code of the problem.",
		}, []string{"source", "outcome"}),
		duration: auto.NewHistogramVec(prometheus.HistogramOpts{
			Name: "myticket_http_request_duration_seconds",
			Help: "Time from a request to the webhook that has been read to its answer, by status code.",
			// A commit of a fast disk, the objective of the webhook's latency (0.5 s), overflow (1 s), and what senders bear (5 s).
			Buckets:                         []float64{.0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
			NativeHistogramBucketFactor:     1.1,
			NativeHistogramMaxBucketNumber:  100,
			NativeHistogramMinResetDuration: time.Hour,
		}, []string{"code"}),
	}
	for name := range sources.named {
		for _, outcome := range []string{outcomeTreated, outcomeError, outcomeToTreat, outcomeSpooled} {
			m.requests.WithLabelValues(sources.label(name), outcome)
		}
	}
	return m
}

// request counts a request; span is the one that shows what it did, where that is sampled.
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
