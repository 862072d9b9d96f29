package main

func archiveBehind() alert {
	return alert{
		name:     "MyticketArchiveBehind",
		severity: warning,
		when:     archives,
		expr:     `max by (namespace) (myticket_archive_lag_seconds{${servers}}) > 172800`,
		lasts:    "1h",
		panel:    "myticket-events/30",
		summary:  "Tickets should have been archived {{ $value | humanizeDuration }} ago",
		description: "They are still in Postgres alone, where nothing drops them before they are archived. No ticket is lost, " +
			"but the database grows.",
	}
}

func archiveFailing() alert {
	return alert{
		name:     "MyticketArchiveFailing",
		severity: warning,
		when:     archives,
		expr:     `max by (namespace) (myticket_archive_failing{${servers}}) > 0`,
		lasts:    "5m",
		panel:    "myticket-events/32",
		summary:  "The last run of the archive failed",
		description: "No ticket is lost: each is in Postgres, in the archive, or in both. The next run goes on where this one ended. " +
			"Until one succeeds, the database grows.",
	}
}
