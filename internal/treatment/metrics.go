package treatment

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"

	"myticket/internal/ticket"
)

// Metrics are the metrics of treatment.
type Metrics struct {
	attempts map[string]prometheus.Counter
	failures prometheus.Counter
}

// The outcomes of an attempt.
const (
	outcomeTreated = "treated"
	outcomeError   = "error"
	outcomeAgain   = "again"
	outcomeLost    = "claim_lost"
)

// NewMetrics registers the metrics with r; nil registers them nowhere.
func NewMetrics(r prometheus.Registerer) *Metrics {
	auto := promauto.With(r)
	attempts := auto.NewCounterVec(prometheus.CounterOpts{
		Name: "myticket_treatment_attempts_total",
		Help: "Attempts to treat a TO_TREAT ticket, by outcome: treated, error, again (it stays TO_TREAT), or " +
			"claim_lost (another server treats it).",
	}, []string{"outcome"})
	m := &Metrics{
		attempts: map[string]prometheus.Counter{},
		failures: auto.NewCounter(prometheus.CounterOpts{
			Name: "myticket_treatment_claim_failures_total",
			Help: "Failed queries for TO_TREAT tickets; they are repeated.",
		}),
	}
	for _, outcome := range []string{outcomeTreated, outcomeError, outcomeAgain, outcomeLost} {
		m.attempts[outcome] = attempts.WithLabelValues(outcome)
	}
	return m
}

func (m *Metrics) attempt(status ticket.Status, err error) {
	outcome := outcomeError
	switch {
	case errors.Is(err, ErrClaimLost):
		outcome = outcomeLost
	case err != nil:
		outcome = outcomeAgain
	case status == ticket.Treated:
		outcome = outcomeTreated
	}
	m.attempts[outcome].Inc()
}
