package main

func errorJump() alert {
	return alert{
		name:     "MyticketErrorJump",
		severity: warning,
		expr: lines(
			`(myticket:source_unreadable:ratio_rate15m{namespace="${namespace}"} > 0.01`,
			`    and sum by (namespace, source) (increase(`+unreadable+`[15m])) >= 10)`,
			`  unless myticket:source_unreadable:ratio_rate15m <= 5 * myticket:source_unreadable:ratio_rate1d`,
		),
		lasts:   "5m",
		panel:   "myticket-tickets/20",
		summary: "{{ $value | humanizePercentage }} of the tickets of {{ $labels.source }} cannot be read",
		description: "That is more than five times the share of the last day. The tickets are stored, but orders and products lack them. " +
			"Usually a till has a new format.",
	}
}

func newProductsLimited() alert {
	return alert{
		name:     "MyticketNewProductsLimited",
		severity: warning,
		expr:     `sum by (namespace, source) (increase(myticket_new_products_limited_total{${servers}}[15m])) >= 1`,
		panel:    "myticket-tickets/25",
		summary:  "{{ $labels.source }} adds products faster than allowed",
		description: "Tickets that name new products become ERROR. They are stored, but orders and products lack them " +
			"until you raise the limit and retry the tickets.",
	}
}

func dialectsNotUnderstood() alert {
	return alert{
		name:     "MyticketDialectsNotUnderstood",
		severity: warning,
		expr:     `max by (namespace, pod) (myticket_dialects_not_understood{${servers}}) > 0`,
		lasts:    "10m",
		panel:    "myticket-tickets/27",
		summary:  "{{ $labels.pod }} does not understand {{ $value }} dialects",
		description: "A newer version of MyTicket has applied them. The server reads tickets of these sources as the dialect before says, " +
			"so they may become ERROR. They are stored.",
	}
}

func backlog() alert {
	return alert{
		name:     "MyticketBacklog",
		severity: warning,
		expr: lines(
			`max by (namespace) (myticket_backlog_overdue_seconds{${servers}}) > 300`,
			`  or max by (namespace) (myticket_backlog_tickets{${servers},status="TO_TREAT"}) > 10000`,
		),
		lasts:       "5m",
		panel:       "myticket-service/50",
		summary:     "TO_TREAT tickets wait too long, or are too many",
		description: "The tickets are stored, but not read yet, so orders and products lack them.",
	}
}

func maintenanceFailing() alert {
	return alert{
		name:     "MyticketMaintenanceFailing",
		severity: warning,
		expr: lines(
			`sum by (namespace) (increase(myticket_maintenance_failures_total{${servers},task=~"partitions|strays"}[15m])) > 10`,
			`  or max by (namespace) (min_over_time(myticket_strays{${servers}}[1h])) > 0`,
		),
		lasts:       "5m",
		panel:       "myticket-service/53",
		summary:     "Partitions for tickets are not made, or tickets are not moved out of a full default partition",
		description: "No ticket is lost. Until tickets are moved, no query finds them, and they are not treated.",
	}
}

func orderLinesBehind() alert {
	return alert{
		name:     "MyticketOrderLinesBehind",
		severity: warning,
		expr: lines(
			`max by (namespace) (myticket_order_lines_lag_seconds{${servers}}) > 600`,
			`  or sum by (namespace) (increase(myticket_order_lines_failed_tickets_total{${servers}}[1h])) >= 1`,
		),
		lasts:       "5m",
		panel:       "myticket-service/54",
		summary:     "The view order_lines lacks tickets",
		description: "The tickets are stored, and products are up to date. Queries and dashboards of sold products lack them.",
	}
}
