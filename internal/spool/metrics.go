package spool

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

// Register adds the spool's metrics.
func (s *Spool) Register(r prometheus.Registerer) {
	auto := promauto.With(r)
	gauge := func(name, help string, value func(Stats) float64) {
		auto.NewGaugeFunc(prometheus.GaugeOpts{Name: "myticket_spool_" + name, Help: help}, func() float64 { return value(s.Stats()) })
	}
	gauge("tickets",
		"Tickets in the spool. Files of an earlier process count with what they say that they hold until they are verified.",
		func(h Stats) float64 { return float64(h.Tickets) })
	gauge("bytes", "Bytes in the spool's files, also in those that are not verified yet.",
		func(h Stats) float64 { return float64(h.Bytes) })
	gauge("oldest_age_seconds",
		"Age of the oldest ticket in the spool, also in a file that is not verified yet; 0 when it is empty.",
		func(h Stats) float64 {
			if h.Oldest.IsZero() {
				return 0
			}
			return max(0, time.Since(h.Oldest).Seconds())
		})
	gauge("files_unverified",
		"Files of an earlier process that are not verified yet. After a start that takes seconds; a file that stays cannot be read.",
		func(h Stats) float64 { return float64(h.Unverified) })
	gauge("files_aside", "Files that a person should look at: damaged ones, and tickets that the database refuses.",
		func(h Stats) float64 { return float64(h.Aside) })
	gauge("failing", "1 while the spool takes no tickets: it is full, or its disk fails.", func(h Stats) float64 {
		if h.Failure != nil {
			return 1
		}
		return 0
	})
	gauge("max_tickets", "Tickets that the spool may hold.", func(Stats) float64 { return float64(s.config.MaxTickets) })
	gauge("max_bytes", "Bytes that the spool may hold.", func(Stats) float64 { return float64(s.config.MaxBytes) })
}
