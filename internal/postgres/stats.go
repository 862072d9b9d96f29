package postgres

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"myticket/internal/ticket"
)

// StatsKey is what tickets are counted by.
type StatsKey string

// The keys.
const (
	StatsTime    StatsKey = "time" // of StatsQuery.Starts
	StatsSource  StatsKey = "source"
	StatsStatus  StatsKey = "status"
	StatsProblem StatsKey = "problem" // a ticket counts once in each code of its problems
)

// StatsQuery says which tickets are counted, and by what.
type StatsQuery struct {
	Filter TicketFilter // its times should be set: without them it reads every ticket
	By     []StatsKey   // each at most once

	// Starts are when the days or hours begin that StatsTime counts by, the oldest first. A ticket counts in the last one that
	// began before it. So a day of any zone is as long as it is, and Postgres need not know the zone.
	Starts []time.Time

	Limit   int           // of groups
	Timeout time.Duration // after which Postgres stops counting
}

// StatsGroup are tickets that have the keys of the query in common. Other keys are empty.
type StatsGroup struct {
	Start   time.Time
	Source  string
	Status  ticket.Status
	Problem string // empty for tickets that have none
	Tickets int64
	Bytes   int64 // of their bodies, as they were sent
}

// Stats are counts of tickets.
type Stats struct {
	Groups  []StatsGroup // with StatsTime in the order of the keys, the newest first; otherwise the largest first
	Total   int64        // how many groups there are, with those that are not in Groups
	Tickets int64        // each once, in all of the groups
	Bytes   int64
}

// countTickets groups by the set of a ticket's codes first, because nearly all tickets have none, and few sets differ.
const countTickets = `
WITH counted AS MATERIALIZED (
    SELECT %s AS start, %s AS source, %s AS status, %s AS codes, count(*) AS tickets, sum(octet_length(body))::int8 AS bytes
    FROM tickets t%s GROUP BY 1, 2, 3, 4
), groups AS MATERIALIZED (
    SELECT start, source, status, coalesce(code, '') AS problem, sum(tickets)::int8 AS tickets, sum(bytes)::int8 AS bytes
    FROM counted LEFT JOIN LATERAL unnest(codes) c (code) ON true
    GROUP BY 1, 2, 3, 4
)
SELECT start, source, status, problem, tickets, bytes,
       (SELECT count(*) FROM groups), (SELECT sum(tickets)::int8 FROM counted), (SELECT sum(bytes)::int8 FROM counted)
FROM groups ORDER BY %s LIMIT %d`

// codesOf is that set. A list in the order of the ticket's lines would be another one for each ticket that is wrong in many ways:
// whoever sends such tickets would have Postgres keep all the lists, in files when they are too many.
const codesOf = `CASE WHEN problems IS NOT NULL THEN
    (SELECT array_agg(DISTINCT code) FROM (SELECT jsonb_path_query(problems, '$[*].code') #>> '{}' COLLATE "C") p (code)) END`

// countByHash keeps Postgres from sorting all tickets, with their bodies, to count them. It does not know that groups are few.
const countByHash = `SET LOCAL enable_sort = off`

// Stats counts tickets. It reads each ticket of the filter's times, but no body: their lengths are known without.
func (s *Store) Stats(ctx context.Context, query StatsQuery) (Stats, error) {
	sql, args := query.statement()
	var found Stats
	err := s.atLeisure(ctx, func(tx pgx.Tx) error {
		limit := fmt.Sprintf(`SET LOCAL statement_timeout = %d`, query.Timeout.Milliseconds())
		if _, err := tx.Exec(ctx, countByHash+"; "+limit); err != nil {
			return err
		}
		rows, err := tx.Query(ctx, sql, args...)
		if err != nil {
			return err
		}
		var g StatsGroup
		var start int
		columns := []any{
			&start, &g.Source, (*string)(&g.Status), &g.Problem, &g.Tickets, &g.Bytes, &found.Total, &found.Tickets, &found.Bytes,
		}
		_, err = pgx.ForEachRow(rows, columns, func() error {
			if start > 0 {
				g.Start = query.Starts[start-1]
			}
			found.Groups = append(found.Groups, g)
			return nil
		})
		return err
	})
	if isCode(err, queryCanceled) {
		err = fmt.Errorf("counting took longer than %s and was stopped: count tickets of a shorter time (%w)", query.Timeout, err)
	}
	return found, explain("count tickets", err)
}

// statement returns the statement of Stats.
func (q StatsQuery) statement() (sql string, args []any) {
	c := q.Filter.conditions()
	if len(q.Filter.Statuses) > 0 {
		var is []string
		for _, status := range q.Filter.Statuses {
			is = append(is, statusIs[status])
		}
		c.add("(" + strings.Join(is, " OR ") + ")")
	}
	where := c.where()
	columns := map[StatsKey]string{StatsTime: "0", StatsSource: "''", StatsStatus: "''", StatsProblem: "NULL::text[]"}
	var order []string
	for _, key := range q.By {
		switch key {
		case StatsTime:
			c.args = append(c.args, q.Starts)
			columns[key] = fmt.Sprintf("width_bucket(received_at, $%d::timestamptz[])", len(c.args))
			order = append(order, "start DESC")
		case StatsProblem:
			columns[key] = codesOf
			order = append(order, `problem COLLATE "C"`)
		default:
			columns[key] = string(key)
			order = append(order, string(key))
		}
	}
	if !slices.Contains(q.By, StatsTime) {
		order = append([]string{"tickets DESC"}, order...)
	}
	return fmt.Sprintf(countTickets, columns[StatsTime], columns[StatsSource], columns[StatsStatus], columns[StatsProblem], where,
		strings.Join(order, ", "), q.Limit), c.args
}
