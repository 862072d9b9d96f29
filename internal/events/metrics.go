package events

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// metrics are those of a Sender. They have the name of the subscription, which only operators choose.
type metrics struct {
	sent, failures, rejected, missing               *prometheus.CounterVec
	lag, waiting, paused, failing, letters, replays *prometheus.GaugeVec
	held                                            *prometheus.GaugeVec // without labels

	shown map[string]bool // the subscriptions that have series
}

func newMetrics(registry prometheus.Registerer) metrics {
	with := promauto.With(registry)
	counter := func(name, help string) *prometheus.CounterVec {
		return with.NewCounterVec(prometheus.CounterOpts{Name: "myticket_events_" + name, Help: help}, []string{"subscription"})
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return with.NewGaugeVec(prometheus.GaugeOpts{Name: "myticket_events_" + name, Help: help}, []string{"subscription"})
	}
	return metrics{
		sent: counter("sent_total", "Events that this process sent and the target took, by subscription."),
		failures: counter("failures_total",
			"Attempts of this process to send that failed, at least for one event, or to open the target. They are repeated."),
		rejected: counter("rejected_total",
			"Events of this process that the target refused, so they are dead letters now. The tickets are stored."),
		missing: counter("missing_tickets_total",
			"Tickets without an event, because they were dropped or set aside before it was sent, or cannot be read. Those that were "+
				"set aside have one later."),
		lag: gauge("lag_seconds",
			"Age of the oldest batch of tickets whose events were not delivered yet; 0 for none. It also grows while the subscription "+
				"is paused."),
		waiting: gauge("waiting_tickets",
			"Tickets whose events were not delivered yet, before the filter; those of at most 10000 batches are counted."),
		paused:  gauge("paused", "1 if the subscription is paused, so its part of the outbox is kept; else 0."),
		failing: gauge("failing_seconds", "Time since the target does not take events; 0 if it does."),
		letters: gauge("dead_letters",
			"Dead letters that the subscription has. With more than 10000 it is paused."),
		replays: gauge("replay_left_seconds",
			"Time of receipt that a replay still has to go through; 0 if there is none."),
		held: with.NewGaugeVec(prometheus.GaugeOpts{
			Name: "myticket_events_snapshot_held_seconds",
			Help: "How long the oldest transaction of the database server has been under way, as seen by this process. Events about " +
				"what was stored after it began wait for its end.",
		}, nil),
		shown: map[string]bool{},
	}
}

// vector is a metric that has the name of a subscription.
type vector interface {
	DeleteLabelValues(values ...string) bool
}

func (m *metrics) vectors() []vector {
	return []vector{
		m.lag, m.waiting, m.paused, m.failing, m.letters, m.replays, m.sent, m.failures, m.rejected, m.missing,
	}
}

// show sets what was counted. Subscriptions that are not there any more lose their series. Only one goroutine may call it.
func (m *metrics) show(subs []SubscriptionState) {
	there := make(map[string]bool, len(subs))
	for i := range subs {
		sub := &subs[i]
		there[sub.Name], m.shown[sub.Name] = true, true
		set := func(vec *prometheus.GaugeVec, value float64) { vec.WithLabelValues(sub.Name).Set(value) }
		set(m.lag, sub.Behind.Seconds())
		set(m.waiting, float64(sub.Waiting))
		set(m.letters, float64(sub.DeadLetters))
		paused, failing, left := 0.0, 0.0, 0.0
		if sub.Paused != nil {
			paused = 1
		}
		if sub.FailingSince != nil {
			failing = max(time.Since(*sub.FailingSince).Seconds(), 0)
		}
		if r := sub.Replay; r != nil {
			from := r.From
			if r.At != nil {
				from = *r.At
			}
			left = max(r.Until.Sub(from).Seconds(), 0)
		}
		set(m.paused, paused)
		set(m.failing, failing)
		set(m.replays, left)
		for _, c := range []*prometheus.CounterVec{m.sent, m.failures, m.rejected, m.missing} {
			c.WithLabelValues(sub.Name)
		}
	}
	for name := range m.shown {
		if there[name] {
			continue
		}
		for _, vec := range m.vectors() {
			vec.DeleteLabelValues(name)
		}
		delete(m.shown, name)
	}
}

// forget leaves out what is not known any more.
func (m *metrics) forget() {
	for _, vec := range []*prometheus.GaugeVec{m.lag, m.waiting, m.paused, m.failing, m.letters, m.replays, m.held} {
		vec.Reset()
	}
}
