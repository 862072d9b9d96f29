package postgres

import (
	"math"
	"time"

	"github.com/google/uuid"

	"myticket/internal/ticket"
)

// PageSQL is the statement of Tickets.
func PageSQL(filter TicketFilter, after uuid.UUID, limit int) (sql string, args []any) {
	return filter.page(after, limit)
}

// RetrySQL is the statement of ChangeTickets for a batch of one status behind a ticket.
func RetrySQL(filter TicketFilter, status ticket.Status, done uuid.UUID) (sql string, args []any) {
	last := place{time.Now().AddDate(1, 0, 0), uuid.UUID{math.MaxUint8}}
	filter.Statuses = []ticket.Status{status}
	return Retry.batch(Person{}, Bulk{Filter: filter}, place{ticket.IDTime(done), done}, last)
}

// BacklogSQL is what Backlog asks.
const BacklogSQL = backlog

// AuditSQL is the statement of Audit.
func AuditSQL(limit int) (sql string, args []any) { return AuditFilter{}.page(0, limit) }

// UngroupedSQL and AnyUngroupedSQL find tickets that the version before stored, with the settings InOrderOfIndex.
const (
	InOrderOfIndex  = inOrderOfIndex
	UngroupedSQL    = ungroupedTickets
	AnyUngroupedSQL = anyUngrouped
)

// UnprecedentedSQL is what is asked about new groups.
const UnprecedentedSQL = unprecedented

// ProblemsSQL is the statement of Problems.
func ProblemsSQL(filter ProblemFilter, order ProblemOrder, limit int) (sql string, args []any) {
	return filter.groups(order, limit)
}

// CountByHash is what Stats sets before its statement.
const CountByHash = countByHash

// StatsSQL is the statement of Stats.
func StatsSQL(query StatsQuery) (sql string, args []any) { return query.statement() }
