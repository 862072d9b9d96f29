package main

import (
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// ours selects the requests of the chosen sources.
const ours = `namespace="$namespace",source=~"$source"`

// tickets is for the owners of the shops.
func tickets() *dashboard.DashboardBuilder {
	const stored = `myticket_http_requests_total{` + ours + `,outcome=~"treated|error|to_treat|spooled"}`
	const unreadable = `myticket_http_requests_total{` + ours + `,outcome="error"}`
	board := newDashboard("myticket-tickets", "MyTicket / Tickets",
		"How many tickets came in, from which sources, and how many could be read.").
		WithVariable(choice("source", "Source", `label_values(myticket_http_requests_total{namespace="$namespace"}, source)`).
			Multi(true).IncludeAll(true).AllValue(".*"))

	withRow(board, "In the time range",
		panel{
			id: 1, title: "Tickets", look: value, unit: count,
			about:   "Stored tickets. A delivery that repeats an idempotency key is not counted again.",
			queries: []query{{`sum(increase(` + stored + `[$__range]))`, "tickets"}},
		},
		panel{
			id: 2, title: "Read at once", look: value, unit: share, warn: .99, alarm: .95,
			about: "Share of the tickets that were read when they arrived. Tickets from the spool are read later and do not count as read here.",
			queries: []query{{
				`sum(increase(myticket_http_requests_total{` + ours + `,outcome="treated"}[$__range])) / sum(increase(` + stored + `[$__range]))`,
				"read",
			}},
			alerts: []string{"MyticketErrorJump"},
		},
		panel{
			id: 3, title: "Orders", look: value, unit: count,
			about: "Tickets of all sources that became an order: read at once, from the spool, or in a later attempt.",
			queries: []query{{
				`sum(increase(myticket_intake_orders_total{namespace="$namespace"}[$__range])) + ` +
					`sum(increase(myticket_treatment_attempts_total{namespace="$namespace",outcome="treated"}[$__range]))`, "orders",
			}},
		},
		panel{
			id: 4, title: "Product lines", look: value, unit: count,
			about:   "Lines of the orders that were read when they were stored, for all sources.",
			queries: []query{{`sum(increase(myticket_intake_order_lines_total{namespace="$namespace"}[$__range]))`, "lines"}},
		},
		panel{
			id: 5, title: "Products", look: value, unit: count,
			about:   "Products in the product base, as Postgres estimates.",
			queries: []query{{`max(myticket_products{namespace="$namespace"})`, "products"}},
		},
		panel{
			id: 6, title: "ERROR: for a person to correct", look: value, unit: count, warn: 1, alarm: 1000,
			about: "Tickets of all sources that could not be read, and were not yet retried or dismissed: " +
				"`myticket tickets list --status ERROR`. At most 100,000 are counted.",
			queries: []query{{`max(myticket_backlog_tickets{namespace="$namespace",status="ERROR"})`, "tickets"}},
			alerts:  []string{"MyticketErrorJump"},
		},
	)
	withRow(board, "Tickets",
		panel{
			id: 10, title: "Tickets by source", look: stacked, unit: perSecond,
			about: "Stored tickets per second. If a source falls silent, maybe its till cannot send. " +
				"`other` stands for all sources that the sources file does not name.",
			queries: []query{{`sum by (source) (rate(` + stored + `[$__rate_interval]))`, "{{source}}"}},
			alerts:  []string{"MyticketSourceSilent"},
		},
		panel{
			id: 11, title: "Tickets by outcome", look: stacked, unit: perSecond,
			about: "treated: read. error: stored, but cannot be read. spooled and to_treat: stored, and read later. " +
				"duplicate: sent before with the same idempotency key; the answer names that ticket.",
			queries: []query{{
				`sum by (outcome) (rate(myticket_http_requests_total{` + ours + `,outcome=~"treated|error|to_treat|spooled|duplicate"}[$__rate_interval]))`,
				"{{outcome}}",
			}},
		},
		panel{
			id: 12, title: "Orders and product lines", look: curves, unit: perSecond,
			about: "Read per second, for all sources.",
			queries: []query{
				{`sum(rate(myticket_intake_orders_total{namespace="$namespace"}[$__rate_interval]))`, "orders"},
				{`sum(rate(myticket_intake_order_lines_total{namespace="$namespace"}[$__rate_interval]))`, "product lines"},
			},
		},
	)
	withRow(board, "Unreadable tickets and refused requests",
		panel{
			id: 20, title: "Share of unreadable tickets, by source", look: curves, unit: share, warn: .01, alarm: .05,
			about: "A jump usually means that a till was updated and has a new format.",
			queries: []query{{
				`sum by (source) (rate(` + unreadable + `[$__rate_interval])) / (sum by (source) (rate(` + stored + `[$__rate_interval])) > 0)`,
				"{{source}}",
			}},
			alerts: []string{"MyticketErrorJump"},
		},
		panel{
			id: 21, title: "Unreadable tickets by reason", look: stacked, unit: perSecond,
			about: "Tickets of all sources with this problem code, per second. docs/server.md explains the codes. " +
				"`myticket tickets list --problem CODE` lists the tickets.",
			queries: []query{{`sum by (code) (rate(myticket_intake_problems_total{namespace="$namespace"}[$__rate_interval]))`, "{{code}}"}},
			alerts:  []string{"MyticketErrorJump"},
		},
		panel{
			id: 22, title: "Requests that are refused, by source and reason", look: curves, unit: perSecond,
			about: "The answer told the sender so, and the ticket was not stored. docs/webhook.md explains the codes. " +
				"The sender causes unauthorized and rate_limited. The server causes overloaded, spool_full and database_unavailable. " +
				"An operator causes source_on_hold.",
			queries: []query{{
				`sum by (source, outcome) (rate(myticket_http_requests_total{` + ours +
					`,outcome!~"treated|error|to_treat|spooled|duplicate"}[$__rate_interval])) > 0`,
				"{{source}}: {{outcome}}",
			}},
		},
		panel{
			id: 23, title: "Sources", look: sheet, unit: count, wide: 12,
			about: "In the time range. `none in the last hour` is 1 if no ticket of the source was stored for an hour.",
			queries: []query{
				{`sum by (source) (increase(` + stored + `[$__range]))`, "tickets"},
				{`sum by (source) (increase(` + unreadable + `[$__range]))`, "cannot be read"},
				{`sum by (source) (increase(` + stored + `[1h])) == bool 0`, "none in the last hour"},
			},
			alerts: []string{"MyticketSourceSilent"},
		},
		panel{
			id: 24, title: "Waiting in the database", look: curves, unit: count, wide: 12,
			about: "ERROR tickets wait for a person. TO_TREAT tickets wait for a server, usually for a moment. Of all sources; at most 100,000 of each are counted.",
			queries: []query{{
				`max by (status) (myticket_backlog_tickets{namespace="$namespace"})`, "{{status}}",
			}},
			alerts: []string{"MyticketBacklog"},
		},
		panel{
			id: 25, title: "Tickets that name too many new products", look: curves, unit: perSecond,
			about: "Per second, by source. They became ERROR (new_products_limited), because their source adds products faster than allowed: " +
				"it sends nonsense, or it has a new range of products.",
			queries: []query{{
				`sum by (source) (rate(myticket_new_products_limited_total{` + ours + `}[$__rate_interval]))`, "{{source}}",
			}},
			alerts: []string{"MyticketNewProductsLimited"},
		},
		panel{
			id: 26, title: "New kinds of problems", look: curves, unit: count, warn: 1,
			about: "By source: how often tickets went wrong in a way that no ERROR ticket in the database did. Usually a till was updated. " +
				"`myticket problems --sort first` lists the newest first.",
			queries: []query{{
				`sum by (source) (increase(myticket_problem_groups_new_total{` + ours + `}[$__rate_interval]))`, "{{source}}",
			}},
			alerts: []string{"MyticketErrorJump"},
		},
		panel{
			id: 27, title: "Dialects that a server does not understand", look: curves, unit: count, warn: 1,
			about: "A newer version of MyTicket has applied them. Until the server is upgraded, it reads the tickets of these sources as the " +
				"version of the dialect before says.",
			queries: []query{{`max by (pod) (myticket_dialects_not_understood{namespace="$namespace"})`, "{{pod}}"}},
			alerts:  []string{"MyticketDialectsNotUnderstood"},
		},
		panel{
			id: 28, title: "Sources on hold", look: curves, unit: count,
			about: "1 while the source is on hold, because an operator moves it, or because it belongs to another cell: its tickets are answered " +
				"503 and are not stored. `other` stands for all sources that the sources file does not name.",
			queries: []query{{`max by (source) (myticket_source_on_hold{` + ours + `}) > 0`, "{{source}}"}},
		},
	)
	return board
}
