package main

// bySubscription is the value of a gauge for each subscription. All processes show all subscriptions.
func bySubscription(gauge string) string {
	return `max by (namespace, subscription) (` + gauge + `{${events}})`
}

func eventsDown() alert {
	return alert{
		name:     "MyticketEventsDown",
		severity: warning,
		when:     sendsEvents,
		expr:     `absent(myticket_events_snapshot_held_seconds{${events}})`,
		lasts:    "5m",
		panel:    "myticket-events/2",
		summary:  "Prometheus reaches no process that sends events",
		description: "If none runs, no event is sent. Tickets are stored as usual, and the database keeps what is to be sent. " +
			"No event is lost.",
	}
}

func eventsBehind() alert {
	return alert{
		name:     "MyticketEventsBehind",
		severity: warning,
		when:     sendsEvents,
		expr: lines(
			bySubscription(`myticket_events_lag_seconds`)+` > 600`,
			`  unless `+bySubscription(`myticket_events_paused`)+` > 0`,
			`  unless `+bySubscription(`myticket_events_failing_seconds`)+` > 0`,
		),
		lasts:   "5m",
		panel:   "myticket-events/10",
		summary: "{{ $labels.subscription }} is {{ $value | humanizeDuration }} behind",
		description: "Its target takes events, but more slowly than tickets arrive, or nothing is sent to it. No event is lost: " +
			"the database keeps them.",
	}
}

func subscriptionFailing() alert {
	return alert{
		name:     "MyticketSubscriptionFailing",
		severity: warning,
		when:     sendsEvents,
		expr:     bySubscription(`myticket_events_failing_seconds`) + ` > 900`,
		lasts:    "1m",
		panel:    "myticket-events/12",
		summary:  "The target of {{ $labels.subscription }} has taken no event for {{ $value | humanizeDuration }}",
		description: "It cannot be reached, or refuses all. MyTicket tries again by itself, and sends everything once it works. " +
			"Until then the database keeps the events.",
	}
}

func subscriptionPaused() alert {
	return alert{
		name:     "MyticketSubscriptionPaused",
		severity: warning,
		when:     sendsEvents,
		expr:     bySubscription(`myticket_events_paused`) + ` > 0`,
		lasts:    "30m",
		panel:    "myticket-events/12",
		summary:  "{{ $labels.subscription }} is paused",
		description: "A person paused it, or it paused by itself because of its target or its dead letters. Nothing is sent, and " +
			"the database keeps all events until it is resumed or deleted.",
	}
}

func deadLetters() alert {
	return alert{
		name:     "MyticketDeadLetters",
		severity: warning,
		when:     sendsEvents,
		expr:     bySubscription(`myticket_events_dead_letters`) + ` > 0`,
		lasts:    "5m",
		panel:    "myticket-events/13",
		summary:  "{{ $labels.subscription }} has {{ $value }} dead letters",
		description: "Its target refused these events, and has not got them. The tickets are stored. " +
			"With more than 10,000 dead letters the subscription pauses.",
	}
}

func eventsHeldBack() alert {
	return alert{
		name:     "MyticketEventsHeldBack",
		severity: warning,
		when:     sendsEvents,
		expr:     `max by (namespace) (myticket_events_snapshot_held_seconds{${events}}) > 600`,
		lasts:    "1m",
		panel:    "myticket-events/14",
		summary:  "A transaction has held back all events for {{ $value | humanizeDuration }}",
		description: "Events wait for the end of every transaction that began before their tickets were stored. " +
			"No event is lost, and intake does not wait.",
	}
}

func outboxHeld() alert {
	return alert{
		name:     "MyticketOutboxHeld",
		severity: warning,
		when:     sendsEvents,
		expr:     bySubscription(`myticket_events_lag_seconds`) + ` > 86400`,
		lasts:    "10m",
		panel:    "myticket-events/10",
		summary:  "The database keeps the events of {{ $value | humanizeDuration }} for {{ $labels.subscription }}",
		description: "The table outbox grows, and retention and archive keep old partitions, until the subscription goes on or " +
			"is deleted.",
	}
}
