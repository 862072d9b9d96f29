package main

func databaseAway() alert {
	return alert{
		name:        "MyticketDatabaseAway",
		severity:    critical,
		expr:        `max by (namespace, pod) (myticket_intake_database_away{${servers}}) == 1`,
		lasts:       "1m",
		panel:       "myticket-service/4",
		summary:     "{{ $labels.pod }} cannot store tickets in Postgres",
		description: "Tickets go to the spool and are answered 202. When the spool is full, tickets are refused with 503.",
	}
}

func spoolFillingWarning() alert {
	return alert{
		name:     "MyticketSpoolFilling",
		severity: warning,
		expr: lines(
			`myticket:spool_fill:ratio{namespace="${namespace}"} > 0.5`,
			`  or predict_linear(myticket:spool_fill:ratio{namespace="${namespace}"}[15m], 3600) > 1 and myticket:spool_fill:ratio > 0.1`,
		),
		lasts:   "1m",
		panel:   "myticket-service/41",
		summary: "The spool of {{ $labels.pod }} is more than half full, or will be full within an hour",
		description: "It is {{ $value | humanizePercentage }} full, or would be in an hour. Tickets in it are safe. " +
			"If it gets full while Postgres still takes no tickets, tickets are refused with 503.",
	}
}

func spoolFillingCritical() alert {
	return alert{
		name:     "MyticketSpoolFilling",
		severity: critical,
		expr:     `myticket:spool_fill:ratio{namespace="${namespace}"} > 0.8`,
		lasts:    "1m",
		panel:    "myticket-service/41",
		summary:  "The spool of {{ $labels.pod }} is {{ $value | humanizePercentage }} full",
		description: "Tickets in it are safe. " +
			"If it gets full while Postgres still takes no tickets, tickets are refused with 503.",
	}
}

func spoolAgeing() alert {
	return alert{
		name:        "MyticketSpoolAgeing",
		severity:    warning,
		expr:        `max by (namespace, pod) (myticket_spool_oldest_age_seconds{${servers}}) > 1800`,
		lasts:       "5m",
		panel:       "myticket-service/42",
		summary:     "The oldest ticket in the spool of {{ $labels.pod }} is {{ $value | humanizeDuration }} old",
		description: "Tickets in the spool are safe, but orders and products lack them.",
	}
}

func spoolDrainStuck() alert {
	return alert{
		name:     "MyticketSpoolDrainStuck",
		severity: warning,
		expr: lines(
			`max by (namespace, pod) (min_over_time(myticket_spool_tickets{${servers}}[10m])) > 0`,
			`  and max by (namespace, pod) (max_over_time(myticket_intake_database_away{${servers}}[10m])) == 0`,
			`  and sum by (namespace, pod) (increase(myticket_spool_drained_total{${servers}}[10m])) == 0`,
		),
		lasts:       "5m",
		panel:       "myticket-service/43",
		summary:     "{{ $labels.pod }} moves no ticket from its spool to Postgres, although Postgres takes tickets",
		description: "The tickets in the spool are safe, but are not read. The log says why.",
	}
}

func spoolFailing() alert {
	return alert{
		name:     "MyticketSpoolFailing",
		severity: critical,
		expr:     `max by (namespace, pod) (myticket_spool_failing{${servers}}) == 1`,
		lasts:    "1m",
		panel:    "myticket-service/45",
		summary:  "The spool of {{ $labels.pod }} takes no tickets",
		description: "The spool is full, or its disk fails. If Postgres is away too, tickets are refused with 503. " +
			"Tickets that are already in the spool are kept.",
	}
}

// spoolLeftBehind is about a server that is gone, so only what was last seen of it is known. A pod that is replaced is usually back
// within a minute.
func spoolLeftBehind() alert {
	return alert{
		name:     "MyticketSpoolLeftBehind",
		severity: critical,
		expr: lines(
			`last_over_time(myticket:spool_tickets:max{namespace="${namespace}"}[7d]) > 0`,
			`  unless myticket:spool_tickets:max{namespace="${namespace}"}`,
		),
		lasts:   "1m",
		panel:   "myticket-service/40",
		summary: "{{ $labels.pod }} is gone, and {{ $value }} tickets were in its spool when it was last seen",
		description: "They are acknowledged, and nowhere else than on its volume, until the server is back or a Job drains the volume. " +
			"They are safe as long as the volume is kept.",
	}
}

func spoolFilesAside() alert {
	return alert{
		name:     "MyticketSpoolFilesAside",
		severity: critical,
		expr:     `max by (namespace, pod) (myticket_spool_files_aside{${servers}}) > 0`,
		panel:    "myticket-service/45",
		summary:  "{{ $value }} file(s) of the spool of {{ $labels.pod }} were set aside",
		description: "Either a file is damaged, and acknowledged tickets may be lost. " +
			"Or Postgres does not accept a ticket in any form; the ticket is safe in its file.",
	}
}
