package main

// An objective is judged by how fast the error budget of 30 days is used up, over a long window and a short one: the short one ends the
// alert soon after the cause ends. Windows and factors are those of https://sre.google/workbook/alerting-on-slos/, table 5-8.

// burnsFast holds if the budget lasts less than two days at the rate of an hour, or less than five days at the rate of six hours.
func burnsFast(series, objective string) string {
	budget := `(1 - ${` + objective + `} / 100)`
	return lines(
		series+`1h > 14.4 * `+budget+` and `+series+`5m > 14.4 * `+budget,
		`  or `+series+`6h > 6 * `+budget+` and `+series+`30m > 6 * `+budget,
	)
}

// burnsSlowly holds if the budget lasts less than ten days at the rate of a day, or less than 30 days at the rate of three days.
func burnsSlowly(series, objective string) string {
	budget := `(1 - ${` + objective + `} / 100)`
	return lines(
		series+`1d > 3 * `+budget+` and `+series+`2h > 3 * `+budget,
		`  or `+series+`3d > `+budget+` and `+series+`6h > `+budget,
	)
}

func availabilityCritical() alert {
	return alert{
		name:     "MyticketAvailability",
		severity: critical,
		expr:     burnsFast("myticket:webhook_failed:ratio_rate", "objectives.availability"),
		panel:    "myticket-service/11",
		summary:  "Too many requests are answered 5xx: at this rate the 30-day error budget lasts less than five days",
		description: "{{ $value | humanizePercentage }} of the requests are answered 5xx. Each asks its sender to send the ticket again; " +
			"otherwise the ticket is lost. The objective is that ${objectives.availability} % are not answered 5xx.",
	}
}

func availabilityWarning() alert {
	a := availabilityCritical()
	a.severity = warning
	a.expr = burnsSlowly("myticket:webhook_failed:ratio_rate", "objectives.availability")
	a.summary = "Too many requests are answered 5xx: at this rate the 30-day error budget lasts less than 30 days"
	return a
}

func latencyCritical() alert {
	return alert{
		name:     "MyticketLatency",
		severity: critical,
		expr:     burnsFast("myticket:webhook_slow:ratio_rate", "objectives.latency"),
		panel:    "myticket-service/12",
		summary:  "Too many tickets take longer than 0.5 s: at this rate the 30-day error budget lasts less than five days",
		description: "{{ $value | humanizePercentage }} of the tickets take longer than 0.5 s. A till that gives up before the answer may send " +
			"its ticket again, or not. The objective is that ${objectives.latency} % are answered within 0.5 s.",
	}
}

func latencyWarning() alert {
	a := latencyCritical()
	a.severity = warning
	a.expr = burnsSlowly("myticket:webhook_slow:ratio_rate", "objectives.latency")
	a.summary = "Too many tickets take longer than 0.5 s: at this rate the 30-day error budget lasts less than 30 days"
	return a
}

func down() alert {
	return alert{
		name:     "MyticketDown",
		severity: critical,
		expr:     `absent(myticket_build_info{${servers}})`,
		lasts:    "2m",
		panel:    "myticket-service/3",
		summary:  "Prometheus reaches no server",
		description: "If the servers are down, no ticket can be posted: senders get an error of the Ingress. " +
			"If only Prometheus cannot reach the servers, tickets are stored as usual.",
	}
}

func serverDown() alert {
	return alert{
		name:     "MyticketServerDown",
		severity: warning,
		expr: lines(
			`up{${servers}} == 0`,
			`  or kube_statefulset_status_replicas_ready{namespace="${namespace}",statefulset="${fullname}"}`,
			`    < kube_statefulset_replicas{namespace="${namespace}",statefulset="${fullname}"}`,
		),
		lasts:       "10m",
		panel:       "myticket-service/52",
		summary:     "A server is down, or not ready",
		description: "The other servers take its tickets. The tickets in its spool are safe on its volume, and are read when it is back.",
	}
}

func connectionsRefused() alert {
	return alert{
		name:     "MyticketConnectionsRefused",
		severity: critical,
		expr:     `sum by (namespace, pod) (increase(myticket_http_connections_refused_total{${servers}}[5m])) > 0`,
		panel:    "myticket-service/21",
		summary:  "{{ $labels.pod }} refuses connections",
		description: "The maximum number of connections is open (--max-connections), each with a request in progress. " +
			"Other senders are answered 503 before their ticket is read.",
	}
}

func sourceSilent() alert {
	return alert{
		name:     "MyticketSourceSilent",
		severity: warning,
		expr: lines(
			`(myticket:source_tickets:increase1h offset 1w >= 10 or min_over_time(myticket:source_tickets:increase1h[1d] offset 1h) > 0)`,
			`  unless myticket:source_tickets:increase1h > 0`,
		),
		lasts:   "5m",
		panel:   "myticket-tickets/10",
		summary: "No ticket from {{ $labels.source }} for an hour",
		description: "It sent tickets in every hour of the last day, or at this time a week ago. " +
			"Maybe its tills cannot reach the webhook: they then keep their tickets, or lose them.",
	}
}
