package main

import (
	"fmt"

	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// quantiles are the queries for quantiles of a histogram.
func quantiles(metric string, quantiles ...float64) []query {
	var queries []query
	for _, q := range quantiles {
		queries = append(queries, query{
			fmt.Sprintf(`histogram_quantile(%g, sum by (le) (rate(%s_bucket{namespace="$namespace"}[$__rate_interval])))`, q, metric),
			fmt.Sprintf("%g %%", q*100),
		})
	}
	return queries
}

// service is for whoever is on call.
func service() *dashboard.DashboardBuilder {
	const requests = `myticket_http_request_duration_seconds_count{namespace="$namespace"`
	const failed = requests + `,code=~"5.."}`
	const all = requests + `}`
	const inTime = `myticket_http_request_duration_seconds_bucket{namespace="$namespace",code=~"2..",le="0.5"}`
	board := newDashboard("myticket-service", "MyTicket / Service",
		"Is the webhook well, and if not, what is it that is not? Tickets that were answered 200 or 202 are safe whatever this shows.")

	withRow(board, "Now",
		panel{
			id: 1, title: "Availability", look: value, unit: share, warn: .9999, alarm: .999,
			about:   "Requests of the time range that were not answered 5xx. Objective: 99.9 % over 30 days.",
			queries: []query{{`1 - (sum(increase(` + failed + `[$__range])) or vector(0)) / sum(increase(` + all + `[$__range]))`, "available"}},
			alerts:  []string{"MyticketAvailability"},
		},
		panel{
			id: 2, title: "Answered within 0.5 s", look: value, unit: share, warn: .995, alarm: .99,
			about: "Of the requests of the time range that were answered 2xx. Objective: 99 % over 30 days.",
			queries: []query{{
				`sum(increase(` + inTime + `[$__range])) / sum(increase(` + requests + `,code=~"2.."}[$__range]))`, "in time",
			}},
			alerts: []string{"MyticketLatency"},
		},
		panel{
			id: 3, title: "Servers", look: value, unit: count, warn: 2, alarm: 1,
			about:   "Servers that Prometheus reaches.",
			queries: []query{{`count(myticket_build_info{namespace="$namespace"})`, "servers"}},
			alerts:  []string{"MyticketDown", "MyticketServerDown"},
		},
		panel{
			id: 4, title: "Database", look: value, unit: none, alarm: 1,
			about:   "Whether every server can store in Postgres. While it is away, tickets go to the spool and are answered 202.",
			queries: []query{{`max(myticket_intake_database_away{namespace="$namespace"})`, "database"}},
			words:   map[string]word{"0": {"takes tickets", "green"}, "1": {"away", "red"}},
			alerts:  []string{"MyticketDatabaseAway"},
		},
		panel{
			id: 5, title: "In the spool", look: value, unit: count, warn: 1, alarm: 100_000,
			about:   "Tickets on the servers' disks that Postgres has not taken yet. They are safe there, and read when they are drained.",
			queries: []query{{`sum(myticket_spool_tickets{namespace="$namespace"})`, "tickets"}},
			alerts:  []string{"MyticketSpoolFilling", "MyticketSpoolDrainStuck"},
		},
		panel{
			id: 6, title: "Schema", look: value, unit: none, alarm: 1,
			about: "Whether the database's schema is the one that the servers need.",
			queries: []query{{
				`clamp_max(max((myticket_schema_needed_version{namespace="$namespace"} > bool myticket_schema_version{namespace="$namespace"}) ` +
					`+ myticket_schema_dirty{namespace="$namespace"}), 1)`, "schema",
			}},
			words:  map[string]word{"0": {"right", "green"}, "1": {"behind", "red"}},
			alerts: []string{"MyticketSchemaBehind"},
		},
	)
	withRow(board, "Requests",
		panel{
			id: 10, title: "Requests by outcome", look: stacked, unit: perSecond,
			about: "2xx are treated, error (cannot be read), spooled, to_treat and duplicate; what else there is, was refused.",
			queries: []query{{
				`sum by (outcome) (rate(myticket_http_requests_total{namespace="$namespace"}[$__rate_interval]))`, "{{outcome}}",
			}},
		},
		panel{
			id: 11, title: "Share answered 5xx", look: curves, unit: share, warn: .001, alarm: .0144,
			about: "Their senders were asked to send again. Orange: the objective. Red: the error budget of 30 days is gone in two.",
			queries: []query{{
				`(sum(rate(` + failed + `[$__rate_interval])) or vector(0)) / sum(rate(` + all + `[$__rate_interval]))`, "5xx",
			}},
			alerts: []string{"MyticketAvailability"},
		},
		panel{
			id: 12, title: "Time to the answer", look: curves, unit: seconds, warn: .5, alarm: 4,
			about:   "From the request, when it has been read, to its answer. Red: --request-timeout. A dot is a trace.",
			queries: quantiles("myticket_http_request_duration_seconds", .5, .95, .99),
			alerts:  []string{"MyticketLatency"},
		},
	)
	withRow(board, "Saturation",
		panel{
			id: 20, title: "Waiting tickets, of those that may", look: curves, unit: share, warn: .5, alarm: .9,
			about: "Full means 503, or the spool. Postgres is slower than the tickets come.",
			queries: []query{{
				`max by (pod) (myticket_intake_waiting_tickets{namespace="$namespace"} / myticket_intake_max_waiting_tickets{namespace="$namespace"})`,
				"{{pod}}",
			}},
		},
		panel{
			id: 21, title: "Connections, of those that may be open", look: curves, unit: share, warn: .7, alarm: .95,
			about: "Beyond it senders get 503 before their ticket is even read (--max-connections).",
			queries: []query{
				{
					`max by (pod) (myticket_http_connections{namespace="$namespace"} / myticket_http_max_connections{namespace="$namespace"})`,
					"{{pod}}",
				},
				{`sum(rate(myticket_http_connections_refused_total{namespace="$namespace"}[$__rate_interval]))`, "refused a second"},
			},
			alerts: []string{"MyticketConnectionsRefused"},
		},
		panel{
			id: 22, title: "Accepted and not answered yet", look: curves, unit: count,
			about:   "Tickets under way, in each server.",
			queries: []query{{`sum by (pod) (myticket_intake_in_flight{namespace="$namespace"})`, "{{pod}}"}},
		},
		panel{
			id: 23, title: "CPU", look: curves, unit: count,
			about:   "Cores in use, by each server. A server is bound by it.",
			queries: []query{{`sum by (pod) (rate(process_cpu_seconds_total{namespace="$namespace",pod=~"$servers"}[$__rate_interval]))`, "{{pod}}"}},
		},
		panel{
			id: 24, title: "Memory", look: curves, unit: bytes,
			about:   "Resident, of each server. What waits is bounded by --waiting-bytes; the limit of the container sets GOMEMLIMIT.",
			queries: []query{{`sum by (pod) (process_resident_memory_bytes{namespace="$namespace",pod=~"$servers"})`, "{{pod}}"}},
		},
		panel{
			id: 25, title: "Goroutines", look: curves, unit: count,
			about:   "One a request, and a few. It grows and never falls: something leaks.",
			queries: []query{{`sum by (pod) (go_goroutines{namespace="$namespace",pod=~"$servers"})`, "{{pod}}"}},
		},
	)
	withRow(board, "Batches",
		panel{
			id: 30, title: "Tickets in a batch", look: curves, unit: count, wide: 6,
			about: "On average. It grows with the load, which is what makes many tickets as cheap as a few.",
			queries: []query{{
				`sum(rate(myticket_intake_batch_tickets_sum{namespace="$namespace"}[$__rate_interval])) / ` +
					`sum(rate(myticket_intake_batch_tickets_count{namespace="$namespace"}[$__rate_interval]))`, "tickets",
			}},
		},
		panel{
			id: 31, title: "Time of a commit", look: curves, unit: seconds, wide: 6, warn: .5, alarm: 2,
			about:   "How long Postgres takes for a batch, standbys included. Red: --database-timeout, when its tickets are spooled.",
			queries: quantiles("myticket_intake_commit_seconds", .5, .99),
			alerts:  []string{"MyticketLatency"},
		},
		panel{
			id: 32, title: "Wait for a commit", look: curves, unit: seconds, wide: 6, warn: .5, alarm: 1,
			about:   "How long the oldest ticket of a batch waited for its turn. Red: --overflow-wait, when it is spooled.",
			queries: quantiles("myticket_intake_wait_seconds", .5, .99),
		},
		panel{
			id: 33, title: "Batches by outcome", look: stacked, unit: perSecond, wide: 6,
			about:   "A failed one is spooled, or its senders are asked to send again. None is lost.",
			queries: []query{{`sum by (outcome) (rate(myticket_intake_batches_total{namespace="$namespace"}[$__rate_interval]))`, "{{outcome}}"}},
		},
	)
	withRow(board, "Spool",
		panel{
			id: 40, title: "Tickets in the spool", look: stacked, unit: count,
			about:   "On each server's disk. A server that is scaled away while it holds some leaves them on its volume.",
			queries: []query{{`sum by (pod) (myticket_spool_tickets{namespace="$namespace"})`, "{{pod}}"}},
			alerts:  []string{"MyticketSpoolDrainStuck"},
		},
		panel{
			id: 41, title: "Full to", look: curves, unit: share, warn: .5, alarm: .8,
			about: "By bytes or by tickets, whichever is fuller. A full spool refuses tickets with 503 while Postgres is away.",
			queries: []query{{
				`max by (pod) (myticket_spool_bytes{namespace="$namespace"} / myticket_spool_max_bytes{namespace="$namespace"} ` +
					`> myticket_spool_tickets{namespace="$namespace"} / myticket_spool_max_tickets{namespace="$namespace"} ` +
					`or myticket_spool_tickets{namespace="$namespace"} / myticket_spool_max_tickets{namespace="$namespace"})`,
				"{{pod}}",
			}},
			alerts: []string{"MyticketSpoolFilling"},
		},
		panel{
			id: 42, title: "Age of its oldest ticket", look: curves, unit: seconds, warn: 600, alarm: 3600,
			about:   "How long the ticket that waits longest has been on disk. Orders and products lack what is in the spool.",
			queries: []query{{`max by (pod) (myticket_spool_oldest_age_seconds{namespace="$namespace"})`, "{{pod}}"}},
			alerts:  []string{"MyticketSpoolAgeing"},
		},
		panel{
			id: 43, title: "Into the spool and out of it", look: curves, unit: perSecond,
			about: "In, by reason. away: Postgres was known to be away. failed: it failed, or did not answer in time. wait, full: it is too slow.",
			queries: []query{
				{`sum by (reason) (rate(myticket_spool_overflow_total{namespace="$namespace"}[$__rate_interval]))`, "in: {{reason}}"},
				{`sum(rate(myticket_spool_drained_total{namespace="$namespace"}[$__rate_interval]))`, "out"},
				{`sum(rate(myticket_spool_drain_failures_total{namespace="$namespace"}[$__rate_interval]))`, "failed attempts"},
			},
			alerts: []string{"MyticketSpoolDrainStuck"},
		},
		panel{
			id: 44, title: "Time to write to the spool", look: curves, unit: seconds, warn: .5, alarm: 2,
			about:   "fsync included, of those that were written in the time range.",
			queries: quantiles("myticket_spool_write_seconds", .5, .99),
		},
		panel{
			id: 45, title: "Disk and files set aside", look: curves, unit: count, alarm: 1,
			about: "failing: the spool takes no tickets, as it is full or its disk fails. files aside: damaged ones, and tickets that " +
				"the database refuses even unread, for a person to look at.",
			queries: []query{
				{`max by (pod) (myticket_spool_failing{namespace="$namespace"})`, "failing: {{pod}}"},
				{`sum by (pod) (myticket_spool_files_aside{namespace="$namespace"})`, "files aside: {{pod}}"},
			},
			alerts: []string{"MyticketSpoolFailing", "MyticketSpoolFilesAside"},
		},
	)
	withRow(board, "Treatment, and servers",
		panel{
			id: 50, title: "TO_TREAT: overdue", look: curves, unit: seconds, warn: 60, alarm: 300,
			about: "How long the ticket that is due longest has been due. Servers look every second.",
			queries: []query{
				{`max(myticket_backlog_overdue_seconds{namespace="$namespace"})`, "overdue"},
				{`max(myticket_backlog_oldest_age_seconds{namespace="$namespace"})`, "age of the oldest"},
			},
			alerts: []string{"MyticketBacklog"},
		},
		panel{
			id: 51, title: "Attempts to treat, by outcome", look: stacked, unit: perSecond,
			about: "again: it failed and is tried again, the log says why. claim_lost: another server treats the ticket.",
			queries: []query{
				{`sum by (outcome) (rate(myticket_treatment_attempts_total{namespace="$namespace"}[$__rate_interval]))`, "{{outcome}}"},
				{`sum(rate(myticket_treatment_claim_failures_total{namespace="$namespace"}[$__rate_interval]))`, "failed looks"},
			},
			alerts: []string{"MyticketBacklog"},
		},
		panel{
			id: 52, title: "Servers", look: sheet, unit: count,
			about: "Their versions, when they started, and how often in the time range.",
			queries: []query{
				{`max by (pod, version) (myticket_build_info{namespace="$namespace"})`, "up"},
				{`max by (pod) (time() - process_start_time_seconds{namespace="$namespace",pod=~"$servers"})`, "up for (s)"},
				{`max by (pod) (changes(process_start_time_seconds{namespace="$namespace",pod=~"$servers"}[$__range]))`, "restarts"},
			},
			alerts: []string{"MyticketServerDown"},
		},
		panel{
			id: 53, title: "Maintenance", look: curves, unit: count,
			about: "Tickets of a full default partition that no query finds until they were moved, and what of maintenance failed. The log says why.",
			queries: []query{
				{`max(myticket_strays{namespace="$namespace"})`, "tickets to be moved"},
				{`sum by (task) (increase(myticket_maintenance_failures_total{namespace="$namespace"}[$__rate_interval]))`, "failed: {{task}}"},
			},
			alerts: []string{"MyticketMaintenanceFailing"},
		},
	)
	return board.WithVariable(choice("servers", "Servers", `label_values(myticket_build_info{namespace="$namespace"}, pod)`).
		Multi(true).IncludeAll(true))
}
