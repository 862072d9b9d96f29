package postgres

import (
	"context"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"myticket/internal/ticket"
)

// ProblemFilter selects ERROR tickets. An empty field selects all.
type ProblemFilter struct {
	Sources []string
	Since   time.Time // received at this time or later
	Until   time.Time // received before this time
}

// ProblemOrder is an order of groups.
type ProblemOrder string

// The orders of groups.
const (
	ByTickets ProblemOrder = "tickets" // the largest first
	ByFirst   ProblemOrder = "first"   // that which began last first
	ByLast    ProblemOrder = "last"    // that which was seen last first
)

// ProblemGroup are the ERROR tickets of a source that failed in the same way.
type ProblemGroup struct {
	// Group is 0 for tickets that the version before stored, until a server has grouped them.
	Group   ticket.Group  `json:"group,omitzero"`
	Source  string        `json:"source"`
	Tickets int           `json:"tickets"`
	First   time.Time     `json:"first"`
	Last    time.Time     `json:"last"`
	Example uuid.UUID     `json:"example"`  // the last ticket
	Kinds   []ticket.Kind `json:"problems"` // at most ticket.MaxKinds
	Others  bool          `json:"others"`   // its tickets have problems of other kinds, too
}

// Problems are the groups of ERROR tickets.
type Problems struct {
	Groups  []ProblemGroup `json:"groups"`
	Total   int            `json:"total_groups"`  // how many there are, with those that are not in Groups
	Tickets int            `json:"total_tickets"` // in all of them
}

// byGroup is always true. A statement needs it to use the index tickets_problem_group: see the migration.
const byGroup = `(problem_group IS NULL OR problem_group <> 0)`

// groupTickets counts tickets from the index tickets_problem_group alone. What a group means is in its last ticket, so no table
// has to keep it. That ticket is found by its time, which nearly no other ticket has.
const groupTickets = `
WITH groups AS MATERIALIZED (
    SELECT problem_group, source, count(*) AS tickets, min(received_at) AS first, max(received_at) AS last
    FROM tickets%s GROUP BY problem_group, source
), listed AS (
    SELECT * FROM groups ORDER BY %s, source, problem_group LIMIT %d
)
SELECT coalesce(l.problem_group, 0), l.source, l.tickets, l.first, l.last,
       coalesce(e.id, '00000000-0000-0000-0000-000000000000'), e.problems,
       (SELECT count(*) FROM groups), (SELECT sum(tickets) FROM groups)::int8
FROM listed l LEFT JOIN LATERAL (
    SELECT id, problems FROM tickets t
    WHERE t.status = 'ERROR' AND t.received_at = l.last AND t.source = l.source
      AND t.problem_group IS NOT DISTINCT FROM l.problem_group
    LIMIT 1) e ON true
ORDER BY %[2]s, source, problem_group`

var groupOrders = map[ProblemOrder]string{
	ByTickets: `tickets DESC, last DESC`, ByFirst: `first DESC, tickets DESC`, ByLast: `last DESC, tickets DESC`,
}

// Problems returns up to limit groups of ERROR tickets. It reads an index entry for each ticket, and the ticket itself if it is
// newer than the last VACUUM of its partition.
func (s *Store) Problems(ctx context.Context, filter ProblemFilter, order ProblemOrder, limit int) (Problems, error) {
	sql, args := filter.groups(order, limit)
	rows, err := s.pool.Query(ctx, sql, args...)
	if err != nil {
		return Problems{}, explain("group problems", err)
	}
	found := Problems{Groups: []ProblemGroup{}}
	var g ProblemGroup
	var problems []ticket.Problem
	columns := []any{
		(*int64)(&g.Group), &g.Source, &g.Tickets, &g.First, &g.Last, &g.Example, &problems, &found.Total, &found.Tickets,
	}
	_, err = pgx.ForEachRow(rows, columns, func() error {
		if g.Kinds, g.Others = nil, false; g.Group != 0 {
			g.Kinds, g.Others = ticket.Kinds(problems)
		}
		if g.Kinds == nil {
			g.Kinds = []ticket.Kind{} // an array in JSON
		}
		g.First, g.Last = g.First.UTC(), g.Last.UTC()
		found.Groups = append(found.Groups, g)
		problems = nil
		return nil
	})
	return found, explain("group problems", err)
}

// groups returns the statement of Problems.
func (f ProblemFilter) groups(order ProblemOrder, limit int) (sql string, args []any) {
	c := TicketFilter{Sources: f.Sources, Since: f.Since, Until: f.Until}.conditions()
	return fmt.Sprintf(groupTickets, c.where(statusIs[ticket.Error], byGroup), groupOrders[order], limit), c.args
}
