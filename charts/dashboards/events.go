package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// events is for those who send events and archive tickets. Where that is off, its panels are empty.
func events() *dashboard.DashboardBuilder {
	bySubscription := func(gauge string) []query {
		return []query{{`max by (subscription) (` + gauge + `{namespace="$namespace"})`, "{{subscription}}"}}
	}
	board := newDashboard("myticket-events", "MyTicket / Events and archive",
		"How far events have come, and what of the old tickets is archived. Neither delays a ticket, and none is lost by either.")

	withRow(board, "Events now",
		panel{
			id: 1, title: "Subscriptions", look: value, unit: count,
			about:   "Number of subscriptions, with those that are paused.",
			queries: []query{{`count(count by (subscription) (myticket_events_lag_seconds{namespace="$namespace"}))`, "subscriptions"}},
		},
		panel{
			id: 2, title: "Processes that send", look: value, unit: count, warn: 2, alarm: 1,
			about:   "Number of processes that Prometheus reaches. They share the subscriptions.",
			queries: []query{{`count(myticket_events_snapshot_held_seconds{namespace="$namespace"})`, "processes"}},
			alerts:  []string{"MyticketEventsDown"},
		},
		panel{
			id: 3, title: "Furthest behind", look: value, unit: seconds, warn: 60, alarm: 600,
			about:   "Age of the oldest batch of tickets that a subscription has not delivered. A paused subscription counts, too.",
			queries: []query{{`max(myticket_events_lag_seconds{namespace="$namespace"})`, "behind"}},
			alerts:  []string{"MyticketEventsBehind"},
		},
		panel{
			id: 4, title: "Dead letters", look: value, unit: count, warn: 1, alarm: 1000,
			about:   "Events that targets refused: `myticket subscriptions dead-letters NAME`. Send them again, or delete them.",
			queries: []query{{`sum(max by (subscription) (myticket_events_dead_letters{namespace="$namespace"}))`, "dead letters"}},
			alerts:  []string{"MyticketDeadLetters"},
		},
		panel{
			id: 5, title: "Events sent", look: value, unit: count,
			about:   "In the time range, to all targets, with those that were sent again.",
			queries: []query{{`sum(increase(myticket_events_sent_total{namespace="$namespace"}[$__range]))`, "events"}},
		},
		panel{
			id: 6, title: "Replays", look: value, unit: seconds,
			about:   "Time of receipt that the longest replay still has to go through; 0 if there is none.",
			queries: []query{{`max(myticket_events_replay_left_seconds{namespace="$namespace"})`, "left"}},
		},
	)
	withRow(board, "Events",
		panel{
			id: 10, title: "Behind, by subscription", look: curves, unit: seconds, warn: 60, alarm: 600,
			about: "Age of the oldest batch of tickets whose events were not delivered. It grows while a subscription is paused, " +
				"while its target is away, and while the target takes fewer events than there are. After a day the outbox is large.",
			queries: bySubscription(`myticket_events_lag_seconds`),
			alerts:  []string{"MyticketEventsBehind", "MyticketOutboxHeld"},
		},
		panel{
			id: 11, title: "Sent, by subscription", look: stacked, unit: perSecond,
			about:   "Events per second that targets took.",
			queries: []query{{`sum by (subscription) (rate(myticket_events_sent_total{namespace="$namespace"}[$__rate_interval]))`, "{{subscription}}"}},
		},
		panel{
			id: 12, title: "Failing and paused", look: curves, unit: seconds, warn: 60, alarm: 900,
			about: "How long the target of each subscription has taken no event, and 1 if the subscription is paused. " +
				"`myticket subscriptions show NAME` says why.",
			queries: []query{
				{`max by (subscription) (myticket_events_failing_seconds{namespace="$namespace"})`, "failing: {{subscription}}"},
				{`max by (subscription) (myticket_events_paused{namespace="$namespace"})`, "paused: {{subscription}}"},
			},
			alerts: []string{"MyticketSubscriptionFailing", "MyticketSubscriptionPaused"},
		},
		panel{
			id: 13, title: "Refused and not sent", look: curves, unit: count, warn: 1,
			about: "dead letters: the target refused these events. failed: attempts, which are repeated. " +
				"no ticket: the ticket was dropped or set aside before its event was sent.",
			queries: []query{
				{`max by (subscription) (myticket_events_dead_letters{namespace="$namespace"})`, "dead letters: {{subscription}}"},
				{`sum by (subscription) (increase(myticket_events_failures_total{namespace="$namespace"}[$__rate_interval]))`, "failed: {{subscription}}"},
				{`sum by (subscription) (increase(myticket_events_rejected_total{namespace="$namespace"}[$__rate_interval]))`, "refused: {{subscription}}"},
				{`sum by (subscription) (increase(myticket_events_missing_tickets_total{namespace="$namespace"}[$__rate_interval]))`, "no ticket: {{subscription}}"},
			},
			alerts: []string{"MyticketDeadLetters"},
		},
		panel{
			id: 14, title: "Held back by a transaction", look: curves, unit: seconds, warn: 60, alarm: 600,
			about: "How long the oldest transaction of the database server has been open. Events about what was stored after it began " +
				"wait for its end, because it may store tickets, too.",
			queries: []query{{`max(myticket_events_snapshot_held_seconds{namespace="$namespace"})`, "held back"}},
			alerts:  []string{"MyticketEventsHeldBack"},
		},
		panel{
			id: 15, title: "Tickets that wait, by subscription", look: curves, unit: count,
			about:   "Before the filter. Those of at most 10,000 batches are counted.",
			queries: bySubscription(`myticket_events_waiting_tickets`),
		},
		panel{
			id: 16, title: "CPU", look: curves, unit: count, wide: 12,
			about:   "Cores that each process uses.",
			queries: []query{{`sum by (pod) (rate(process_cpu_seconds_total{namespace="$namespace",pod=~".*-events-.*"}[$__rate_interval]))`, "{{pod}}"}},
		},
		panel{
			id: 17, title: "Memory", look: curves, unit: bytes, wide: 12,
			about:   "Resident memory of each process. It is bounded by two chunks of tickets for each subscription.",
			queries: []query{{`sum by (pod) (process_resident_memory_bytes{namespace="$namespace",pod=~".*-events-.*"})`, "{{pod}}"}},
		},
	)
	withRow(board, "Archive",
		panel{
			id: 30, title: "Behind", look: curves, unit: seconds, warn: 86_400, alarm: 172_800,
			about: "How long the oldest tickets have been due for the archive, and are not there; 0 if all are. A run a day leaves up to a day.",
			queries: []query{
				{`max(myticket_archive_lag_seconds{namespace="$namespace"})`, "behind"},
			},
			alerts: []string{"MyticketArchiveBehind", "MyticketArchiveNotRun"},
		},
		panel{
			id: 31, title: "Parts of the archive", look: stacked, unit: count,
			about: "detached: taken out of tickets, and not in the archive yet. verified: in both. archived: in the archive alone. " +
				"restored: back in Postgres, too. `myticket archive list` names them.",
			queries: []query{{`max by (state) (myticket_archive_parts{namespace="$namespace"})`, "{{state}}"}},
		},
		panel{
			id: 32, title: "Failed runs", look: curves, unit: count, alarm: 1, wide: 4,
			about: "Within a day. The log of the Job says why. The next run goes on where a failed one ended.",
			queries: []query{
				{`max(increase(myticket_archive_failures_total{namespace="$namespace"}[1d]))`, "failed"},
			},
			alerts: []string{"MyticketArchiveFailing"},
		},
		panel{
			id: 33, title: "Since the last good run", look: curves, unit: seconds, warn: 90_000, alarm: 172_800, wide: 4,
			about: "Time since a run succeeded. It runs once a day, unless `archive.schedule` says otherwise.",
			queries: []query{
				{`time() - max(myticket_archive_last_success_timestamp_seconds{namespace="$namespace"})`, "since"},
			},
			alerts: []string{"MyticketArchiveFailing"},
		},
	)
	return board
}
