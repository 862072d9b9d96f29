package httpapi

import (
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics counts the webhook's requests. Its only label is the status code, of which the server has few.
type metrics struct {
	duration *prometheus.HistogramVec
	byCode   sync.Map // int → prometheus.Observer: looking one up by its label costs as much as the rest
}

func newMetrics(r prometheus.Registerer) *metrics {
	return &metrics{duration: promauto.With(r).NewHistogramVec(prometheus.HistogramOpts{
		Name:    "myticket_http_request_duration_seconds",
		Help:    "Time from a request to the webhook that has been read to its answer, by status code.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
	}, []string{"code"})}
}

func (m *metrics) request(code int, took time.Duration) {
	found, ok := m.byCode.Load(code)
	if !ok {
		found, _ = m.byCode.LoadOrStore(code, m.duration.WithLabelValues(strconv.Itoa(code)))
	}
	if observer, ok := found.(prometheus.Observer); ok {
		observer.Observe(took.Seconds())
	}
}
