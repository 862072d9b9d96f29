package main

import (
	"fmt"

	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// ofServers leaves out the processes that send events.
const ofServers = `namespace="$namespace",pod!~".*-events-.*"`

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

// service is for the operator on call.
func service() *dashboard.DashboardBuilder {
	const requests = `myticket_http_request_duration_seconds_count{namespace="$namespace"`
	const failed = requests + `,code=~"5.."}`
	const all = requests + `}`
	const inTime = `myticket_http_request_duration_seconds_bucket{namespace="$namespace",code=~"2..",le="0.5"}`
	board := newDashboard("myticket-service", "MyTicket / Service",
		"Does the webhook work, and if not, what is wrong? Tickets that were answered 200 or 202 are safe, whatever this dashboard shows.")

	withRow(board, "Now",
		panel{
			id: 1, title: "Availability", look: value, unit: share, warn: .9999, alarm: .999,
			about:   "Share of the requests in the time range that were not answered 5xx. Objective: 99.9 % over 30 days.",
			queries: []query{{`1 - (sum(increase(` + failed + `[$__range])) or vector(0)) / sum(increase(` + all + `[$__range]))`, "available"}},
			alerts:  []string{"MyticketAvailability"},
		},
		panel{
			id: 2, title: "Answered within 0.5 s", look: value, unit: share, warn: .995, alarm: .99,
			about: "Share of the requests in the time range with a 2xx answer that were answered within 0.5 s. Objective: 99 % over 30 days.",
			queries: []query{{
				`sum(increase(` + inTime + `[$__range])) / sum(increase(` + requests + `,code=~"2.."}[$__range]))`, "in time",
			}},
			alerts: []string{"MyticketLatency"},
		},
		panel{
			id: 3, title: "Servers", look: value, unit: count, warn: 2, alarm: 1,
			about:   "Number of servers that Prometheus reaches.",
			queries: []query{{`count(myticket_build_info{` + ofServers + `})`, "servers"}},
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
			about:   "Tickets on the servers' disks that are not in Postgres yet. They are safe there, and are read when the spool is drained.",
			queries: []query{{`sum(myticket_spool_tickets{namespace="$namespace"})`, "tickets"}},
			alerts:  []string{"MyticketSpoolFilling", "MyticketSpoolDrainStuck"},
		},
		panel{
			id: 6, title: "Schema", look: value, unit: none, alarm: 1,
			about: "Whether the database has the schema that the servers need.",
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
			about: "Answered 2xx: treated, error (cannot be read), spooled, to_treat and duplicate. Every other outcome is a refused request.",
			queries: []query{{
				`sum by (outcome) (rate(myticket_http_requests_total{namespace="$namespace"}[$__rate_interval]))`, "{{outcome}}",
			}},
		},
		panel{
			id: 11, title: "Share answered 5xx", look: curves, unit: share, warn: .001, alarm: .0144,
			about: "Their senders were asked to send the ticket again. Orange: the objective. Red: at this rate the 30-day error budget lasts two days.",
			queries: []query{{
				`(sum(rate(` + failed + `[$__rate_interval])) or vector(0)) / sum(rate(` + all + `[$__rate_interval]))`, "5xx",
			}},
			alerts: []string{"MyticketAvailability"},
		},
		panel{
			id: 12, title: "Time to the answer", look: curves, unit: seconds, warn: .5, alarm: 4,
			about:   "From the moment the request has been read until it is answered. Red: --request-timeout. A dot links to a trace.",
			queries: quantiles("myticket_http_request_duration_seconds", .5, .95, .99),
			alerts:  []string{"MyticketLatency"},
		},
	)
	withRow(board, "Saturation",
		panel{
			id: 20, title: "Waiting tickets, share of the maximum", look: curves, unit: share, warn: .5, alarm: .9,
			about: "At 100 % new tickets go to the spool, or are answered 503. It rises when tickets arrive faster than Postgres takes them.",
			queries: []query{{
				`max by (pod) (myticket_intake_waiting_tickets{namespace="$namespace"} / myticket_intake_max_waiting_tickets{namespace="$namespace"})`,
				"{{pod}}",
			}},
		},
		panel{
			id: 21, title: "Open connections, share of the maximum", look: curves, unit: share, warn: .7, alarm: .95,
			about: "At 100 % (--max-connections) further senders are answered 503 before their ticket is read.",
			queries: []query{
				{
					`max by (pod) (myticket_http_connections{namespace="$namespace"} / myticket_http_max_connections{namespace="$namespace"})`,
					"{{pod}}",
				},
				{`sum(rate(myticket_http_connections_refused_total{namespace="$namespace"}[$__rate_interval]))`, "refused per second"},
			},
			alerts: []string{"MyticketConnectionsRefused"},
		},
		panel{
			id: 22, title: "Tickets in progress", look: curves, unit: count,
			about:   "Tickets that each server has accepted and not answered yet.",
			queries: []query{{`sum by (pod) (myticket_intake_in_flight{namespace="$namespace"})`, "{{pod}}"}},
		},
		panel{
			id: 23, title: "CPU", look: curves, unit: count,
			about:   "Cores that each server uses. CPU limits how many tickets a server can take.",
			queries: []query{{`sum by (pod) (rate(process_cpu_seconds_total{namespace="$namespace",pod=~"$servers"}[$__rate_interval]))`, "{{pod}}"}},
		},
		panel{
			id: 24, title: "Memory", look: curves, unit: bytes,
			about:   "Resident memory of each server. --waiting-bytes bounds the waiting tickets. The container's memory limit sets GOMEMLIMIT.",
			queries: []query{{`sum by (pod) (process_resident_memory_bytes{namespace="$namespace",pod=~"$servers"})`, "{{pod}}"}},
		},
		panel{
			id: 25, title: "Goroutines", look: curves, unit: count,
			about:   "One per request, and a few more. If the number only grows, something leaks.",
			queries: []query{{`sum by (pod) (go_goroutines{namespace="$namespace",pod=~"$servers"})`, "{{pod}}"}},
		},
	)
	withRow(board, "Batches",
		panel{
			id: 30, title: "Tickets in a batch", look: curves, unit: count, wide: 6,
			about: "On average. Batches grow with the load, so a commit costs almost the same for many tickets as for a few.",
			queries: []query{{
				`sum(rate(myticket_intake_batch_tickets_sum{namespace="$namespace"}[$__rate_interval])) / ` +
					`sum(rate(myticket_intake_batch_tickets_count{namespace="$namespace"}[$__rate_interval]))`, "tickets",
			}},
		},
		panel{
			id: 31, title: "Time of a commit", look: curves, unit: seconds, wide: 6, warn: .5, alarm: 2,
			about:   "How long Postgres takes to commit a batch, standbys included. Red: --database-timeout. After it the batch's tickets are spooled.",
			queries: quantiles("myticket_intake_commit_seconds", .5, .99),
			alerts:  []string{"MyticketLatency"},
		},
		panel{
			id: 32, title: "Wait for a commit", look: curves, unit: seconds, wide: 6, warn: .5, alarm: 1,
			about:   "How long the oldest ticket of a batch waited until its commit began. Red: --overflow-wait. After it the ticket is spooled.",
			queries: quantiles("myticket_intake_wait_seconds", .5, .99),
		},
		panel{
			id: 33, title: "Batches by outcome", look: stacked, unit: perSecond, wide: 6,
			about:   "The tickets of a failed batch are spooled, or their senders are asked to send them again. No acknowledged ticket is lost.",
			queries: []query{{`sum by (outcome) (rate(myticket_intake_batches_total{namespace="$namespace"}[$__rate_interval]))`, "{{outcome}}"}},
		},
	)
	withRow(board, "Spool",
		panel{
			id: 40, title: "Tickets in the spool", look: stacked, unit: count,
			about:   "On each server's disk. If a server is scaled away before its spool is drained, the tickets stay on its volume.",
			queries: []query{{`sum by (pod) (myticket_spool_tickets{namespace="$namespace"})`, "{{pod}}"}},
			alerts:  []string{"MyticketSpoolDrainStuck", "MyticketSpoolLeftBehind"},
		},
		panel{
			id: 41, title: "Fill level of the spool", look: curves, unit: share, warn: .5, alarm: .8,
			about: "By bytes or by tickets, whichever is higher. While the spool is full and Postgres is away, tickets are refused with 503.",
			queries: []query{{
				`max by (pod) (myticket_spool_bytes{namespace="$namespace"} / myticket_spool_max_bytes{namespace="$namespace"} ` +
					`> myticket_spool_tickets{namespace="$namespace"} / myticket_spool_max_tickets{namespace="$namespace"} ` +
					`or myticket_spool_tickets{namespace="$namespace"} / myticket_spool_max_tickets{namespace="$namespace"})`,
				"{{pod}}",
			}},
			alerts: []string{"MyticketSpoolFilling"},
		},
		panel{
			id: 42, title: "Age of the oldest ticket in the spool", look: curves, unit: seconds, warn: 600, alarm: 3600,
			about:   "How long the oldest ticket has been on disk. Orders and products lack the tickets in the spool.",
			queries: []query{{`max by (pod) (myticket_spool_oldest_age_seconds{namespace="$namespace"})`, "{{pod}}"}},
			alerts:  []string{"MyticketSpoolAgeing"},
		},
		panel{
			id: 43, title: "Into the spool and out of it", look: curves, unit: perSecond,
			about: "In, by reason. away: Postgres was known to be away. failed: the commit failed, or took too long. wait, full: Postgres is too slow.",
			queries: []query{
				{`sum by (reason) (rate(myticket_spool_overflow_total{namespace="$namespace"}[$__rate_interval]))`, "in: {{reason}}"},
				{`sum(rate(myticket_spool_drained_total{namespace="$namespace"}[$__rate_interval]))`, "out"},
				{`sum(rate(myticket_spool_drain_failures_total{namespace="$namespace"}[$__rate_interval]))`, "failed attempts"},
			},
			alerts: []string{"MyticketSpoolDrainStuck"},
		},
		panel{
			id: 44, title: "Time to write to the spool", look: curves, unit: seconds, warn: .5, alarm: 2,
			about:   "For tickets written in the time range, fsync included.",
			queries: quantiles("myticket_spool_write_seconds", .5, .99),
		},
		panel{
			id: 45, title: "Disk and files set aside", look: curves, unit: count, alarm: 1,
			about: "failing: the spool takes no tickets, because it is full or its disk fails. files aside: damaged files, and tickets that " +
				"the database refuses even unread. A person must look at them.",
			queries: []query{
				{`max by (pod) (myticket_spool_failing{namespace="$namespace"})`, "failing: {{pod}}"},
				{`sum by (pod) (myticket_spool_files_aside{namespace="$namespace"})`, "files aside: {{pod}}"},
			},
			alerts: []string{"MyticketSpoolFailing", "MyticketSpoolFilesAside"},
		},
	)
	withRow(board, "Treatment and servers",
		panel{
			id: 50, title: "TO_TREAT: overdue time", look: curves, unit: seconds, warn: 60, alarm: 300,
			about: "How long the most overdue ticket has been due. Servers look for due tickets every second.",
			queries: []query{
				{`max(myticket_backlog_overdue_seconds{namespace="$namespace"})`, "overdue"},
				{`max(myticket_backlog_oldest_age_seconds{namespace="$namespace"})`, "age of the oldest"},
			},
			alerts: []string{"MyticketBacklog"},
		},
		panel{
			id: 51, title: "Treatment attempts by outcome", look: stacked, unit: perSecond,
			about: "again: the attempt failed and is repeated; the log says why. claim_lost: another server treats the ticket.",
			queries: []query{
				{`sum by (outcome) (rate(myticket_treatment_attempts_total{namespace="$namespace"}[$__rate_interval]))`, "{{outcome}}"},
				{`sum(rate(myticket_treatment_claim_failures_total{namespace="$namespace"}[$__rate_interval]))`, "failed claims"},
			},
			alerts: []string{"MyticketBacklog"},
		},
		panel{
			id: 52, title: "Servers", look: sheet, unit: count,
			about: "The version of each server, how long it has been up, and its restarts in the time range.",
			queries: []query{
				{`max by (pod, version) (myticket_build_info{` + ofServers + `})`, "up"},
				{`max by (pod) (time() - process_start_time_seconds{namespace="$namespace",pod=~"$servers"})`, "up for (s)"},
				{`max by (pod) (changes(process_start_time_seconds{namespace="$namespace",pod=~"$servers"}[$__range]))`, "restarts"},
			},
			alerts: []string{"MyticketServerDown"},
		},
		panel{
			id: 53, title: "Maintenance", look: curves, unit: count,
			about: "Tickets of a full default partition that no query finds until they are moved, and failures of maintenance tasks. The log says why.",
			queries: []query{
				{`max(myticket_strays{namespace="$namespace"})`, "tickets to be moved"},
				{`sum by (task) (increase(myticket_maintenance_failures_total{namespace="$namespace"}[$__rate_interval]))`, "failed: {{task}}"},
			},
			alerts: []string{"MyticketMaintenanceFailing"},
		},
		panel{
			id: 54, title: "order_lines: lag", look: curves, unit: seconds, warn: 60, alarm: 600,
			about: "How long ago the oldest tickets were stored that are not in order_lines yet. It grows in a burst, because tickets come first.",
			queries: []query{
				{`max(myticket_order_lines_lag_seconds{namespace="$namespace"})`, "lag"},
			},
			alerts: []string{"MyticketOrderLinesBehind"},
		},
		panel{
			id: 55, title: "order_lines: tickets", look: curves, unit: count,
			about: "waiting: stored and not in order_lines yet. failed: order_lines lacks them for good; the log says why.",
			queries: []query{
				{`max(myticket_order_lines_waiting_tickets{namespace="$namespace"})`, "waiting"},
				{`sum(increase(myticket_order_lines_failed_tickets_total{namespace="$namespace"}[$__rate_interval]))`, "failed"},
			},
			alerts: []string{"MyticketOrderLinesBehind"},
		},
	)
	return board.WithVariable(choice("servers", "Servers", `label_values(myticket_build_info{`+ofServers+`}, pod)`).
		Multi(true).IncludeAll(true))
}
