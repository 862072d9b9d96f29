package postgres

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"myticket/internal/ticket"
)

// Bounds of newGroups. A sender may be able to choose names of sources, and each has groups of its own.
const (
	maxSeenGroups    = 10_000
	maxWaitingGroups = 100
)

// groupOfSource is a group of the tickets of a source.
type groupOfSource struct {
	source string
	group  ticket.Group
}

// firstTicket is the first ERROR ticket of a group that this server stored.
type firstTicket struct {
	at       time.Time
	id       uuid.UUID
	problems []ticket.Problem
}

// newGroups finds the groups of which Postgres had no ERROR ticket before. Storing tickets only looks into memory. What is not
// there waits until Postgres was asked, some seconds later. Beyond maxWaitingGroups it is not asked.
type newGroups struct {
	sources Sources
	counter *prometheus.CounterVec

	mu      sync.Mutex
	seen    map[groupOfSource]bool // it was asked about, or waits
	waiting map[groupOfSource]firstTicket
}

func watchNewGroups(sources Sources) *newGroups {
	n := &newGroups{
		sources: sources, seen: map[groupOfSource]bool{}, waiting: map[groupOfSource]firstTicket{},
		counter: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "myticket_problem_groups_new_total",
			Help: "Groups of problems (myticket problems) of which no ERROR ticket was in the database before, by source (as in " +
				"myticket_http_requests_total): something goes wrong in a new way.",
		}, []string{"source"}),
	}
	for _, policy := range sources.Policies {
		n.counter.WithLabelValues(policy.Label) // a counter must be there before its first group, or increase() does not see that one
	}
	return n
}

// stored notes the groups of tickets that are stored.
func (n *newGroups) stored(rows []row) {
	for i := range rows {
		r := &rows[i]
		if r.status != ticket.Error {
			continue
		}
		n.note(groupOfSource{r.ticket.Source, r.group()}, firstTicket{r.ticket.ReceivedAt, r.ticket.ID, r.problems})
	}
}

func (n *newGroups) note(key groupOfSource, t firstTicket) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if waits, ok := n.waiting[key]; n.seen[key] && !(ok && t.at.Before(waits.at)) {
		return
	}
	if len(n.waiting) >= maxWaitingGroups && !n.seen[key] {
		return
	}
	if len(n.seen) >= maxSeenGroups {
		clear(n.seen) // those that come again are asked about again
	}
	n.seen[key], n.waiting[key] = true, t
}

// take returns what waits.
func (n *newGroups) take() map[groupOfSource]firstTicket {
	n.mu.Lock()
	defer n.mu.Unlock()
	waiting := n.waiting
	n.waiting = map[groupOfSource]firstTicket{}
	return waiting
}

// label is a source's name in metrics.
func (n *newGroups) label(source string) string {
	if n.sources.Entry == nil {
		return "other"
	}
	return n.sources.Policies[n.sources.Entry(source)].Label
}

// unprecedented returns, for each ticket, whether its group has no ERROR ticket that came before it.
const unprecedented = `
SELECT NOT EXISTS (
    SELECT FROM tickets
    WHERE status = 'ERROR' AND ` + byGroup + ` AND problem_group = i.grp AND source = i.src AND received_at < i.at)
FROM unnest($1::int8[], $2::text[], $3::timestamptz[]) WITH ORDINALITY AS i (grp, src, at, n)
ORDER BY n`

// reportNewGroups counts and logs the groups that are new. Of several servers that have one, that with its first ticket does.
func (m *Maintainer) reportNewGroups(ctx context.Context) (more bool, err error) {
	n := m.store.newGroups
	var keys []groupOfSource
	var groups []int64
	var sources []string
	var times []time.Time
	waiting := n.take()
	for key, t := range waiting {
		keys, groups = append(keys, key), append(groups, int64(key.group))
		sources, times = append(sources, key.source), append(times, t.at)
	}
	if len(keys) == 0 {
		return false, nil
	}
	rows, err := m.store.pool.Query(ctx, unprecedented, groups, sources, times)
	if err != nil {
		return false, fmt.Errorf("look for new groups of problems: %w", err)
	}
	isNew, err := pgx.CollectRows(rows, pgx.RowTo[bool])
	if err != nil {
		return false, fmt.Errorf("look for new groups of problems: %w", err)
	}
	for i, key := range keys {
		if !isNew[i] {
			continue
		}
		n.counter.WithLabelValues(n.label(key.source)).Inc()
		t := waiting[key]
		m.store.logger.Warn("tickets go wrong in a way that no ERROR ticket in the database did; they are stored, and "+
			"\"myticket problems\" lists what goes wrong", "source", key.source, "ticket", t.id, "group", key.group,
			"problem", describeKinds(t.problems))
	}
	return false, nil
}

// describeKinds returns the kinds of problems as one line.
func describeKinds(problems []ticket.Problem) string {
	kinds, others := ticket.Kinds(problems)
	parts := make([]string, 0, len(kinds)+1)
	for _, k := range kinds {
		parts = append(parts, k.Code+": "+k.Shape)
	}
	if others {
		parts = append(parts, "others")
	}
	return strings.Join(parts, "; ")
}
