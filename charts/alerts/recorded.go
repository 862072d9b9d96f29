package main

// Series that the rules below are made of. ${servers} selects the series of the release's servers.
const (
	allRequests    = `myticket_http_request_duration_seconds_count{${servers}}`
	failedRequests = `myticket_http_request_duration_seconds_count{${servers},code=~"5.."}`
	answered       = `myticket_http_request_duration_seconds_count{${servers},code=~"2.."}`
	answeredInTime = `myticket_http_request_duration_seconds_bucket{${servers},code=~"2..",le="0.5"}`
	read           = `myticket_http_requests_total{${servers},outcome=~"treated|error"}`
	unreadable     = `myticket_http_requests_total{${servers},outcome="error"}`
)

// recorded are series that Prometheus keeps, because several alerts ask for them, or would ask for days of the raw ones.
func recorded() []rule {
	var rules []rule
	for _, window := range []string{"5m", "30m", "1h", "2h", "6h", "1d", "3d"} {
		rules = append(rules, webhookFailed(window), webhookSlow(window))
	}
	for _, window := range []string{"15m", "1d"} {
		rules = append(rules, sourceUnreadable(window))
	}
	return append(rules, sourceTickets(), spoolFill(), spoolTickets())
}

// webhookFailed is the share of requests that are answered 5xx; 0 if none is, and nothing if there are no requests.
func webhookFailed(window string) rule {
	failed, all := rate("namespace", failedRequests, window), rate("namespace", allRequests, window)
	return rule{
		Record: "myticket:webhook_failed:ratio_rate" + window,
		Expr: lines(
			`(`+failed+` or 0 * `+all+`)`,
			`  / (`+all+` > 0)`,
		),
	}
}

// webhookSlow is the share of tickets that take longer than 0.5 s.
func webhookSlow(window string) rule {
	return rule{
		Record: "myticket:webhook_slow:ratio_rate" + window,
		Expr:   `1 - ` + rate("namespace", answeredInTime, window) + ` / (` + rate("namespace", answered, window) + ` > 0)`,
	}
}

// sourceUnreadable is the share of a source's tickets that cannot be read.
func sourceUnreadable(window string) rule {
	return rule{
		Record: "myticket:source_unreadable:ratio_rate" + window,
		Expr:   rate("namespace, source", unreadable, window) + ` / (` + rate("namespace, source", read, window) + ` > 0)`,
	}
}

// sourceTickets is how many tickets of a source were stored in an hour.
func sourceTickets() rule {
	return rule{
		Record: "myticket:source_tickets:increase1h",
		Expr:   `sum by (namespace, source) (increase(myticket_http_requests_total{${servers},outcome=~"treated|error|to_treat|spooled"}[1h]))`,
	}
}

// spoolFill is how full a spool is, by bytes or by tickets, whichever is more.
func spoolFill() rule {
	return rule{
		Record: "myticket:spool_fill:ratio",
		Expr: lines(
			`max by (namespace, pod) (`,
			`  myticket_spool_bytes{${servers}} / myticket_spool_max_bytes > myticket_spool_tickets / myticket_spool_max_tickets`,
			`  or myticket_spool_tickets{${servers}} / myticket_spool_max_tickets`,
			`)`,
		),
	}
}

// spoolTickets is how many tickets are in a spool. A pod that comes back has another address, and with it other series; this one is the same.
func spoolTickets() rule {
	return rule{Record: "myticket:spool_tickets:max", Expr: `max by (namespace, pod) (myticket_spool_tickets{${servers}})`}
}

// rate is the rate of series over a window, summed up by labels.
func rate(labels, series, window string) string {
	return `sum by (` + labels + `) (rate(` + series + `[` + window + `]))`
}
