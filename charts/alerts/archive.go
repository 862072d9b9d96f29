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

// archiveNotRun is about what archiveBehind cannot see: a server says nothing of the archive before its first run ever. The
// rule begins to count when it is loaded, so with the chart that turns the archive on.
func archiveNotRun() alert {
	return alert{
		name:     "MyticketArchiveNotRun",
		severity: warning,
		when:     archives,
		expr: lines(
			`count by (namespace) (myticket_build_info{${servers}})`,
			`  unless on (namespace) myticket_archive_lag_seconds{${servers}}`,
		),
		lasts:   "49h",
		panel:   "myticket-events/30",
		summary: "The archive is on, and was never run",
		description: "Tickets stay in Postgres alone, where nothing drops them before they are archived. No ticket is lost, " +
			"but the database grows.",
	}
}

func archiveFailing() alert {
	return alert{
		name:     "MyticketArchiveFailing",
		severity: warning,
		when:     archives,
		// All servers show the same figures, which are those of the database. The first failure is seen only as a counter that begins with 1.
		expr: lines(
			`max by (namespace) (increase(myticket_archive_failures_total{${servers}}[25h])) > 0`,
			`    unless max by (namespace) (myticket_archive_last_success_timestamp_seconds{${servers}}) > time() - 43200`,
			`  or max by (namespace) (myticket_archive_failures_total{${servers}}) > 0`,
			`    unless max by (namespace) (myticket_archive_last_success_timestamp_seconds{${servers}})`,
		),
		lasts:   "5m",
		panel:   "myticket-events/32",
		summary: "The archive's runs fail",
		description: "No ticket is lost: each is in Postgres, in the archive, or in both. The next run goes on where this one ended. " +
			"Until one succeeds, the database grows.",
	}
}
